"""scripts/train.py: from a configuration to a finished run, with interruptions."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, TINY_TRAINING

from fairseq_plugins.training.config import pin_inputs
from fairseq_plugins.training.launch import build_command, train
from fairseq_plugins.utils.errors import UserError

SCRIPT = ROOT / "scripts" / "train.py"
TINY = {**TINY_TRAINING, "max_tokens": 300, "max_update": 2, "seed": 3}


@pytest.fixture
def config(tmp_path: Path, tiny_data: Path) -> dict[str, Any]:
    return {"data": str(tiny_data), "run": str(tmp_path / "run"), **TINY}


@pytest.fixture
def config_file(tmp_path: Path, config: dict[str, Any]) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def call(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def updates(config: dict[str, Any]) -> int:
    end = json.loads((Path(config["run"]) / "finished.json").read_text())
    assert end["seconds"] > 0
    return end["updates"]


def test_a_dry_run_prints_values_with_their_origins_and_the_command(
    config: dict[str, Any], config_file: Path
) -> None:
    result = call(config_file, "--dry-run", "lr=0.5", "arch=transformer",
                  "encoder_hidden_size=null", "decoder_hidden_size=null",
                  "decoder_out_embed_dim=null")  # fmt: skip
    assert result.returncode == 0, result.stderr
    flat, _, command = result.stdout.partition("\n\n")
    assert yaml.safe_load(flat)["arch"] == "transformer"
    origins = dict(re.findall(r"^(\w+): .*  # (.*)$", flat, re.M))
    assert origins["lr"] == origins["arch"] == "command line"
    assert origins["seed"] == str(config_file)
    assert origins["data_sha256"] == "filled in"
    assert shlex.split(command) == [
        sys.executable, "-m", "fairseq_cli.train", config["data"],
        "--user-dir", str(ROOT / "fairseq_plugins"),
        "--arch", "transformer", "--encoder-embed-dim", "8",
        "--decoder-embed-dim", "8", "--optimizer", "adam", "--lr", "0.5",
        "--no-epoch-checkpoints", "--cpu", "--max-tokens", "300", "--max-update", "2",
        "--seed", "3", "--save-dir", config["run"] + "/checkpoints",
    ]  # fmt: skip
    assert not Path(config["run"]).exists()


def test_without_a_gpu_the_cpu_is_used_with_a_notice(
    config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    notice = "No GPU here: training on the CPU (--cpu)."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--cpu" not in build_command({**config, "cpu": False})
    assert notice not in caplog.messages
    del config["cpu"]
    assert "--cpu" in build_command(config)
    assert notice in caplog.messages
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "--cpu" not in build_command(config)


def test_training_is_completed_once_and_resumes_from_its_last_update(
    config: dict[str, Any], config_file: Path
) -> None:
    run = Path(config["run"])
    first = call(config_file)
    assert first.returncode == 0, first.stdout + first.stderr
    assert updates(config) == 2
    log = (run / "train.log").read_text()
    assert "num_updates" in log and "num_updates" not in first.stdout
    assert first.stdout.startswith(f"`{run}` is complete: validation loss ")
    assert len((first.stdout + first.stderr).splitlines()) <= 6

    second = call(config_file)
    assert (second.returncode, second.stdout) == (
        0,
        f"`{run}` is complete: nothing to do.\n",
    )

    changed = call(config_file, "lr=0.5", "max_update=4")
    assert changed.returncode == 2
    assert "`lr` was 0.01 and is 0.5." in changed.stderr
    assert (run / "train.log").read_text() == log

    longer = call(run / "config.yaml", "max_update=4", "--verbose")
    assert longer.returncode == 0, longer.stdout + longer.stderr
    assert updates(config) == 4
    both = (run / "train.log").read_text()
    assert both.startswith(log)
    command = (run / "command.txt").read_text()
    assert longer.stdout == command + both[len(log) :]
    assert "@ 2 updates" in both[len(log) :]  # loaded, not started over


def test_all_processes_of_a_killed_training_end_and_it_is_resumed(
    config: dict[str, Any], config_file: Path
) -> None:
    run = Path(config["run"])
    endless = [sys.executable, str(SCRIPT), str(config_file), "max_update=1000000"]
    last = run / "checkpoints" / "checkpoint_last.pt"
    with subprocess.Popen(endless, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not last.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not (run / "finished.json").exists()
    time.sleep(0.5)
    size = (run / "train.log").stat().st_size
    time.sleep(1.0)
    assert (run / "train.log").stat().st_size == size  # no process writes any more

    done = call(config_file, "max_update=1")
    assert done.returncode == 0, done.stderr
    assert "already has its" in done.stderr
    assert updates(config) >= 1


def test_a_failure_is_reported_with_its_status_and_its_error(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    code = "import sys; print('begin'); print('ValueError: no.\\n'); sys.exit(7)"
    lines: list[str] = []
    assert train(config, [sys.executable, "-c", code], on_line=lines.append) == 7
    log = Path(config["run"]) / "train.log"
    assert caplog.messages == [
        "fairseq-train ended with status 7: ValueError: no. "
        f"All of its output: {log}"
    ]
    assert log.read_text() == "".join(lines)
    assert not log.with_name("finished.json").exists()


def test_a_start_that_fails_at_once_keeps_the_record_of_the_results(
    config: dict[str, Any], config_file: Path
) -> None:
    run = Path(config["run"])
    assert call(config_file).returncode == 0
    before = [(run / name).read_text() for name in ("config.yaml", "finished.json")]
    failing = {**config, "lr": 0.5, "max_update": 4}
    code = "import sys; print('RuntimeError: no'); sys.exit(1)"
    assert train(failing, [sys.executable, "-c", code], on_line=print) == 1
    after = [(run / name).read_text() for name in ("config.yaml", "finished.json")]
    assert after == before
    assert "nothing to do" in call(config_file).stdout


def test_a_start_that_writes_a_checkpoint_records_its_configuration(
    config: dict[str, Any],
) -> None:
    last = Path(config["run"]) / "checkpoints" / "checkpoint_last.pt"
    write_checkpoint(last, updates=1, seconds=1.0)
    code = "print('Preparing to save checkpoint for epoch 1'); raise SystemExit(1)"
    assert train(config, [sys.executable, "-c", code], on_line=print) == 1
    assert (Path(config["run"]) / "config.yaml").is_file()


def test_a_restarted_training_stops_like_an_uninterrupted_one(
    config: dict[str, Any], config_file: Path
) -> None:
    # The loss improves by less than --lr-threshold in every epoch.
    given = (
        "lr=1e-7", "batch_size=50", "max_tokens=null", "max_update=null",
        "patience=4", "lr_scheduler=reduce_lr_on_plateau", "lr_patience=1",
        "lr_shrink=0.5", "save_interval_updates=5", "keep_interval_updates=3",
    )  # fmt: skip
    results = []
    for run, parts in ("whole", [9]), ("parts", [1, 2, 4, 9]):
        folder = f"run={config['run']}-{run}"
        for max_epoch in parts:
            done = call(config_file, *given, folder, f"max_epoch={max_epoch}")
            assert done.returncode == 0, done.stderr
        checkpoints = Path(f"{config['run']}-{run}/checkpoints")
        state = torch.load(checkpoints / "checkpoint_last.pt", weights_only=False)
        results.append((
            state["optimizer_history"][-1]["num_updates"],
            state["last_optimizer_state"]["param_groups"][0]["lr"],
            state["extra_state"]["early_stopping"]["num_runs"],
            sorted(path.name for path in checkpoints.glob("checkpoint_*_*.pt")),
        ))  # fmt: skip
    assert results[0] == results[1]
    updates, lr, num_runs, names = results[0]
    assert lr < 1e-7
    assert num_runs == 4
    # There are five updates per epoch. The last one has its checkpoint, too.
    assert updates == 25
    assert names == [f"checkpoint_{epoch}_{5 * epoch}.pt" for epoch in (3, 4, 5)]
    again = call(config_file, *given, folder, "max_epoch=10")
    assert "has stopped early: `patience` is 4" in again.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("reset_optimizer=true", "would apply again at every restart of the run"),
        ("data=/nowhere", "`/nowhere` does not exist"),
        ("start_from=/no.pt", "`start_from` must be a file, but `/no.pt`"),
        ("encoder_layer=2", "Did you mean `encoder_layers`?"),
    ],
)
def test_a_mistake_is_reported_before_anything_starts(
    config: dict[str, Any], config_file: Path, change: str, message: str
) -> None:
    result = call(config_file, change)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path(config["run"]).exists()


def write_checkpoint(path: Path, *, updates: int, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "args": None,
        "cfg": None,
        "model": {},
        "optimizer_history": [{"num_updates": updates, "lr_scheduler_state": {}}],
        "extra_state": {"previous_training_time": seconds, "train_iterator": {}},
    }
    torch.save(state, path)


def test_the_seconds_do_not_include_those_of_start_from(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    last = Path(config["run"]) / "checkpoints" / "checkpoint_last.pt"
    start = tmp_path / "start.pt"
    write_checkpoint(start, updates=500, seconds=100.0)
    config = pin_inputs({**config, "start_from": str(start)}, recorded=None)

    def stub(line: str) -> None:
        write_checkpoint(last, updates=2, seconds=130.0)

    assert train(config, [sys.executable, "-c", "print(1)"], on_line=stub) == 0
    end = json.loads((Path(config["run"]) / "finished.json").read_text())
    assert end == {"updates": 2, "seconds": 30.0}


def test_a_run_with_all_its_updates_is_not_trained_further(
    config: dict[str, Any],
) -> None:
    last = Path(config["run"]) / "checkpoints" / "checkpoint_last.pt"
    write_checkpoint(last, updates=2, seconds=1.0)
    assert train(config, ["/must/not/run"], on_line=print) == 0
    assert updates(config) == 2


def test_a_damaged_last_checkpoint_is_named(config: dict[str, Any]) -> None:
    last = Path(config["run"]) / "checkpoints" / "checkpoint_last.pt"
    write_checkpoint(last, updates=2, seconds=1.0)
    last.write_bytes(last.read_bytes()[:500])
    with pytest.raises(UserError, match="checkpoint_last.pt` cannot be read"):
        train(config, ["/must/not/run"], on_line=print)


def test_tensorboard_without_its_package_is_refused_before_training(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="`tensorboard_logdir` needs the package"):
        build_command({**config, "tensorboard_logdir": "somewhere"})
