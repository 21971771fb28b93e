"""Training curves out of the log of ``fairseq-train``, in any of its log formats."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Iterable, Iterator

__all__ = ["Curves", "read_curves"]

# By metric: number of updates -> value. Names start with train_ or valid_.
Curves = dict[str, dict[int, float]]

# "train_inner" is written every --log-interval updates, the others once an epoch.
_LINE = re.compile(r"\| INFO \| (train_inner|train|valid[^ ]*) \| (.*)")
_PAIR = re.compile(r"(\w+)(?:=| )([-+\d.e]+|inf|nan)(?=,| \||$)")
_MOST_POINTS = 400


def read_curves(log: Path) -> Curves:
    """Return what a log says about losses, BLEU and the beam, by number of updates.

    Where a training went on after an interruption the later line counts.

    Args:
        log: ``train.log`` of a run; nothing is known if there is none.
    """
    if not log.is_file():
        return {}
    with open(log, encoding="utf-8", errors="replace") as stream:
        curves = _collected(stream)
    return {
        name: _thinned(dict(sorted(points.items()))) for name, points in curves.items()
    }


def _collected(lines: Iterable[str]) -> Curves:
    curves: Curves = {}
    epochs: Curves = {}
    for kind, values in _records(lines):
        updates = values.get("num_updates")
        if updates is None or not math.isfinite(updates):
            continue
        target = epochs if kind == "train" else curves
        prefix = "valid" if kind.startswith("valid") else "train"
        for name, value in values.items():
            if math.isfinite(value) and name not in ("num_updates", "epoch"):
                target.setdefault(f"{prefix}_{name}", {})[int(updates)] = value
    # An epoch's means are what there is without a --log-interval that was reached.
    for name, points in epochs.items():
        curves.setdefault(name, points)
    return curves


def _records(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what each line is about, and its numbers."""
    for line in lines:
        match = _LINE.search(line)
        if not match:
            continue
        kind, text = match[1], match[2].strip()
        if text.startswith("{"):
            yield kind, _from_json(kind, text)
        else:
            yield kind, {name: float(value) for name, value in _PAIR.findall(text)}


def _from_json(kind: str, text: str) -> dict[str, float]:
    """Return the numbers of ``--log-format json``, whose names have a prefix."""
    try:
        values = json.loads(text)
    except ValueError:  # cut off by a kill
        return {}
    numbers = {}
    for name, value in values.items():
        try:
            numbers[name.removeprefix(f"{kind}_")] = float(value)
        except (TypeError, ValueError):
            continue
    return numbers


def _thinned(points: dict[int, float]) -> dict[int, float]:
    """Average neighbours until there are few enough to draw."""
    size = math.ceil(len(points) / _MOST_POINTS)
    if size <= 1:
        return points
    updates, values = list(points), list(points.values())
    thinned = {}
    for start in range(0, len(points), size):
        part = values[start : start + size]
        last = min(start + size, len(points)) - 1
        thinned[updates[last]] = sum(part) / len(part)
    return thinned
