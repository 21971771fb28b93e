"""Several gloo processes against one, and what happens when one of them is killed."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Sequence

from soak_common import (
    PLUGIN,
    SMALL_LSTM,
    call,
    prepared_corpus,
    read_notes,
    watched,
)
from soak_resume import _last, kill_tree

__all__ = ["PARTS", "max_difference", "relative_difference"]

logger = logging.getLogger("fairseq_plugins.soak")

Notes = Sequence[dict[str, Any]]  # of one process, see soak_watched.py

_PATIENCE = 300.0
_MAX_TOKENS = 1150  # thirteen batches an epoch
_EPOCHS = 2  # so that some updates with dummies are followed by others
_LARGEST_DIFFERENCE = 1e-6  # relative; parameters are single precision
_OPTIONS = (
    *SMALL_LSTM, "--criterion", "soft_beam_search", "--beam", 3,
    "--beam-loss", "risk=1,survival=0.5", "--optimizer", "sgd", "--lr", 0.5,
    "--log-interval", 1,
)  # fmt: skip


def _command(
    processes: int, data: Path, save: Path, *options: object, watch: bool = False
) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone",
              "--nproc-per-node", str(processes)]  # fmt: skip
    backend = ["--ddp-backend", "legacy_ddp", "--distributed-backend", "gloo"]
    if processes == 1:
        launch, backend = [], []
    if watch:
        command = watched(save.with_suffix(".notes"), "gradients", launcher=launch)
    else:
        module = [*launch, "--module"] if launch else ["-m"]
        command = [sys.executable, *module, "fairseq_cli.train", *PLUGIN]
    command += [str(data / "bin"), "--save-dir", str(save / "checkpoints")]
    return [*command, *map(str, _OPTIONS), *map(str, options), *backend]


def _parity(processes: int, work: Path) -> Any:
    """Train by as many updates, accumulated in one process and shared by several."""
    data, notes, last = prepared_corpus(work), {}, {}
    for number in (1, processes):
        save = work / f"parity_{processes}_{number}"
        shutil.rmtree(save, ignore_errors=True)
        options = ("--max-tokens", _MAX_TOKENS, "--max-epoch", _EPOCHS)
        accumulate = ("--update-freq", processes // number)
        call(*_command(number, data, save, *options, *accumulate, watch=True))
        ranks = range(number)
        notes[number] = [read_notes(save.with_suffix(".notes"), r) for r in ranks]
        last[number] = _last(save)["model"]
    found = {
        "loss": max_difference(notes[1][0], notes[processes], "loss"),
        "gradient": max_difference(notes[1][0], notes[processes], "gradients"),
        "parameter": relative_difference(last[1], last[processes]),
    }
    batches, dummies = _batches_and_dummies(notes[processes])
    same = len({len(each) for found in notes.values() for each in found}) == 1
    return {"processes": processes, "updates": len(notes[1][0]), "batches": batches,
            "dummy_batches": dummies, "largest_relative_difference": found,
            "passed": same and dummies > 0
            and max(found.values()) <= _LARGEST_DIFFERENCE}  # fmt: skip


def max_difference(one: Notes, several: Sequence[Notes], name: str) -> float:
    """Return the largest relative difference of any update in any process."""
    pairs = [(a[name], b[name]) for each in several for a, b in zip(one, each)]
    return max(
        relative_difference(a, b) if isinstance(a, dict) else abs(a - b) / abs(a)
        for a, b in pairs
    )


def relative_difference(one: Any, other: Any) -> float:
    """Return the largest difference of two sets of tensors, to the largest number."""
    if one.keys() != other.keys():
        return math.inf
    scale = max(float(value.abs().max()) for value in one.values())
    return max(float((one[k] - other[k]).abs().max()) for k in one) / scale


def _batches_and_dummies(notes: Sequence[Notes]) -> tuple[int, int]:
    dummies = sum(note["dummies"] for each in notes for note in each)
    return sum(map(len, notes)) - dummies, dummies


def one_killed(work: Path) -> Any:
    """One of two processes is killed: the others end, say so, and a restart goes on."""
    data, save = prepared_corpus(work), work / "one_killed"
    shutil.rmtree(save, ignore_errors=True)
    options = ("--max-tokens", 200, "--save-interval-updates", 2)
    log = work / "one_killed.log"
    with open(log, "w") as stream:
        process = subprocess.Popen(
            _command(2, data, save, *options, "--max-update", 100_000),
            stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        last = save / "checkpoints" / "checkpoint_last.pt"
        _until(lambda: last.exists() or process.poll() is not None)
        if process.poll() is not None:
            raise RuntimeError(f"training ended before it was to: see {log}")
        workers = _workers(process.pid)
        os.kill(workers[-1], signal.SIGKILL)
        begin = time.monotonic()
        _until(lambda: process.poll() is not None)
        seconds = time.monotonic() - begin
        ended = process.poll() is not None
        left = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    finally:
        kill_tree(process)
    text = log.read_text(errors="replace")
    named = re.search(r"exitcode\s*:\s*-9\) local_rank: \d+", text)
    updates = _last(save)["optimizer_history"][-1]["num_updates"]
    said = call(*_command(2, data, save, *options, "--max-update", updates + 3))
    reached = _last(save)["optimizer_history"][-1]["num_updates"]
    goes_on = f"@ {updates} updates)" in said and reached == updates + 3
    return {"seconds_until_all_ended": round(seconds, 1), "status": process.returncode,
            "message": named[0] if named else "", "processes_left": len(left),
            "restart_goes_on": goes_on,
            "passed": ended and bool(named) and not left and goes_on}  # fmt: skip


def _workers(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def _until(is_met: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not is_met() and time.monotonic() < end:
        time.sleep(0.05)


def two_processes(work: Path) -> Any:
    """Two gloo processes train as one that accumulates."""
    return _parity(2, work)


def four_processes(work: Path) -> Any:
    """Four gloo processes train as one that accumulates."""
    return _parity(4, work)


PARTS: dict[str, Callable[..., Any]] = {
    "one_killed": one_killed,
    "two_processes": two_processes,
    "four_processes": four_processes,
}
