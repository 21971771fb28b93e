"""The shell scripts for WMT: their commands, and resuming after interruptions."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SHARED_DATA

from fairseq_plugins.training.config import read_config

TASKS = ("wmt14_en_fr", "wmt14_en_de", "wmt16_en_de")
# Replaces Python: it records its arguments and writes the files of the real command.
STUB = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case $1 in
  *"$FAILING"*) exit 3 ;;
  *train.py)
    for each; do
      case $each in run=*) run=${each#run=} ;; esac
    done
    mkdir -p "$run"
    echo "keep_interval_updates: 5" > "$run/config.yaml" ;;
  *average.py)
    mkdir -p "$2/checkpoints"
    touch "$2/checkpoints/checkpoint_average.pt" ;;
esac
"""


def call(task: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / f"{task}.sh"), *map(str, arguments)],
        env={**os.environ, "PYTHON": sys.executable, **env},
        cwd="/", capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "python"
    path.write_text(STUB)
    path.chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    return {"PYTHON": str(path), "CALLS": str(calls), "FAILING": "no such script"}


def commands(stub: dict[str, str]) -> list[list[str]]:
    return [line.split() for line in Path(stub["CALLS"]).read_text().splitlines()]


def overrides(command: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in command if "=" in word)


@pytest.mark.parametrize("task", TASKS)
def test_all_runs_every_stage_on_what_the_ones_before_made(
    task: str, stub: dict[str, str], tmp_path: Path
) -> None:
    result = call(task, "--out", tmp_path / "o", "--source", tmp_path, "all", **stub)
    assert result.returncode == 0, result.stderr
    ran = commands(stub)
    assert ran[0][:2] == ["scripts/prepare.py", ran[0][1]]
    assert ran[0][2:] == ["--out", str(tmp_path / "o/data" / ran[0][1]),
                          "--source", str(tmp_path)]  # fmt: skip
    trained = [each for each in ran if each[0] == "scripts/train.py"]
    averaged = [each[1] for each in ran if each[0] == "scripts/average.py"]
    compared = [each[1:] for each in ran if each[0] == "scripts/compare.py"]
    assert averaged == [overrides(each)["run"] for each in trained]
    how = "--checkpoint checkpoint_average.pt --beam 1 5 --sentences 0".split()
    assert {each[3] for each in ran if each[0] == "scripts/average.py"} == {"5"}
    baseline, control, soft = averaged[:3]
    assert compared[0] == [control, baseline, soft, *how]
    assert compared[1:] == [[baseline, topk, *how] for topk in averaged[3:]]
    kinds = ["", "_control", "_soft_beam"] + (["topk"] if "16" in task else [])
    assert len(trained) == len(kinds)
    start = f"{averaged[0]}/checkpoints/checkpoint_average.pt"
    for kind, command in zip(kinds, trained):
        from_baseline = kind in ("_control", "_soft_beam")
        expected = start if from_baseline else None
        assert overrides(command).get("start_from") == expected
        assert kind in command[1]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", ["lstm", "base", "big"])
def test_by_default_it_trains_where_the_configurations_say(
    task: str, model: str, stub: dict[str, str]
) -> None:
    if model == "lstm" and task != "wmt14_en_fr":
        assert "`--model` must be one of" in call(task, "--model", model, "all").stderr
        return
    stub["FAILING"] = ""  # so that nothing is made under runs
    for stage in ("baseline", "control", "soft") + (("topk",) if "16" in task else ()):
        Path(stub["CALLS"]).write_text("")
        call(task, "--model", model, stage, **stub)
        [command] = commands(stub)
        config = read_config(ROOT / command[1])
        for key, value in overrides(command).items():
            assert os.path.normpath(ROOT / value) == os.path.normpath(
                ROOT / Path(config[key]).relative_to(Path.cwd())
            )


def test_a_failing_command_ends_everything_with_its_status(
    stub: dict[str, str], tmp_path: Path
) -> None:
    stub["FAILING"] = "train.py"
    result = call("wmt14_en_de", "--out", tmp_path / "o", "all", **stub)
    assert result.returncode == 3
    assert [each[0] for each in commands(stub)] == [
        "scripts/prepare.py", "scripts/train.py"
    ]  # fmt: skip


def test_a_smoke_is_tiny_and_the_last_word_is_the_users(
    stub: dict[str, str], tmp_path: Path
) -> None:
    result = call("wmt14_en_fr", "--smoke", "--out", tmp_path / "o", "all",
                  "max_update=7", **stub)  # fmt: skip
    assert result.returncode == 0, result.stderr
    ran = commands(stub)
    assert "--smoke" in ran[0]
    for command in (each for each in ran if each[0] == "scripts/train.py"):
        options = overrides(command)
        assert options["cpu"] == "true" and options["bf16"] == "null"
        assert options["max_update"] == "7"
        assert int(options["encoder_hidden_size"]) < 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "STAGE must be one of prepare baseline control soft evaluate all"),
        (["train"], "but is `train`"),
        (["all", "soft"], "there must be one STAGE, but are `all` and `soft`"),
        (["--sorce", "x", "all"], "unknown option `--sorce`"),
        (["--out"], "`--out` must have a value"),
        (["--source", "/no/where", "all"], "`--source` must be a folder"),
        (["--out", "/tmp/nothing-here", "evaluate"], "nothing has been trained"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str) -> None:
    result = call("wmt14_en_de", *arguments)
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.parametrize("task", TASKS)
def test_help_names_every_stage_and_option(task: str) -> None:
    text = call(task, "--help").stdout
    for word in ("prepare", "baseline", "control", "soft", "evaluate", "all",
                 "--smoke", "--source", "--out", "--model"):  # fmt: skip
        assert re.search(rf"^{word} ", text, re.M) or f" {word} " in text, word
    assert ("topk" in text) == (task == "wmt16_en_de")


TINY = """task=wmt14_en_de title=Tiny models=base default_model=base published=nothing
stages="prepare baseline evaluate all"
recipe_of() { echo builtin-en-fr; }
. "$ROOT/scripts/wmt.sh"
main "$@"
"""


@pytest.mark.slow
def test_a_killed_script_resumes_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    entry = tmp_path / "tiny.sh"
    entry.write_text(TINY)
    env = {**os.environ, "ROOT": str(ROOT), "PYTHON": sys.executable}
    command = ["bash", str(entry), "--smoke", "--out", str(tmp_path / "o"), "all"]
    log = tmp_path / "o" / "wmt14_en_de" / "base" / "train.log"
    checkpoints = log.parent / "checkpoints"
    running = subprocess.Popen(
        [*command, "max_update=100000"], env=env, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not any(checkpoints.glob("checkpoint_*_*.pt")):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    time.sleep(1.0)  # the training dies with it
    assert not (log.parent / "finished.json").exists()
    before = log.read_text()

    def run() -> str:
        result = subprocess.run(
            [*command, "max_update=35"], env=env, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    said = run()
    assert "up to date; nothing to do" in said  # the corpus
    both = log.read_text()
    assert both.startswith(before)
    reached = (log.parent / "finished.json").read_text()
    assert "loaded checkpoint" in both[len(before) :].lower() or "already" in said
    assert re.search(r"BLEU: nrefs:1\|case:mixed\|eff:no\|tok:13a", said)

    again = run()
    assert log.read_text() == both
    assert (log.parent / "finished.json").read_text() == reached
    assert again.count("nothing to do") == 3  # corpus, training, mean
    assert "translating" not in again


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no ../shared/data")
def test_a_smoke_of_the_top_k_task_ends_with_bleu_and_signature(tmp_path: Path) -> None:
    # The control is trained by the same function as soft, from another configuration.
    for stage in ("prepare", "baseline", "soft", "topk", "evaluate"):
        result = call(
            "wmt16_en_de", "--smoke", "--source", SHARED_DATA, "--out", tmp_path,
            stage, "max_update=7",
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("scripts/compare.py") == 2  # top-k has its own control
    last = result.stdout[result.stdout.rindex("scripts/compare.py") :]
    assert "topk_base" in last
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in last
