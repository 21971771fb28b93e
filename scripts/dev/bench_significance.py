"""How often paired tests find a difference between two equally good systems.

    python scripts/dev/bench_significance.py

Both systems are the references with a quarter of the words exchanged at random, drawn
again for every pair. A correct test finds p < 0.05 in 5 % of the pairs.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
from measure import create_parser
from results_tables import ROOT, merge_rows

from fairseq_plugins.evaluation.significance import paired_test
from fairseq_plugins.utils.arguments import at_least
from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import read_lines

METHODS = ("randomization", "bootstrap")
EXCHANGED = 0.25  # fraction of the words
LEVELS = (0.01, 0.05, 0.1)
KEY = ("test", "pairs", "samples", "seed")


def main() -> None:
    arguments = _parse_arguments()
    references = read_lines(arguments.references)
    rng = random.Random(arguments.seed)
    p_values: dict[str, list[float]] = {method: [] for method in METHODS}
    for number in range(1, arguments.pairs + 1):
        one, other = _corrupt(references, rng), _corrupt(references, rng)
        for method, values in p_values.items():
            test = paired_test(
                one, other, references,
                method=method, samples=arguments.samples, checked=True,
            )  # fmt: skip
            values.append(test.bleu.p_value)
        if number % 50 == 0:
            print(f"{number} of {arguments.pairs} pairs", flush=True)
    settings = {name: getattr(arguments, name) for name in KEY[1:]}
    rows = [
        {"test": method, **settings, **_summarize(np.array(values))}
        for method, values in p_values.items()
    ]
    for row in rows:
        print(row)
    merge_rows(arguments.output, rows, KEY)


def _corrupt(references: list[str], rng: random.Random) -> list[str]:
    """Return every line with some of its words exchanged for others of the line."""
    lines = []
    for words in map(str.split, references):
        kept = (w if rng.random() > EXCHANGED else rng.choice(words) for w in words)
        lines.append(" ".join(kept))
    return lines


def _summarize(p_values: np.ndarray) -> dict[str, Any]:
    """Return how often p lies below each level, its mean and its largest value."""
    names = (f"p_below_{level}".replace(".", "") for level in LEVELS)
    below = {name: float((p_values < x).mean()) for name, x in zip(names, LEVELS)}
    return below | {
        "mean_p": float(p_values.mean()),
        "largest_p": float(p_values.max()),
    }


def _parse_arguments() -> argparse.Namespace:
    parser = create_parser(__doc__, "significance.csv")
    add = parser.add_argument
    add("--references", type=Path, default=ROOT / "data" / "builtin" / "valid.fr",
        metavar="FILE", help="default: %(default)s")  # fmt: skip
    add("--pairs", type=at_least(1), default=250, metavar="N", help="default: 250")
    add("--samples", type=at_least(1), default=300, metavar="N",
        help="of each test (default: 300)")  # fmt: skip
    add("--seed", type=int, default=1, metavar="N", help="default: 1")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
