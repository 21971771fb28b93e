"""Choose among variants of a system by validation text."""

from __future__ import annotations

import statistics
from typing import Any, Sequence

__all__ = ["chosen_variants"]

Row = dict[str, Any]


def chosen_variants(rows: Sequence[Row]) -> set[str]:
    """Return the variant of each system that has the best validation BLEU.

    Variants are compared by the mean over the seeds that all variants of the system
    have, at the largest beam. A system with one variant is not chosen from.

    Args:
        rows: of the validation text, with ``system``, ``variant``, ``seed``, ``beam``
            and ``bleu``.
    """
    chosen = set()
    for system in {row["system"] for row in rows}:
        ours = [row for row in rows if row["system"] == system]
        widest = max(row["beam"] for row in ours)
        scores: dict[str, dict[int, float]] = {}
        for row in ours:
            if row["beam"] == widest:
                scores.setdefault(row["variant"], {})[row["seed"]] = row["bleu"]
        common = set.intersection(*(set(by_seed) for by_seed in scores.values()))
        if len(scores) > 1 and common:
            chosen.add(max(scores, key=lambda name: _mean(scores[name], common)))
    return chosen


def _mean(by_seed: dict[int, float], seeds: set[int]) -> float:
    return statistics.mean(by_seed[seed] for seed in seeds)
