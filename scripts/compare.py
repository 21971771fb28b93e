"""Compare systems with a control: BLEU, chrF and paired significance tests.

    python scripts/compare.py CONTROL SYSTEM [SYSTEM ...] [--beam 1 5] [--subset test]
    python scripts/compare.py CONTROL SYSTEM [SYSTEM ...] --reference REF

A system is a run folder of scripts/train.py, or several separated by commas, one per
seed: a_1,a_2,a_3. Runs that are not evaluated yet are evaluated first. With --reference
it is a file of translations, or several files, one per seed.

p is the probability of a difference of at least this size between equally good systems,
by sacrebleu's paired approximate randomization. The p-value of its paired bootstrap is
smaller (docs/evaluation.md). The seeds of a system are pooled per sentence.
[low, high] is a 95 % confidence interval of the difference, over sentences and seeds.
"""

from __future__ import annotations

import environment

environment.ensure()

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from fairseq_plugins.evaluation import command_line
from fairseq_plugins.evaluation.compare import compare_files, compare_runs, system_names
from fairseq_plugins.evaluation.evaluate import Row, Scoring
from fairseq_plugins.utils.arguments import at_least, output_file, run_folders
from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import write_json
from fairseq_plugins.utils.tables import format_table


def main() -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    systems = [arguments.control, *arguments.systems]
    if arguments.reference:
        rows = compare_files(
            systems[0],
            systems[1:],
            arguments.reference,
            source=arguments.source,
            shown=arguments.sentences,
            max_empty=arguments.max_empty,
            force=arguments.force,
        )
    else:
        rows = compare_runs(
            systems[0],
            systems[1:],
            shown=arguments.sentences,
            **command_line.read_search_options(arguments),
            scoring=Scoring(max_empty=arguments.max_empty, force=arguments.force),
        )
    print("\n".join([_table(rows), *_sentences(rows)]))
    if arguments.json:
        write_json(arguments.json, rows)
    return 0


def _table(rows: list[Row]) -> str:
    of_runs = "beam" in rows[0]
    names = _names(rows)
    headings = ["system"]
    headings += ["updates", "train s", "beam"] if of_runs else []
    headings += ["BLEU", "seeds", "difference", "p", "p bootstrap", "chrF", "p"]
    headings += ["generate s"] if of_runs else []
    cells = [
        [
            names[row["run"]],
            *([row[key] for key in _TRAINING] if of_runs else []),
            row["bleu"],
            f"±{row['bleu_deviation']:.2f}" if "runs" in row else None,
            *_difference(row),
            row["chrf"],
            f"{row['chrf_p_value']:.4f}" if "chrf_p_value" in row else None,
            *([row["seconds"]] if of_runs else []),
        ]
        for row in rows
    ]
    signatures = dict.fromkeys(
        row[key] for key in _SIGNATURES for row in rows if key in row
    )
    notes = command_line.format_notes(rows)
    return "\n".join([format_table(headings, cells), *signatures, *notes])


_TRAINING = ("updates", "train_seconds", "beam")
_SIGNATURES = (
    "bleu_signature",
    "chrf_signature",
    "test_signature",
    "bootstrap_signature",
)


def _difference(row: Row) -> list[str | None]:
    if "bleu_p_value" not in row:
        return ["control", None, None]
    low, high = row["bleu_interval"]
    return [
        f"{row['bleu_difference']:+.2f} [{low:+.2f}, {high:+.2f}]",
        f"{row['bleu_p_value']:.4f}",
        f"{row['bleu_p_bootstrap']:.4f}",
    ]


def _sentences(rows: list[Row]) -> list[str]:
    """Return the sentences with the greatest changes, at the last beam size."""
    last = {row["run"]: row for row in rows if "gains" in row}
    names = _names(rows)
    lines = []
    for row in last.values():
        for key, title in (("gains", "Gained"), ("losses", "Lost")):
            if row[key]:
                beam = f", beam {row['beam']}" if "beam" in row else ""
                name = names[row["run"]] + beam
                lines += ["", f"{title} most (sentence chrF): {name}"]
            for entry in row[key]:
                lines += _sentence(entry)
    return lines


def _sentence(entry: dict[str, Any]) -> list[str]:
    return [
        f"  line {entry['line']:,}: {entry['chrf_baseline']:.1f} to "
        f"{entry['chrf']:.1f}",
        f"    reference  {entry['reference']}",
        f"    control    {entry['baseline']}",
        f"    system     {entry['system']}",
    ]


def _names(rows: list[Row]) -> dict[str, str]:
    """Return a short name for each system."""
    systems = {row["run"]: row.get("runs", [row["run"]]) for row in rows}
    paths = [[Path(path) for path in runs] for runs in systems.values()]
    return dict(zip(systems, system_names(paths)))


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("control", type=run_folders, metavar="CONTROL")
    add("systems", type=run_folders, nargs="+", metavar="SYSTEM")
    add("--reference", type=Path, metavar="REF",
        help="compare files of translations with this reference text")  # fmt: skip
    add("--source", type=Path, metavar="SRC",
        help="with --reference: source text, for checks")  # fmt: skip
    command_line.add_search_options(parser)
    command_line.add_check_options(parser)
    add("--sentences", type=at_least(0), default=3, metavar="N",
        help="sentences with the greatest gain and loss to show (default: 3)",
        )  # fmt: skip
    add("--json", type=output_file, metavar="FILE", help="also write the rows here")
    # Without defaults the parsed arguments show which options are given.
    defaults = {name: parser.get_default(name) for name in _OF_RUNS}
    parser.set_defaults(**dict.fromkeys(defaults))
    arguments = parser.parse_args()
    given = [name for name in defaults if getattr(arguments, name) is not None]
    if arguments.reference and given:
        parser.error(
            f"--{given[0]} is an option for run folders, but with --reference the "
            "systems are files of translations"
        )
    if arguments.source and not arguments.reference:
        parser.error("--source needs --reference; a run folder names its source text")
    missing = {name: defaults[name] for name in defaults if name not in given}
    return argparse.Namespace(**{**vars(arguments), **missing})


_OF_RUNS = ("beam", "subset", "checkpoint", "lenpen")


if __name__ == "__main__":
    run_command_line(main)
