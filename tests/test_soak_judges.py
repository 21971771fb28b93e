"""What decides in tests/soak/run.py: each judge can say no."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT


import soak_distribution
import soak_memory
import soak_overflow
import soak_places
import soak_versions

KIB, MIB = 2**10, 2**20


def resident(
    *, leak: float = 0, noise: float = MIB, late: float = 0, updates: int = 2000
) -> list[int]:
    """A made-up process: it fills its caches, goes up and down, and leaks bytes."""
    rng = random.Random(4)
    return [
        int(400 * MIB + 80 * MIB * (1 - math.exp(-update / 20)) + leak * update
            + rng.uniform(0, noise) + late * (update > 1800))
        for update in range(updates)
    ]  # fmt: skip


@pytest.mark.parametrize("noise", [0, MIB, 5 * MIB])
def test_memory_that_goes_up_and_down_is_flat(noise: int) -> None:
    found = soak_memory.judge_growth(resident(noise=noise), [9] * 2000)
    assert found["passed"], found


@pytest.mark.parametrize("leak", [4 * KIB, 100 * KIB])
@pytest.mark.parametrize("noise", [0, 2 * MIB])
def test_a_few_kilobytes_lost_at_every_update_are_found(leak: int, noise: int) -> None:
    found = soak_memory.judge_growth(resident(leak=leak, noise=noise), [9] * 2000)
    assert not found["passed"]
    slope = found["kib_an_update_in_the_second_half"]
    assert slope == pytest.approx(leak / KIB, rel=0.2)


def test_memory_that_is_too_noisy_to_tell_is_not_called_flat() -> None:
    found = soak_memory.judge_growth(resident(noise=100 * MIB), [9] * 2000)
    assert not found["passed"]


def test_memory_lost_at_once_is_found() -> None:
    assert not soak_memory.judge_growth(resident(late=40 * MIB), [9] * 2000)["passed"]


def test_a_file_left_open_is_found() -> None:
    handles = [9 + (update >= 1700) for update in range(2000)]
    assert not soak_memory.judge_growth(resident(), handles)["passed"]
    # Those of the workers of an epoch come and go.
    handles = [9 + 3 * (update // 10 % 2) for update in range(2000)]
    assert soak_memory.judge_growth(resident(), handles)["passed"]


def overflowing(**wrong: Any) -> tuple[list[dict[str, Any]], str]:
    """Notes and log of a training whose first and third update overflow."""
    notes, scale, updates, state = [], 64.0, 0, 0
    for skipped in (True, False, True, False):
        before = state
        if skipped:
            scale /= 2
        else:
            updates, state = updates + 1, state + 1
        notes.append({"skipped": skipped, "updates": updates, "before": before,
                      "after": state, "loss_scale": scale})  # fmt: skip
    notes[2].update(wrong.get("third", {}))
    inner = [{"epoch": 1, "overflows": "1", "loss": wrong.get("loss", "2.5")}] * 2
    total = {"epoch": 1, "train_overflows": wrong.get("count", "2")}
    lines = ["NOTE: gradient overflow detected, ignoring gradient"] * 2
    lines += [f"| INFO | train_inner | {json.dumps(each)}" for each in [*inner, total]]
    return notes, "\n".join(lines)


@pytest.mark.parametrize(
    "wrong",
    [{"third": {"after": 7}}, {"third": {"loss_scale": 32.0}}, {"count": "1"},
     {"count": "0"}, {"loss": "nan"}],
)  # fmt: skip
def test_an_overflow_that_changes_something_or_is_not_counted_is_found(
    wrong: dict[str, Any],
) -> None:
    assert soak_overflow.judge_overflows(*overflowing(), first_scale=64.0)["passed"]
    notes, printed = overflowing(**wrong)
    found = soak_overflow.judge_overflows(notes, printed, first_scale=64.0)
    assert not found["passed"]


def test_the_largest_difference_of_any_update_and_process_counts() -> None:
    def notes(change: float = 0.0) -> list[dict[str, Any]]:
        gradients = {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([2.0 + change])}
        plain = {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([2.0])}
        return [{"loss": 2.0, "gradients": plain},
                {"loss": 2.0 + change, "gradients": gradients}]  # fmt: skip

    difference = soak_distribution.max_difference
    assert difference(notes(), [notes(), notes()], "loss") == 0
    assert difference(notes(), [notes(), notes(1e-2)], "loss") == pytest.approx(5e-3)
    several = [notes(), notes(1e-2)]
    assert difference(notes(), several, "gradients") == pytest.approx(2.5e-3, rel=1e-3)
    missing = notes()
    del missing[1]["gradients"]["b"]
    assert difference(notes(), [missing], "gradients") == math.inf


def leave(folder: Path, *, weight: float, text: str) -> Path:
    """What the commands leave in a place, in small."""
    for name in ("run/checkpoints", "run/eval", "data/bin"):
        (folder / name).mkdir(parents=True)
    model = {"model": {"w": torch.tensor([weight])}}
    torch.save(model, folder / "run" / "checkpoints" / "checkpoint_last.pt")
    (folder / "run" / "eval" / "test.hyp").write_text(text)
    (folder / "data" / "bin" / "dict.txt").write_text("a 1\n")
    (folder / "report.html").write_text("<html>")
    return folder


def test_a_place_where_something_else_comes_out_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last(run: Path) -> Any:
        return torch.load(run / "checkpoints" / "checkpoint_last.pt")

    monkeypatch.setattr(soak_places, "_last", last)
    usual = leave(tmp_path / "usual", weight=1.0, text="a\n")
    same = leave(tmp_path / "same", weight=1.0, text="a\n")
    assert soak_places.compare(usual, same)["passed"]
    heavier = leave(tmp_path / "heavier", weight=1.5, text="a\n")
    assert soak_places.compare(usual, heavier)["parameters_differing"] == ["/w"]
    other = leave(tmp_path / "other", weight=1.0, text="b\n")
    assert not soak_places.compare(usual, other)["passed"]
    (same / "data" / "bin" / ".x.partial").touch()
    assert soak_places.compare(usual, same)["left_behind"] == [".x.partial"]


def test_a_folder_mounted_read_only_cannot_be_written_to(tmp_path: Path) -> None:
    place = soak_places.PLACES["read_only"]
    if soak_places.not_here(place):
        pytest.skip("needs root and mounts")
    command = ["touch", str(tmp_path / "x")]
    prefix = list(place.wrapper(tmp_path))
    assert subprocess.run([*prefix, *command], capture_output=True).returncode != 0
    assert os.listdir(tmp_path) == []
    assert subprocess.run([*prefix, "ls", str(tmp_path)]).returncode == 0


def test_the_end_of_a_test_run_is_read() -> None:
    end = "1 failed, 20 passed, 1 error in 3 s"
    printed = f"FAILED tests/a.py::b - x\nERROR tests/c.py::d\n{end}\n"
    assert soak_versions.counts(printed) == {
        "tests_failed": 1, "tests_passed": 20, "tests_error": 1,
        "failed": ["tests/a.py::b", "tests/c.py::d"],
    }  # fmt: skip
    assert soak_versions.counts("") == {}


def test_a_script_leaves_an_ascii_locale(tmp_path: Path) -> None:
    program = tmp_path / "Ümläut.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "import environment; environment.ensure()\n"
        "print(sys.getfilesystemencoding(), *sys.argv, '日本語')\n"
    )
    places = soak_places.PLACES["c_locale"].variables
    variables = {k: v for k, v in {**os.environ, **places}.items() if v is not None}
    result = subprocess.run(
        [sys.executable, str(program), "日本語"], env=variables, capture_output=True
    )
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    assert result.stdout.decode() == f"utf-8 {program} 日本語 日本語\n"


def test_other_pins_replace_whole_lines_and_only_those(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("# group: run\nomegaconf==2.3.0\nomegaconf-x==1\n\ntqdm==4\n")
    for _ in range(2):
        soak_versions.repin(file, {"omegaconf": "omegaconf==2.0.6"})
    assert file.read_text() == (
        "# group: run\nomegaconf==2.0.6\nomegaconf-x==1\n\ntqdm==4\n"
    )
