"""Short names of runs and files that are told apart by them."""
from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Sequence

__all__ = ["distinct_names", "short_names", "system_names"]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of different paths, as many as make them different."""
    paths = [Path(os.path.abspath(path)) for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = [os.path.join(*path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    raise AssertionError("different paths must have different names")


def short_names(names: Sequence[str]) -> list[str]:
    """Return names without the words that all of them begin with.

    Example:
        ``de-en_lstm_control`` and ``de-en_lstm_soft`` are ``control`` and ``soft``.
    """
    shared = len(_shared_words(names))
    return ["".join(_words(name)[shared:]) for name in names]


def system_names(systems: Sequence[Sequence[Path]]) -> list[str]:
    """Return a short name for each system, given the paths of its trainings.

    Example:
        ``soft_1`` and ``soft_2`` of one system are ``soft``. Where this would not tell
        systems apart, their names have all trainings in them.
    """
    flat = short_names(distinct_names([path for paths in systems for path in paths]))
    rest = iter(flat)
    groups = [[next(rest) for _ in paths] for paths in systems]
    common = [_common(names) for names in groups]
    if all(common) and len(set(common)) == len(common):
        return common
    return [",".join(names) for names in groups]


def _common(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return "".join(_shared_words(names)).rstrip("_/.-")


def _words(name: str) -> list[str]:
    return re.split(r"(?<=[_/.-])", name)


def _shared_words(names: Sequence[str]) -> list[str]:
    """Return the words that all begin with; of each at least one is left."""
    words = [_words(name) for name in names]
    shared = 0
    if len(names) > 1:
        fewest = min(map(len, words))
        while shared < fewest - 1 and len({each[shared] for each in words}) == 1:
            shared += 1
    return words[0][:shared]
