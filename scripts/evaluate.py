"""Translate a test set by a trained model and score it against the raw reference.

    python scripts/evaluate.py RUN [--beam 1 5] [--subset test] [--checkpoint best]

RUN is a folder written by scripts/train.py. Translations, fairseq's output and
scores.json go to RUN/eval. BLEU and chrF are sacrebleu's, on detokenised text. What was
evaluated before, by the same checkpoint and on the same data, is not done again.
"""
from __future__ import annotations

import _environment

_environment.ensure()

import argparse  # noqa: E402
import logging  # noqa: E402
import math  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from fairseq_plugins.evaluation.run_scores import Row, evaluate_run  # noqa: E402
from fairseq_plugins.evaluation.table import format_table  # noqa: E402
from fairseq_plugins.pipeline.errors import run_command_line  # noqa: E402
from fairseq_plugins.pipeline.files import write_json  # noqa: E402


def main() -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    rows = evaluate_run(
        arguments.run,
        beams=arguments.beam,
        subset=arguments.subset,
        checkpoint=arguments.checkpoint,
        lenpen=arguments.lenpen,
        max_tokens=arguments.max_tokens,
    )
    if arguments.json:
        write_json(arguments.json, rows)
    print(_table(rows))
    return 0


def _table(rows: list[Row]) -> str:
    headings = {
        "title": "subset",
        "checkpoint": "checkpoint",
        "beam": "beam",
        "bleu": "BLEU",
        "chrf": "chrF",
        "seconds": "seconds",
        "tokens_per_second": "tokens/s",
    }
    cells = [[row[key] for key in headings] for row in rows]
    return "\n".join(
        [
            format_table(list(headings.values()), cells),
            f"BLEU: {rows[0]['bleu_signature']}",
            f"chrF: {rows[0]['chrf_signature']}",
        ]
    )


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN")
    add("--beam", type=_positive, nargs="+", default=[1, 5], metavar="K",
        help="beam sizes, 1 is greedy (default: 1 5)")  # fmt: skip
    add("--subset", default="test", help="subset of the corpus (default: test)")
    add("--checkpoint", default="best", metavar="WHICH",
        help="best, last or a path (default: best)")  # fmt: skip
    add("--lenpen", type=_finite, default=1.0, metavar="X",
        help="exponent of the length in the score (default: 1)")  # fmt: skip
    add("--max-tokens", type=_positive, default=4000, metavar="N",
        help="tokens in a batch (default: 4000)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the rows here, too")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, but is {value}")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, but is {value}")
    return value


if __name__ == "__main__":
    run_command_line(main)
