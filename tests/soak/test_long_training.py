"""fairseq's trainer, watched at every update: memory, fp16 overflows, processes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Sequence

import psutil
import pytest
import torch
from conftest import ROOT
from scipy import stats
from soak_tools import (
    PLUGIN,
    SMALL_LSTM,
    kill_tree,
    last_checkpoint,
    prepare_corpus,
    run,
    scaled,
)

MIB = 2**20
BEAM = ("--criterion", "soft_beam_search", "--beam", 3)
RISK = (*BEAM, "--beam-loss", "risk=1,survival=0.5", "--optimizer", "sgd", "--lr", 0.5)
QUIET = ("--disable-validation", "--log-interval", 1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_corpus(tmp_path_factory.mktemp("corpus"))


def train_watched(
    what: str, corpus: Path, save: Path, *options: object, processes: int = 1
) -> tuple[list[Any], str]:
    """Train; return the notes of each process (see watched_training.py) and output."""
    notes = save.with_suffix(".notes")
    program = [str(ROOT / "tests" / "soak" / "watched_training.py"), notes, what]
    printed = run(
        *launcher(processes), *program, *PLUGIN, corpus / "bin", *SMALL_LSTM, *options,
        "--save-dir", save / "checkpoints", *backend(processes),
    )  # fmt: skip
    ranks = range(processes)
    return [torch.load(f"{notes}.{r}", weights_only=True) for r in ranks], printed


def launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(processes)]  # fmt: skip


def backend(processes: int) -> list[str]:
    several = ["--ddp-backend", "legacy_ddp", "--distributed-backend", "gloo"]
    return several if processes > 1 else []


def growth_problem(resident: Sequence[int], open_files: Sequence[int]) -> str:
    """Return how memory or open files grew after the first 100 updates, if they did.

    Memory varies with the lengths of sentences, so medians of 50 updates are compared.
    The last may be at most 16 MiB above the first, and a line through the second half
    of them may rise by at most 2 KiB per update (2 GiB in a million) at the upper end
    of its 95 % interval, which needs 1,000 updates. No more files may be open in the
    second half of the updates.
    """
    mib = [value / MIB for value in resident[100:]]
    medians = [statistics.median(mib[i : i + 50]) for i in range(0, len(mib) - 49, 50)]
    growth = medians[-1] - medians[0]
    half = len(medians) // 2
    line = stats.linregress(range(half), medians[-half:])
    slope = (line.slope + 2 * line.stderr) * 1024 / 50  # KiB per update
    if len(resident) < 1000:
        slope = 0.0
    middle = (len(open_files) + 100) // 2
    if growth > 16 or slope > 2:
        return f"memory grew by {growth:.1f} MiB, at the end {slope:.2f} KiB per update"
    if max(open_files[middle:]) > max(open_files[100:middle]):
        return "more files were open in the second half"
    return ""


def made_up_memory(leak: float = 0, noise: float = MIB, late: float = 0) -> list[int]:
    """Return 2,000 updates of a process that fills its caches and loses ``leak``."""
    torch.manual_seed(4)
    noises = (noise * torch.rand(2000)).tolist()
    return [
        int(400 * MIB + 80 * MIB * (1 - math.exp(-update / 20)) + leak * update
            + noises[update] + late * (update > 1800))
        for update in range(2000)
    ]  # fmt: skip


def test_leaks_of_memory_and_files_are_found() -> None:
    few = [9] * 2000
    for noise in (0, MIB, 5 * MIB):
        assert not growth_problem(made_up_memory(noise=noise), few)
    for leak in (4 * 2**10, 100 * 2**10):
        assert "memory grew" in growth_problem(made_up_memory(leak=leak), few)
    assert "memory grew" in growth_problem(made_up_memory(late=40 * MIB), few)
    assert "memory grew" in growth_problem(made_up_memory(noise=100 * MIB), few)
    left_open = [9 + (update >= 1700) for update in range(2000)]
    assert "files" in growth_problem(made_up_memory(), left_open)
    of_epochs = [9 + 3 * (update // 10 % 2) for update in range(2000)]
    assert not growth_problem(made_up_memory(), of_epochs)


@pytest.mark.soak
@pytest.mark.parametrize("objective", ["cross entropy", "beam"])
def test_memory_and_open_files_do_not_grow(
    objective: str, corpus: Path, tmp_path: Path
) -> None:
    # A search of at most six words, or 2,000 updates would take an hour.
    short = ("--criterion", "soft_beam_search", "--beam", 2,
             "--beam-max-len-a", 0, "--beam-max-len-b", 6)  # fmt: skip
    [notes], _ = train_watched(
        "memory", corpus, tmp_path / "run", *(short if objective == "beam" else ()),
        "--optimizer", "adam", "--lr", 0.003, "--max-tokens", 150, "--log-interval", 50,
        "--validate-interval-updates", 200, "--save-interval-updates", 500,
        "--keep-interval-updates", 2, "--no-epoch-checkpoints",
        "--max-update", max(400, scaled(2000)),
    )  # fmt: skip
    resident, open_files = notes.T.tolist()
    assert not growth_problem(resident, open_files)


@pytest.mark.soak
def test_an_fp16_overflow_changes_nothing_and_is_counted(
    corpus: Path, tmp_path: Path
) -> None:
    # The loss scale is far too large, and doubled after 4 good updates, so that updates
    # overflow in the middle of training, too, when Adam has state to damage.
    scale: float = 2**30
    [notes], printed = train_watched(
        "state", corpus, tmp_path / "run", *BEAM, *QUIET, "--optimizer", "adam",
        "--lr", 0.003, "--fp16", "--fp16-scale-window", 4, "--fp16-init-scale", scale,
        "--max-tokens", 100, "--no-save", "--max-update", 24,
    )  # fmt: skip
    for note in notes:
        assert (note["before"] == note["after"]) == note["skipped"]
        if note["skipped"]:
            assert note["loss_scale"] == scale / 2
        scale = note["loss_scale"]
    skipped = sum(note["skipped"] for note in notes)
    assert skipped < len(notes)
    assert any(note["skipped"] for note in notes if note["updates"] > 0)
    assert not re.search(r'"(nan|-?inf)"', printed)
    lines = [json.loads(line) for line in re.findall(r'\{"epoch".*\}$', printed, re.M)]
    for name in ("overflows", "train_overflows"):
        assert sum(int(line.get(name, 0)) for line in lines) == skipped
    assert printed.count("gradient overflow") == skipped


@pytest.mark.soak
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_train_as_one_that_accumulates(
    processes: int, corpus: Path, tmp_path: Path
) -> None:
    # Thirteen batches per epoch; after the dummies of the first epoch others follow.
    options = (*RISK, *QUIET, "--max-tokens", 1150, "--max-epoch", 2)
    [one], _ = train_watched(
        "gradients", corpus, tmp_path / "one", *options, "--update-freq", processes
    )
    several, _ = train_watched(
        "gradients", corpus, tmp_path / "several", *options, processes=processes
    )
    assert sum(note["dummies"] for notes in several for note in notes) > 0
    for notes in several:
        assert len(notes) == len(one)
        for expected, found in zip(one, notes):
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
            gradients = (found["gradients"], expected["gradients"])
            assert relative_difference(*gradients) <= 1e-6
    models = [last_checkpoint(tmp_path / name)["model"] for name in ("one", "several")]
    assert relative_difference(*models) <= 1e-6  # they are single precision


def relative_difference(one: Any, other: Any) -> float:
    """Return the largest difference between tensors, relative to the largest number."""
    assert one.keys() == other.keys()
    scale = max(float(value.abs().max()) for value in one.values())
    return max(float((one[k] - other[k]).abs().max()) for k in one) / scale


@pytest.mark.soak
def test_a_killed_process_ends_the_others_and_a_restart_resumes(
    corpus: Path, tmp_path: Path
) -> None:
    def command(updates: int) -> list[str]:
        words = [
            *launcher(2), "--module", "fairseq_cli.train", *PLUGIN, corpus / "bin",
            *SMALL_LSTM, *RISK, *QUIET, "--max-tokens", 200, "--save-dir",
            tmp_path / "checkpoints", "--save-interval-updates", 2,
            "--max-update", updates, *backend(2),
        ]  # fmt: skip
        return list(map(str, words))

    log = tmp_path / "log"
    with open(log, "w") as stream:
        process = subprocess.Popen(
            command(100_000), stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        last = tmp_path / "checkpoints" / "checkpoint_last.pt"
        wait_until(lambda: last.exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        workers = psutil.Process(process.pid).children()
        os.kill(workers[-1].pid, signal.SIGKILL)
        wait_until(lambda: process.poll() is not None)
        assert not any(worker.is_running() for worker in workers)
    finally:
        kill_tree(process)
    assert re.search(r"exitcode\s*:\s*-9\) local_rank: \d+", log.read_text())
    updates = last_checkpoint(tmp_path)["optimizer_history"][-1]["num_updates"]
    assert f"@ {updates} updates)" in run(*command(updates + 3))
    reached = last_checkpoint(tmp_path)["optimizer_history"][-1]["num_updates"]
    assert reached == updates + 3


def wait_until(is_met: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not is_met():
        assert time.monotonic() < end
        time.sleep(0.05)
