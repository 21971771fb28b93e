"""Several gloo processes against one, and what happens when one of them is killed."""
from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

from _soak_common import call, prepared_corpus
from _soak_resume import _last, kill_tree

import fairseq_plugins

__all__ = ["PARTS"]

logger = logging.getLogger("fairseq_plugins.soak")

_PATIENCE = 300.0
_MAX_TOKENS = 1150  # thirteen batches
_OPTIONS = (
    "--arch", "lstm", "--encoder-embed-dim", 16, "--decoder-embed-dim", 16,
    "--encoder-hidden-size", 16, "--decoder-hidden-size", 16,
    "--decoder-out-embed-dim", 16, "--dropout", 0, "--criterion", "soft_beam_search",
    "--beam", 3, "--beam-loss", "risk=1,survival=0.5", "--optimizer", "sgd",
    "--lr", 0.5, "--num-workers", 0, "--disable-validation", "--cpu", "--seed", 1,
    "--log-format", "json", "--log-interval", 1,
)  # fmt: skip


def _command(processes: int, data: Path, save: Path, *options: object) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone",
              "--nproc-per-node", str(processes), "--module"]  # fmt: skip
    backend = ["--ddp-backend", "legacy_ddp", "--distributed-backend", "gloo"]
    command = [sys.executable, *(launch if processes > 1 else ["-m"])]
    command += ["fairseq_cli.train", str(data / "bin")]
    command += ["--save-dir", str(save / "checkpoints")]
    command += ["--user-dir", str(Path(fairseq_plugins.__file__).parent)]
    command += [*map(str, _OPTIONS), *map(str, options)]
    return command + (backend if processes > 1 else [])


def _parity(processes: int, work: Path) -> Any:
    """Train by as many updates, accumulated in one process and shared by several.

    The last update must have fewer batches than processes, so that some get a dummy.
    """
    data, found = prepared_corpus(work), {}
    batches = _num_batches(data / "bin")
    for number in (1, processes):
        save = work / f"parity_{processes}_{number}"
        shutil.rmtree(save, ignore_errors=True)
        options = ("--max-tokens", _MAX_TOKENS, "--max-epoch", 1)
        accumulate = ("--update-freq", processes // number)
        call(*_command(number, data, save, *options, *accumulate))
        found[number] = _last(save)["model"]
    one, several = found[1], found[processes]
    scale = max(float(value.abs().max()) for value in one.values())
    worst = max(float((one[k] - several[k]).abs().max()) for k in one) / scale
    return {"processes": processes, "batches": batches,
            "largest_relative_difference": worst,
            "passed": worst < 1e-5 and batches % processes != 0}  # fmt: skip


def _num_batches(data: Path) -> int:
    """Return how many batches fairseq-train makes of the training data."""
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    fairseq_plugins.register()
    cfg = TranslationConfig(data=str(data), source_lang="xx", target_lang="yy")
    cfg.dataset_impl, cfg.train_subset, cfg.required_seq_len_multiple = None, "train", 1
    task = TranslationTask.setup_task(cfg)
    task.load_dataset("train")
    iterator = task.get_batch_iterator(
        task.dataset("train"), max_tokens=_MAX_TOKENS, required_batch_size_multiple=8
    )
    return len(iterator.frozen_batches)


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
