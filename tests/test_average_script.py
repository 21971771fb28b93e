"""scripts/average.py selects the right checkpoints and reuses an existing average."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose checkpoints have their number as their only weight."""
    folder = RunFolder(tmp_path / "run")
    folder.record_start({"data": "d", "run": str(tmp_path / "run")}, "command")
    folder.checkpoints.mkdir()
    for name, number in {
        "1_80": 80, "1_90": 90, "2_100": 100, "3": 3, "12": 12,
        "best": 1000, "last": 1000, ".best_loss_2.5": 1000,
    }.items():  # fmt: skip
        separator = "" if name[0].isdigit() and "_" not in name else "_"
        path = folder.checkpoints / f"checkpoint{separator}{name}.pt"
        torch.save({"model": {"weight": torch.tensor([float(number)])}}, path)
    return folder.path


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "average.py"), *map(str, arguments)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def weight(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["model"]["weight"])


def test_the_last_are_those_of_the_highest_number(run: Path) -> None:
    folder = RunFolder(run)

    def names(*args: int, **options: bool) -> list[str]:
        return [path.stem for path in folder.newest_checkpoints(*args, **options)]

    assert names(2) == ["checkpoint_1_90", "checkpoint_2_100"]
    assert names(9) == ["checkpoint_1_80", "checkpoint_1_90", "checkpoint_2_100"]
    assert names(1, by_epochs=True) == ["checkpoint12"]


def test_a_gap_is_refused(run: Path) -> None:
    folder = RunFolder(run)
    state = {"model": {}, "optimizer_history": [{"num_updates": 110}],
             "extra_state": {"train_iterator": {"epoch": 13}}}  # fmt: skip
    torch.save(state, folder.last_checkpoint)
    with pytest.raises(UserError, match="after 90, 100 those of 110 are missing"):
        folder.newest_checkpoints(2)
    with pytest.raises(UserError, match="after 3, 12 those of 4 are missing"):
        folder.newest_checkpoints(2, by_epochs=True)
    (folder.checkpoints / "checkpoint_1_90.pt").unlink()
    state["optimizer_history"][0]["num_updates"] = 105
    torch.save(state, folder.last_checkpoint)
    folder.record_start(
        {"data": "d", "run": str(run), "save_interval_updates": 10}, "command"
    )
    with pytest.raises(UserError, match="after 80, 100 those of 90 are missing"):
        folder.newest_checkpoints(2)


@pytest.mark.parametrize("by_epochs", [True, False])
def test_a_run_without_such_checkpoints_names_the_option(
    tmp_path: Path, by_epochs: bool
) -> None:
    option = "no_epoch_checkpoints: false" if by_epochs else "save_interval_updates"
    with pytest.raises(UserError, match=option):
        RunFolder(tmp_path).newest_checkpoints(3, by_epochs=by_epochs)


def test_an_average_is_reused_until_there_are_new_checkpoints(run: Path) -> None:
    average = run / "checkpoints" / "checkpoint_average.pt"
    assert call(run, "--last-updates", 2).returncode == 0
    assert weight(average) == 95
    made = average.stat().st_mtime_ns
    assert "nothing to do" in call(run, "--last-updates", 2).stdout
    assert average.stat().st_mtime_ns == made
    newest = run / "checkpoints" / "checkpoint_2_110.pt"
    torch.save({"model": {"weight": torch.tensor([110.0])}}, newest)
    assert call(run, "--last-updates", 2).returncode == 0
    assert weight(average) == 105


def test_the_output_of_paths_can_be_set(run: Path, tmp_path: Path) -> None:
    paths = [run / "checkpoints" / f"checkpoint{n}.pt" for n in (3, 12)]
    assert call(*paths, "--output", tmp_path / "mean.pt").returncode == 0
    assert weight(tmp_path / "mean.pt") == 7.5


def test_only_the_output_and_its_record_are_written(run: Path, tmp_path: Path) -> None:
    paths = [run / "checkpoints" / f"checkpoint{n}.pt" for n in (3, 12)]
    mine = tmp_path / "mean.json"
    mine.write_text("mine")
    assert call(*paths, "--output", tmp_path / "mean.pt").returncode == 0
    assert mine.read_text() == "mine"
    assert call(*paths, "--output", tmp_path / "other.json").returncode == 0
    assert weight(tmp_path / "other.json") == 7.5


def test_mistakes_are_named(run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([run, "--output", tmp_path / "m.pt"], "must be given with the run folder"),
        ([run], "`--last-epochs` must be given with the run folder"),
        ([run, "--last-epochs", 2, "--output", tmp_path], "must be a file, but"),
        ([tmp_path, "--last-updates", 2], "must be a run folder of scripts/train.py"),
    ):
        result = call(*arguments)
        assert result.returncode == 2 and message in result.stderr
        assert "Traceback" not in result.stderr
