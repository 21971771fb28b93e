"""How often paired tests call two equally good systems different.

    python scripts/dev/bench_significance.py --output \\
        results/evaluation/significance.json

Both systems are the references with a quarter of the words exchanged at random, drawn
anew for every pair: a test whose p-values mean what they say finds p < 0.05 in 5 % of
the pairs.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

from fairseq_plugins.evaluation.significance import paired_test
from fairseq_plugins.evaluation.table import format_table
from fairseq_plugins.utils.arguments import at_least, output_file
from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import read_lines, write_json

METHODS = ("randomization", "bootstrap")
EXCHANGED = 0.25  # share of the words
LEVELS = (0.01, 0.05, 0.1)


def main() -> None:
    arguments = _parse_arguments()
    references = read_lines(arguments.references)
    rng = random.Random(arguments.seed)
    found: dict[str, list[float]] = {method: [] for method in METHODS}
    for number in range(1, arguments.pairs + 1):
        one, other = _translated(references, rng), _translated(references, rng)
        for method, p_values in found.items():
            test = paired_test(
                one, other, references,
                method=method, samples=arguments.samples, checked=True,
            )  # fmt: skip
            p_values.append(test.bleu.p_value)
        if number % 50 == 0:
            print(f"{number} of {arguments.pairs} pairs", flush=True)
    rows = [_row(method, np.array(p_values)) for method, p_values in found.items()]
    print(_table(rows))
    if arguments.output:
        about = vars(arguments) | {"references": str(arguments.references)}
        about.pop("output")
        write_json(arguments.output, {"arguments": about, "rows": rows})


def _translated(references: list[str], rng: random.Random) -> list[str]:
    """Return every line with some of its words exchanged for others of the line."""
    lines = []
    for words in map(str.split, references):
        kept = (w if rng.random() > EXCHANGED else rng.choice(words) for w in words)
        lines.append(" ".join(kept))
    return lines


def _row(method: str, p_values: np.ndarray) -> dict[str, str | float]:
    shares = {f"below_{level}": float((p_values < level).mean()) for level in LEVELS}
    spread = {"mean": float(p_values.mean()), "largest": float(p_values.max())}
    return {"method": method, **shares, **spread}


def _table(rows: list[dict[str, str | float]]) -> str:
    headings = ["test", *(f"p < {level}" for level in LEVELS), "mean p", "largest p"]
    cells = [
        [str(row["method"]), *(f"{float(row[key]):.3f}" for key in list(row)[1:])]
        for row in rows
    ]
    return format_table(headings, cells)


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--references", type=Path, default=Path("data/builtin/valid.fr"),
        metavar="FILE", help="default: %(default)s")  # fmt: skip
    add("--pairs", type=at_least(1), default=250, metavar="N", help="default: 250")
    add("--samples", type=at_least(1), default=300, metavar="N",
        help="of each test (default: 300)")  # fmt: skip
    add("--seed", type=int, default=1, metavar="N", help="default: 1")
    add("--output", type=output_file, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
