"""fairseq's own fp16 training with a loss scale that is far too large."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Sequence

from soak_common import SMALL_LSTM, call, prepared_corpus, read_notes, watched

__all__ = ["PARTS", "judge_overflows"]

_SCALE = 2**30
# The scale is doubled after so many updates that went well, so that there are overflows
# in the midst of training, too, when Adam has something that could be spoilt.
_WINDOW = 4
_UPDATES = 24
_OPTIONS = (
    *SMALL_LSTM, "--criterion", "soft_beam_search", "--beam", 3,
    "--optimizer", "adam", "--lr", 0.003, "--fp16", "--fp16-scale-window", _WINDOW,
    "--max-tokens", 100, "--no-save", "--log-interval", 1,
)  # fmt: skip


def overflow(work: Path, updates: int) -> Any:
    """In fp16, an update that overflows changes nothing, and is counted in the log."""
    notes = work / "overflow_notes"
    printed = call(
        *watched(notes, "state"), prepared_corpus(work) / "bin", *_OPTIONS,
        "--fp16-init-scale", _SCALE, "--max-update", updates or _UPDATES,
    )  # fmt: skip
    return judge_overflows(read_notes(notes), printed, first_scale=_SCALE)


def judge_overflows(
    notes: Sequence[dict[str, Any]], printed: str, *, first_scale: float
) -> dict[str, Any]:
    """Compare what the trainer did, update by update, with what the log says.

    Args:
        notes: of `soak_watched.py`, with `state`.
        printed: what fairseq-train printed, in JSON.
        first_scale: the loss scale before the first update.
    """
    spoilt, idle, kept_scale, scale = 0, 0, 0, first_scale
    for note in notes:
        changed = note["before"] != note["after"]
        spoilt += note["skipped"] and changed
        idle += not note["skipped"] and not changed
        kept_scale += note["skipped"] and note["loss_scale"] != scale / 2
        scale = note["loss_scale"]
    skipped = sum(note["skipped"] for note in notes)
    after_the_first = [note["skipped"] for note in notes if note["updates"] > 0]
    counted = _logged(printed, "train_overflows")
    shown = sum(_logged(printed, "overflows"))
    found = {
        "updates": len(notes) - skipped, "overflows_skipped": skipped,
        "skipped_after_the_first_update": sum(after_the_first),
        "skipped_but_changed": spoilt, "made_but_unchanged": idle,
        "skipped_but_scale_not_halved": kept_scale,
        "counted_in_the_log": sum(counted), "first_scale": first_scale,
        "last_scale": scale, "not_finite": len(re.findall(r'"(nan|-?inf)"', printed)),
    }  # fmt: skip
    wrong = spoilt or idle or kept_scale or found["not_finite"]
    is_counted = skipped == sum(counted) == shown == printed.count("gradient overflow")
    enough = found["skipped_after_the_first_update"] > 0 and found["updates"] > 0
    return {**found, "passed": not wrong and is_counted and enough}


def _logged(printed: str, name: str) -> list[int]:
    """Return a count from each line of the log that has it."""
    lines = [json.loads(line) for line in re.findall(r'\{"epoch".*\}$', printed, re.M)]
    return [int(line[name]) for line in lines if name in line]


PARTS = {"overflow": overflow}
