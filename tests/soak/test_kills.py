"""Training, preparation and evaluation that are killed end as if they were not."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from soak_tools import (
    TRAINING,
    differences,
    files_in,
    kill_tree,
    last_checkpoint,
    load_checkpoint,
    prepare_corpus,
    run,
    scaled,
    script,
    write_yaml,
)

pytestmark = pytest.mark.soak

KILLS = scaled(20)
BEAM = {
    "criterion": "soft_beam_search", "mixing": "soft", "rho": 0.3, "beam": 4,
    "beam_start": 2, "beam_updates": 160, "epsilon": 4.0, "epsilon_end": 0.3,
    "epsilon_updates": 200, "beam_loss": "risk=1,survival=0.5", "max_update": 160,
}  # fmt: skip
# A third while a checkpoint is written, a sixth while the program starts.
MOMENTS = ("write", "update", "start", "update", "write", "update")
LONGEST_START = 8.0  # seconds
PATIENCE = 1800.0  # seconds
GROWING = {"scores.json"}  # a row is added per beam size: complete, but not final


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("objective", [{}, BEAM], ids=["cross entropy", "beam"])
def test_killed_training_ends_with_the_same_parameters(
    objective: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    config = {"data": str(corpus), **TRAINING, **objective}
    path = write_yaml(tmp_path / "config.yaml", config)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(*script("train.py"), path, f"run={whole}")
    command = [*script("train.py"), str(path), f"run={killed}"]
    rng, landed = random.Random(1), 0
    last = config["max_update"] - 12
    for number, update in enumerate(sorted(rng.randrange(last) for _ in range(KILLS))):
        moment = MOMENTS[number % len(MOMENTS)]
        landed += kill_training(command, killed, moment, update, rng)
        for checkpoint in (killed / "checkpoints").glob("*.pt"):
            load_checkpoint(checkpoint)  # raises an error if it is damaged
    run(*command)
    assert landed >= 0.75 * KILLS  # the others came after the end of training
    found, expected = last_checkpoint(killed), last_checkpoint(whole)
    assert found["optimizer_history"][-1]["num_updates"] == config["max_update"]
    for key in ("model", "last_optimizer_state"):
        assert differences(found[key], expected[key]) == []


def kill_training(
    command: list[str], folder: Path, moment: str, update: int, rng: random.Random
) -> bool:
    """Start training and kill it; return whether it was alive.

    Args:
        moment: ``start``, ``update`` (from the given update on), or ``write`` (the next
            write of a checkpoint after it).
    """
    log = folder / "train.log"
    begin = log.stat().st_size if log.exists() else 0
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        if moment == "start":
            time.sleep(rng.uniform(0, LONGEST_START))
            return kill_tree(process)
        wait_until(process, lambda: last_update(log, begin) >= update)
        if moment == "write":
            before = temporary_files(folder)
            wait_until(process, lambda: temporary_files(folder) != before, pause=5e-4)
        else:
            time.sleep(rng.uniform(0, 0.1))
        return kill_tree(process)
    finally:
        kill_tree(process)


def wait_until(
    process: subprocess.Popen[bytes], is_met: Callable[[], bool], pause: float = 0.01
) -> None:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and not is_met():
        assert time.monotonic() < end, "the moment to kill did not come"
        time.sleep(pause)


def last_update(log: Path, begin: int) -> int:
    """Return the last number of updates in a log after a byte position, or -1."""
    if not log.exists():
        return -1
    text = log.read_bytes()[begin:].decode(errors="replace")
    numbers = re.findall(r'"num_updates": "(\d+)"', text)
    return int(numbers[-1]) if numbers else -1


def temporary_files(folder: Path) -> dict[str, int]:
    """Return the unfinished checkpoints and when they were last written to."""
    found = {}
    for path in (folder / "checkpoints").glob("*.tmp"):
        try:
            found[path.name] = path.stat().st_mtime_ns
        except FileNotFoundError:  # renamed at this moment
            pass
    return found


def kill_until_done(command: list[object], out: Path) -> None:
    """Kill a command at random moments; compare its files with an undisturbed run."""
    rng, landed = random.Random(1), 0
    begin = time.monotonic()
    run(*command)
    seconds, expected = time.monotonic() - begin, files_in(out)
    assert expected
    shutil.rmtree(out)
    while landed < KILLS:
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(list(map(str, command)), stdout=quiet, stderr=quiet)
        time.sleep(rng.uniform(0.2, 1.05) * seconds)  # it starts for most of the rest
        if kill_tree(process):
            landed += 1
            for name, content in files_in(out).items():
                assert name in GROWING or content == expected.get(name), name
        else:
            assert files_in(out) == expected
            shutil.rmtree(out)
    run(*command)
    assert files_in(out) == expected


def test_killed_preparation_ends_with_the_same_bytes(
    corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "prepared"
    recipe = corpus.parent / "made_up.yaml"
    kill_until_done([*script("prepare.py"), recipe, "--out", out], out)


def test_killed_evaluation_ends_with_the_same_bytes(
    corpus: Path, tmp_path: Path
) -> None:
    config = {"data": str(corpus), **TRAINING, "max_update": 16}
    folder = tmp_path / "run"
    path = write_yaml(tmp_path / "config.yaml", config)
    run(*script("train.py"), path, f"run={folder}")
    command = [*script("evaluate.py"), folder, "--beam", 1, 2, 3]
    kill_until_done(command, folder / "eval")
