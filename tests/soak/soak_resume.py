"""Kill training, preparation and evaluation at random moments; compare the ends."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Iterator

from soak_common import TRAINING, call, prepared_corpus, script, write_yaml

from fairseq_plugins.utils.files import read_json

__all__ = ["PARTS", "difference", "kill_tree", "moments"]

logger = logging.getLogger("fairseq_plugins.soak")

_BEAM = {
    "criterion": "soft_beam_search", "mixing": "soft", "rho": 0.3, "beam": 4,
    "beam_start": 2, "beam_updates": 160, "epsilon": 4.0, "epsilon_end": 0.3,
    "epsilon_updates": 200, "beam_loss": "risk=1,survival=0.5", "max_update": 160,
}  # fmt: skip
_LONGEST_START = 8.0  # seconds; later moments are found in the log
_PATIENCE = 1800.0
_UPDATES = re.compile(r'"num_updates": "(\d+)"')


def moments(rng: random.Random, *, kills: int, updates: int) -> list[tuple[str, int]]:
    """Draw when to kill: in which kind of moment, and from which update on.

    A third are during the write of a checkpoint, a sixth while the program starts.
    """
    write, start = max(1, kills // 3), max(1, kills // 6)
    kinds = ["write"] * write + ["start"] * start
    kinds += ["update"] * (kills - len(kinds))
    rng.shuffle(kinds)
    targets = sorted(rng.randrange(max(1, updates - 12)) for _ in range(kills))
    return list(zip(kinds, targets))


def _train(criterion: dict[str, Any], work: Path, kills: int, seed: int) -> Any:
    name = criterion.get("criterion", "cross_entropy")
    data = prepared_corpus(work)
    config = {"data": str(data), **TRAINING, **criterion}
    whole, broken = work / f"{name}_whole", work / f"{name}_killed"
    for folder in (whole, broken):
        shutil.rmtree(folder, ignore_errors=True)
    path = write_yaml(work / f"{name}.yaml", config)
    call(*script("train.py"), path, f"run={whole}")
    command = [*script("train.py"), str(path), f"run={broken}"]
    rng, landed, damaged = random.Random(seed), Counter[str](), 0
    drawn = moments(rng, kills=kills, updates=int(config["max_update"]))
    for number, (kind, target) in enumerate(drawn, start=1):
        before = _half_written(broken)
        if _killed_training(command, broken, kind, target, rng):
            landed[kind] += 1
        landed["left a temporary file"] += _half_written(broken) != before
        damaged += _num_damaged(broken / "checkpoints")
        logger.info("%s: kill %d of %d (%s)", name, number, kills, kind)
    call(*command)
    found, expected = _last(broken), _last(whole)
    differing = {
        key: difference(found[key], expected[key])
        for key in ("model", "last_optimizer_state")
    }
    updates = read_json(broken / "finished.json")["updates"]
    return {
        "kills": sum(landed[kind] for kind in ("write", "start", "update")),
        "moments": dict(sorted(landed.items())),
        "checkpoints_damaged": damaged,
        "updates": updates,
        "parameters_differing": differing["model"],
        "optimizer_state_differing": differing["last_optimizer_state"],
        "passed": not damaged
        and not any(differing.values())
        and updates == config["max_update"],
    }


def _killed_training(
    command: list[str], run: Path, kind: str, target: int, rng: random.Random
) -> bool:
    """Start training and kill it; tell whether it was still alive then."""
    with _started(command) as process:
        if kind == "start":
            time.sleep(rng.uniform(0, _LONGEST_START))
        else:
            log = run / "train.log"
            begin = log.stat().st_size if log.exists() else 0
            _wait(process, lambda: _updates_in(log, begin) >= target)
            if kind == "write":
                left = _half_written(run)  # by an earlier kill
                _wait(process, lambda: _half_written(run) != left, pause=0.0005)
            else:
                time.sleep(rng.uniform(0, 0.1))
        return kill_tree(process)


def _half_written(run: Path) -> dict[str, int]:
    """Return the temporary files of checkpoints and when each was last written to."""
    found = {}
    for path in (run / "checkpoints").glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # renamed in this moment
            found[path.name] = path.stat().st_mtime_ns
    return found


def _updates_in(log: Path, begin: int) -> int:
    """Return the last number of updates in a log, from a place in it on; -1 if none."""
    if not log.exists():
        return -1
    with open(log, "rb") as stream:
        stream.seek(begin)
        numbers = _UPDATES.findall(stream.read().decode(errors="replace"))
    return int(numbers[-1]) if numbers else -1


def _wait(
    process: subprocess.Popen[bytes], is_met: Callable[[], bool], pause: float = 0.01
) -> None:
    """Wait for the moment that was drawn: a kill at another would prove less."""
    end = time.monotonic() + _PATIENCE
    while process.poll() is None and not is_met():
        time.sleep(pause)
        if time.monotonic() > end:
            raise RuntimeError("the moment to kill did not come in half an hour")


@contextlib.contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        yield process
    finally:
        kill_tree(process)
        process.wait()


def kill_tree(process: subprocess.Popen[bytes]) -> bool:
    """Kill a process and its children at once; tell whether it was alive."""
    if process.poll() is not None:
        return False
    for pid in [*_children(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return True


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    with contextlib.suppress(OSError):
        found = [int(child) for child in path.read_text().split()]
        return [each for child in found for each in (*_children(child), child)]
    return []


def _load(path: Path) -> Any:
    from fairseq import checkpoint_utils

    import fairseq_plugins

    fairseq_plugins.register()
    return checkpoint_utils.load_checkpoint_to_cpu(str(path))


def _last(run: Path) -> Any:
    return _load(run / "checkpoints" / "checkpoint_last.pt")


def _num_damaged(folder: Path) -> int:
    damaged = 0
    for path in folder.glob("*.pt"):
        try:
            _load(path)
        except Exception:  # torch has many for a file that was cut off
            damaged += 1
    return damaged


def difference(one: Any, other: Any, place: str = "") -> list[str]:
    """Return where two trees of tensors and plain values are not equal bit by bit."""
    import torch

    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{place} (keys)"]
        return [d for k in one for d in difference(one[k], other[k], f"{place}/{k}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{place} (length)"]
        pairs = enumerate(zip(one, other))
        return [d for i, (a, b) in pairs for d in difference(a, b, f"{place}/{i}")]
    if torch.is_tensor(one) and torch.is_tensor(other):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [place]
    return [] if one == other else [place]


def _tree(folder: Path) -> dict[str, bytes]:
    """Return all files with final names; times in JSON are taken out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix != ".log":
            content = path.read_bytes()
            if path.suffix == ".json":
                content = _SECONDS.sub(b"", content)
            found[str(path.relative_to(folder))] = content
    return found


_SECONDS = re.compile(rb'"(seconds|tokens_per_second)": [\d.e+-]+')


def _killed_until_done(
    command: list[object], out: Path, expected: Path, *, kills: int, seed: int
) -> Any:
    """Kill a command at random moments, time and again, and compare what it wrote."""
    rng, reference = random.Random(seed), _tree(expected)
    begin = time.monotonic()
    call(*command)  # how long it takes
    length, landed, chains, half, wrong = time.monotonic() - begin, 0, 0, 0, 0
    shutil.rmtree(out)
    while landed < kills:
        with _started(list(map(str, command))) as process:
            # The start of the program is most of the time, and no risk.
            time.sleep(rng.uniform(0.2 * length, 1.05 * length))
            alive = kill_tree(process)
        if alive:
            landed += 1
            written = _tree(out) if out.exists() else {}
            half += sum(written[name] != reference.get(name) for name in written
                        if name not in _GROWING)  # fmt: skip
            logger.info("%s: kill %d of %d", out.name, landed, kills)
        else:
            chains += 1
            wrong += _tree(out) != reference
            shutil.rmtree(out, ignore_errors=True)
    call(*command)
    wrong += _tree(out) != reference
    return {"kills": landed, "runs_compared": chains + 1, "half_written": half,
            "runs_differing": wrong, "passed": not half and not wrong}  # fmt: skip


# A row is added to it with every beam size: whole at any moment, but not the last.
_GROWING = {"scores.json"}


def prepare(work: Path, kills: int, seed: int) -> Any:
    """Preparation ends byte by byte as one that nothing disturbed."""
    recipe = prepared_corpus(work).parent / "corpus" / "made_up.yaml"
    out = work / "prepared_killed"
    shutil.rmtree(out, ignore_errors=True)
    command = [*script("prepare.py"), recipe, "--out", out]
    return _killed_until_done(command, out, work / "prepared", kills=kills, seed=seed)


def evaluate(work: Path, kills: int, seed: int) -> Any:
    """Evaluation ends byte by byte as one that nothing disturbed."""
    data, run = prepared_corpus(work), work / "evaluated"
    path = write_yaml(
        work / "evaluated.yaml", {"data": str(data), **TRAINING, "max_update": 16}
    )
    call(*script("train.py"), path, f"run={run}")
    command = [*script("evaluate.py"), run, "--beam", 1, 2, 3]
    call(*command)
    expected = work / "evaluated_whole"
    shutil.rmtree(expected, ignore_errors=True)
    os.rename(run / "eval", expected)
    return _killed_until_done(command, run / "eval", expected, kills=kills, seed=seed)


def cross_entropy(work: Path, kills: int, seed: int) -> Any:
    """Training by cross entropy ends with the very same parameters."""
    return _train({}, work, kills, seed)


def soft_beam_search(work: Path, kills: int, seed: int) -> Any:
    """Training for the beam, epsilon and beam size scheduled, does so too."""
    return _train(_BEAM, work, kills, seed)


PARTS = {
    "cross_entropy": cross_entropy,
    "soft_beam_search": soft_beam_search,
    "prepare": prepare,
    "evaluate": evaluate,
}
