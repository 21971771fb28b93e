"""Thousands of updates: memory and open files must not grow."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any, Sequence

from soak_common import SMALL_LSTM, call, prepared_corpus, read_notes, watched

__all__ = ["PARTS", "judge_growth"]

_UPDATES = 2000
_WARM_UP = 100  # caches, buffers and the longest sentences are met for the first time
_BLOCK = 50
_MOST_GROWTH = 16.0  # MiB, of a process of some 400
_STEEPEST = 2.0  # KiB for each update: 2 GiB in a million
# The same on every corpus: validation 10 times, checkpoints 4 times, epochs change.
_OPTIONS = (
    *(option for option in SMALL_LSTM if option != "--disable-validation"),
    "--optimizer", "adam", "--lr", 0.003, "--max-tokens", 150, "--log-interval", 50,
    "--validate-interval-updates", 200, "--save-interval-updates", 500,
    "--keep-interval-updates", 2, "--no-epoch-checkpoints",
)  # fmt: skip
# The search ends after six words, or 2,000 updates would take an hour.
_BEAM = ("--criterion", "soft_beam_search", "--beam", 2,
         "--beam-max-len-a", 0, "--beam-max-len-b", 6)  # fmt: skip


def _train(name: str, options: Sequence[object], work: Path, updates: int) -> Any:
    notes = work / f"memory_{name}_notes"
    call(
        *watched(notes, "memory"), prepared_corpus(work) / "bin", *_OPTIONS, *options,
        "--save-dir", work / f"memory_{name}", "--max-update", updates or _UPDATES,
        "--restore-file", "none",
    )  # fmt: skip
    resident, handles = read_notes(notes).T.tolist()
    return judge_growth(resident, handles)


def judge_growth(resident: Sequence[int], handles: Sequence[int]) -> dict[str, Any]:
    """Decide whether memory and open files are flat after the first 100 updates.

    Memory goes up and down with the lengths of sentences, so it is compared by medians
    of 50 updates. It is flat if the last median is at most 16 MiB above the first, and
    if a straight line through the second half of them, at the upper end of its 95 %
    interval, rises by at most 2 KiB an update: a leak goes on, while what the first
    updates have not needed yet comes to an end. Of files there may not be more open,
    at any update of the second half, than there were in the first.

    Args:
        resident: bytes of the process after each update.
        handles: open files after each update.
    """
    after = [value / 2**20 for value in resident[_WARM_UP:]]
    blocks = [after[i : i + _BLOCK] for i in range(0, len(after) - _BLOCK + 1, _BLOCK)]
    medians = [statistics.median(block) for block in blocks]
    growth = medians[-1] - medians[0]
    slope, error = _slope(medians[len(medians) // 2 :])
    slope, error = (value * 1024 / _BLOCK for value in (slope, error))
    middle = (len(handles) + _WARM_UP) // 2
    before, later = max(handles[_WARM_UP:middle]), max(handles[middle:])
    flat = growth <= _MOST_GROWTH and slope + 2 * error <= _STEEPEST
    return {
        "updates": len(resident), "mib_at_update_100": round(medians[0], 2),
        "mib_at_the_end": round(medians[-1], 2), "mib_grown": round(growth, 2),
        "kib_an_update_in_the_second_half": round(slope, 3),
        "its_standard_error": round(error, 3), "most_open_files_in_the_first_half":
        before, "most_open_files_in_the_second_half": later,
        "passed": flat and later <= before,
    }  # fmt: skip


def _slope(values: Sequence[float]) -> tuple[float, float]:
    """Return the slope of a line through values and its standard error."""
    places = range(len(values))
    slope, intercept = statistics.linear_regression(places, values)
    rest = [value - slope * x - intercept for x, value in zip(places, values)]
    spread = sum((x - statistics.mean(places)) ** 2 for x in places)
    variance = sum(r**2 for r in rest) / (len(values) - 2)
    return slope, math.sqrt(variance / spread)


def cross_entropy(work: Path, updates: int) -> Any:
    """2,000 updates by cross entropy, validation in between: memory stays flat."""
    return _train("cross_entropy", (), work, updates)


def soft_beam_search(work: Path, updates: int) -> Any:
    """2,000 updates for the beam, validation in between: memory stays flat."""
    return _train("soft_beam_search", _BEAM, work, updates)


PARTS = {"cross_entropy": cross_entropy, "soft_beam_search": soft_beam_search}
