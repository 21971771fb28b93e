"""Translate with a model that retrieves from its training data (kNN-MT).

    python scripts/knn_mt.py RUN [--subset test test1] [--systems soft] [--beam 5]

RUN is a folder written by scripts/train.py. The decoder states of all training tokens
become a datastore. At each step of the search the nearest neighbors vote for the next
token, and their votes are mixed with the model's probabilities. The number of
neighbors, their weights and the weight of their votes are learned through SOFT top-k
on the validation set. The output is BLEU, chrF and p of a paired randomization test
against the model alone. Finished steps are kept in --out and skipped. The search uses
faiss or, if that is not installed, scikit-learn.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import environment

environment.ensure()

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.evaluation.evaluate import choose_checkpoint
from fairseq_plugins.knn_mt.experiment import SYSTEMS, Experiment, Options
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.arguments import at_least
from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import write_json
from fairseq_plugins.utils.tables import format_table


def main() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse()
    run = RunFolder(arguments.run)
    experiment = Experiment(
        choose_checkpoint(run, arguments.checkpoint).path,
        PreparedCorpus.load(Path(run.read_config()["data"])),
        arguments.out or arguments.run / "knn_mt",
        Options(
            num_neighbors=arguments.neighbors,
            probes=arguments.probes,
            updates=arguments.updates,
            seed=arguments.seed,
        ),
    )
    rows = experiment.compare(arguments.systems, arguments.subset, beam=arguments.beam)
    if arguments.json:
        write_json(arguments.json, rows)
    print(_table(rows))


def _table(rows: list[dict[str, Any]]) -> str:
    headings = ["subset, system", "BLEU", "chrF", "p", "seconds"]
    cells = [
        [
            f"{row['title']}, {row['system']}",
            row["bleu"],
            row["chrf"],
            f"{row['bleu_p_value']:.4f}" if "bleu_p_value" in row else "control",
            row["seconds"],
        ]
        for row in rows
    ]
    names = ("bleu_signature", "chrf_signature", "test_signature")
    signatures = dict.fromkeys(row[n] for n in names for row in rows if n in row)
    return "\n".join([format_table(headings, cells), *signatures])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Options()
    add = parser.add_argument
    add("run", type=Path, metavar="RUN")
    add(
        "--checkpoint",
        default="best",
        metavar="WHICH",
        help="best, last or a path (default: best)",
    )
    add("--subset", nargs="+", default=["test"], metavar="NAME")
    add(
        "--systems",
        nargs="+",
        choices=list(SYSTEMS),
        default=["soft"],
        metavar="SYSTEM",
        help=f"of {', '.join(SYSTEMS)} (default: soft)",
    )
    add("--beam", type=at_least(1), default=5, metavar="K")
    add(
        "--neighbors",
        "--neighbours",
        type=at_least(2),
        default=defaults.num_neighbors,
        metavar="N",
        help=f"retrieved at each step (default: {defaults.num_neighbors})",
    )
    add(
        "--probes",
        type=at_least(0),
        default=defaults.probes,
        metavar="P",
        help="clusters that an approximate index searches (default: 0, exact search)",
    )
    add(
        "--updates",
        type=at_least(1),
        default=defaults.updates,
        metavar="N",
        help=f"updates of learning the weights (default: {defaults.updates})",
    )
    add("--seed", type=int, default=defaults.seed)
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="for datastore, weights and translations (default: RUN/knn_mt)",
    )
    add("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
