"""Training curves from the log of ``fairseq-train``, in any of its log formats."""

from __future__ import annotations

import math
from pathlib import Path

from fairseq_plugins.training.train_log import parse_line

__all__ = ["Curves", "read_curves"]

# By metric: number of updates -> value. Names begin with train_ or valid_.
Curves = dict[str, dict[int, float]]

_MAX_POINTS = 400


def read_curves(log: Path) -> Curves:
    """Return losses, BLEU and statistics of the beam by number of updates.

    After an interruption the later of two lines about the same update counts.

    Args:
        log: ``train.log`` of a run; no curves if it does not exist.
    """
    if not log.is_file():
        return {}
    curves: Curves = {}
    epochs: Curves = {}
    with open(log, encoding="utf-8", errors="replace") as stream:
        for line in filter(None, map(parse_line, stream)):
            updates = line.values.get("num_updates")
            if updates is None or not math.isfinite(updates):
                continue
            target = epochs if line.kind == "train" else curves
            prefix = "valid" if line.is_validation else "train"
            for name, value in line.values.items():
                if math.isfinite(value) and name not in ("num_updates", "epoch"):
                    target.setdefault(f"{prefix}_{name}", {})[int(updates)] = value
    # Means over epochs are shown if the run was shorter than --log-interval.
    return {
        name: _thin_out(dict(sorted(points.items())))
        for name, points in {**epochs, **curves}.items()
    }


def _thin_out(points: dict[int, float]) -> dict[int, float]:
    """Average neighbors so that at most `_MAX_POINTS` are left."""
    size = math.ceil(len(points) / _MAX_POINTS)
    updates, values = list(points), list(points.values())
    thinned = {}
    for start in range(0, len(points), max(size, 1)):
        part = values[start : start + size]
        thinned[updates[start + len(part) - 1]] = sum(part) / len(part)
    return thinned
