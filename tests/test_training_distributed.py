"""scripts/train.py under torchrun: the same training with any number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, TINY_TRAINING

from fairseq_plugins.training.config import (
    compute_batches_per_update,
    compute_update_freq,
    pin_inputs,
)
from fairseq_plugins.training.launch import (
    build_command,
    count_processes,
    is_follower,
    join_training,
)
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError

CONFIG = {
    **TINY_TRAINING,
    "dropout": 0.0,
    "max_tokens": 200,
    "max_update": 3,
    "batches_per_update": 2,
    "num_workers": 0,
}


@pytest.fixture
def config(tmp_path: Path, tiny_data: Path) -> dict[str, Any]:
    return {"data": str(tiny_data), "run": str(tmp_path / "run"), **CONFIG}


def script(folder: Path, config: dict[str, Any], processes: int = 1) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    launcher = [*torchrun, str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, str(ROOT / "scripts" / "train.py"), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    command = (Path(config["run"]) / "command.txt").read_text()
    return result.stdout + command


def weights(run: Path) -> dict[str, torch.Tensor]:
    path = run / "checkpoints" / "checkpoint_last.pt"
    return torch.load(path, weights_only=False)["model"]


def test_two_processes_of_torchrun_train_the_same_model_as_one(
    config: dict[str, Any], tmp_path: Path
) -> None:
    together = script(tmp_path, config, processes=2)
    run = Path(config["run"])
    assert json.loads((run / "finished.json").read_text())["updates"] == 3
    assert yaml.safe_load((run / "config.yaml").read_text())["processes"] == 2
    assert "--update-freq 1" in together and "--distributed-backend gloo" in together
    log = (run / "train.log").read_text()
    assert "training on 2 devices" in log and log.count("num_updates=3") <= 1
    # With one process it is complete: the same batches are the same training.
    assert "nothing to do" in script(tmp_path, config)

    alone = {**config, "run": str(tmp_path / "alone")}
    assert "--update-freq 2" in script(tmp_path, alone)
    expected = weights(tmp_path / "alone")
    for name, value in weights(run).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    return monkeypatch


def test_the_number_of_processes_is_torchruns_then_the_options_then_the_gpus(
    torchrun: pytest.MonkeyPatch,
) -> None:
    assert count_processes({"distributed_world_size": 2}) == 4
    torchrun.delenv("TORCHELASTIC_RUN_ID")
    assert count_processes({"distributed_world_size": 2}) == 2
    torchrun.setattr(torch.cuda, "device_count", lambda: 8)
    assert count_processes({}) == 8
    torchrun.setattr(torch.cuda, "device_count", lambda: 0)
    assert count_processes({}) == 1


def test_only_the_first_process_writes_to_the_run_folder(
    torchrun: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    became: list[str] = []
    torchrun.setattr(os, "execv", lambda path, command: became.append(path))
    assert is_follower()
    join_training(config, ["fairseq", "x"])
    assert became == ["fairseq"]
    assert not Path(config["run"]).exists()
    torchrun.setenv("RANK", "0")
    assert not is_follower()
    torchrun.delenv("RANK")
    torchrun.delenv("TORCHELASTIC_RUN_ID")
    assert not is_follower()


@pytest.mark.parametrize(
    ("batches", "message"),
    [(6, "must be a multiple of the number of processes, but is 6 for 4"),
     (0, "must be a positive whole number, but is `0`"),
     ("many", "but is `many`"), (True, "but is `True`")],
)  # fmt: skip
def test_batches_that_cannot_be_divided_are_refused(
    batches: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        compute_update_freq(batches, 4)


def test_update_freq_and_batches_per_update_exclude_each_other(
    config: dict[str, Any],
) -> None:
    with pytest.raises(UserError, match="must not both be given"):
        build_command({**config, "update_freq": 2})


def test_training_resumes_if_the_batch_of_an_update_is_the_same(
    config: dict[str, Any],
) -> None:
    run = RunFolder(Path(config["run"]))
    before = pin_inputs({**config, "update_freq": 2}, recorded=None, processes=4)
    del before["batches_per_update"]
    assert compute_batches_per_update(before) == [8]
    run.record_start(before, "command")
    run.checkpoints.mkdir()
    run.last_checkpoint.touch()
    run.check_resumable({**before, "processes": 8, "update_freq": 1})
    run.check_resumable({**before, "processes": 2, "update_freq": [4]})
    without = {k: v for k, v in before.items() if k not in ("processes", "update_freq")}
    run.check_resumable({**without, "batches_per_update": 8})
    with pytest.raises(UserError, match="`processes` was 4 and is 8.*`update_freq`"):
        run.check_resumable({**before, "processes": 8})


def test_a_finished_run_is_finished_on_every_machine(config: dict[str, Any]) -> None:
    run = RunFolder(Path(config["run"]))
    run.record_start(config, "command")
    run.checkpoints.mkdir()
    run.last_checkpoint.touch()
    run.record_end({"updates": 3, "seconds": 1.0})
    assert run.is_finished_with({**config, "processes": 8})
    del config["batches_per_update"]
    run.record_start({**config, "update_freq": 8}, "command")
    run.record_end({"updates": 3, "seconds": 1.0})
    assert run.is_finished_with({**config, "processes": 8, "update_freq": 8})
    assert not run.is_finished_with({**config, "update_freq": 4})


def test_the_number_of_processes_is_not_read_from_the_file(
    config: dict[str, Any],
) -> None:
    pinned = pin_inputs({**config, "processes": 8}, recorded=None)
    assert "processes" not in pinned
    assert pin_inputs(config, recorded=None, processes=2)["processes"] == 2


SRUN = """#!/usr/bin/env bash
# Simulate two machines on this one; each Slurm task gets its number from Slurm.
shift # --kill-on-bad-exit=1
SLURM_NODEID=1 "$@" & other=$!
SLURM_NODEID=0 "$@" || exit
wait $other
"""


@pytest.mark.slow
def test_the_sbatch_file_trains_on_two_machines(
    config: dict[str, Any], tmp_path: Path
) -> None:
    submit = tmp_path / "submit"
    programs = {
        submit / ".venv" / "bin" / "torchrun":
            f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n',
        tmp_path / "bin" / "srun": SRUN,
        tmp_path / "bin" / "scontrol": "#!/bin/sh\necho localhost\necho other\n",
    }  # fmt: skip
    for path, text in programs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (submit / "scripts").symlink_to(ROOT / "scripts")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    result = subprocess.run(
        ["bash", str(ROOT / "scripts" / "slurm" / "train.sbatch"), str(file),
         "max_update=2"],
        env={
            **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(submit), "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "1",
        },
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    run = Path(config["run"])
    assert json.loads((run / "finished.json").read_text())["updates"] == 2
    assert yaml.safe_load((run / "config.yaml").read_text())["processes"] == 2
    assert "training on 2 devices" in (run / "train.log").read_text()
