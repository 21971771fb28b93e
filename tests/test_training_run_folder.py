"""When the results of a run folder may be resumed, and when they are complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    run = str(tmp_path / "run")
    return {"data": "/d", "run": run, "lr": 0.1, "max_update": 10, "log_interval": 5}


@pytest.fixture
def run(tmp_path: Path, config: dict[str, Any]) -> RunFolder:
    """A run that was started and has a checkpoint."""
    run = RunFolder(tmp_path / "run")
    run.record_start(config, "command")
    run.checkpoints.mkdir()
    run.last_checkpoint.touch()
    return run


def test_a_run_is_finished_only_after_its_end(
    run: RunFolder, config: dict[str, Any]
) -> None:
    assert not run.is_finished_with(config)
    run.record_end({"updates": 10, "seconds": 1.0})
    assert run.is_finished_with(config)
    run.record_start(config, "command")
    assert not run.is_finished_with(config)


@pytest.mark.parametrize(
    ("change", "finished", "resumable"),
    [
        ({}, True, True),
        ({"log_interval": 1, "cpu": True}, True, True),  # logging and hardware
        ({"max_update": 20}, False, True),  # how long
        ({"lr": "1e-1"}, True, True),  # YAML reads this number as text
        ({"lr": 0.2}, False, False),  # the training itself
        ({"dropout": 0.2, "max_update": 20}, False, False),
        ({"data_sha256": "other"}, False, False),
    ],
)
def test_only_what_changes_no_result_may_change(
    run: RunFolder,
    config: dict[str, Any],
    change: dict[str, Any],
    finished: bool,
    resumable: bool,
) -> None:
    run.record_end({"updates": 10, "seconds": 1.0})
    changed = {**config, **change}
    assert run.is_finished_with(changed) == finished
    if resumable:
        run.check_resumable(changed)
    else:
        with pytest.raises(UserError, match="results of another configuration"):
            run.check_resumable(changed)


def test_the_refusal_names_all_keys_that_differ(
    run: RunFolder, config: dict[str, Any]
) -> None:
    del config["lr"]
    with pytest.raises(UserError) as error:
        run.check_resumable({**config, "dropout": 0.3})
    assert "`lr` was 0.1 and is not given" in str(error.value)
    assert "`dropout` was not given and is 0.3" in str(error.value)


@pytest.mark.parametrize("scheduler", ["cosine", "polynomial_decay", "tri_stage"])
def test_a_schedule_over_all_updates_cannot_be_made_longer(
    run: RunFolder, config: dict[str, Any], scheduler: str
) -> None:
    config["lr_scheduler"] = scheduler
    run.record_start(config, "command")
    run.check_resumable({**config, "max_epoch": 7})
    with pytest.raises(UserError, match="`max_update` was 10 and is 20"):
        run.check_resumable({**config, "max_update": 20})


def test_without_checkpoints_anything_may_change(
    run: RunFolder, config: dict[str, Any]
) -> None:
    run.last_checkpoint.unlink()
    run.check_resumable({**config, "lr": 0.2})


def test_the_recorded_configuration_can_be_trained_again(
    run: RunFolder, config: dict[str, Any]
) -> None:
    assert run.read_config() == config


def test_only_one_training_at_a_time(run: RunFolder) -> None:
    with run.lock():
        with pytest.raises(UserError, match="another training uses"):
            with run.lock():
                pass
    with run.lock():
        pass


def test_any_other_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a run folder of scripts/train.py"):
        RunFolder(tmp_path).read_config()
