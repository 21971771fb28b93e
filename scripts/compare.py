"""Compare runs with a control run: BLEU, chrF and a paired significance test.

    python scripts/compare.py CONTROL RUN [RUN ...] [--beam 1 5] [--subset test]

The runs are folders written by scripts/train.py. What scripts/evaluate.py has not done
yet is done first. p is how probable a difference from the control as great as this one
is between equally good systems (paired approximate randomisation, sacrebleu's).
"""
from __future__ import annotations

import _environment

_environment.ensure()

import argparse  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from fairseq_plugins.evaluation.run_comparison import compare_runs  # noqa: E402
from fairseq_plugins.evaluation.run_scores import Row  # noqa: E402
from fairseq_plugins.evaluation.table import format_table  # noqa: E402
from fairseq_plugins.pipeline.errors import run_command_line  # noqa: E402
from fairseq_plugins.pipeline.files import write_json  # noqa: E402


def main() -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    rows = compare_runs(
        arguments.control, arguments.runs, beams=arguments.beam, subset=arguments.subset
    )
    if arguments.json:
        write_json(arguments.json, rows)
    print(_table(rows))
    return 0


def _table(rows: list[Row]) -> str:
    headings = ["run", "updates", "train s", "beam", "BLEU", "chrF", "p", "generate s"]
    cells = [
        [
            Path(row["run"]).name,
            row["updates"],
            row["train_seconds"],
            row["beam"],
            row["bleu"],
            row["chrf"],
            f"{row['bleu_p_value']:.4f}" if "bleu_p_value" in row else "control",
            row["seconds"],
        ]
        for row in rows
    ]
    signatures = dict.fromkeys(
        row[key]
        for key in ("bleu_signature", "chrf_signature", "test_signature")
        for row in rows
        if key in row
    )
    return "\n".join([format_table(headings, cells), *signatures])


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("control", type=Path, metavar="CONTROL")
    add("runs", type=Path, nargs="+", metavar="RUN")
    add("--beam", type=int, nargs="+", default=[1, 5], metavar="K",
        help="beam sizes, 1 is greedy (default: 1 5)")  # fmt: skip
    add("--subset", default="test", help="subset of the corpus (default: test)")
    add("--json", type=Path, metavar="FILE", help="write the rows here, too")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
