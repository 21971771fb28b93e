"""Findings of scripts/doctor.py on made-up systems and on this one."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from fairseq_plugins.doctor.checks import (
    MODELS,
    Finding,
    check_system,
    estimate_checkpoint_bytes,
    estimate_training_bytes,
)
from fairseq_plugins.doctor.system import (
    Gpu,
    RecipeNeeds,
    System,
    Torch,
    find_connection_error,
    inspect_recipe,
    inspect_system,
)

GIB = 1 << 30
A100 = Gpu("A100", 81920, 80000, (8, 0))
GOOD = System(
    python="python3.11",
    python_version=(3, 11, 7),
    packages={"sacrebleu": "2.6.0", "sentencepiece": "0.2.3"},
    torch=Torch("2.13.0", "12.8", True, ("sm_75", "sm_80", "sm_90")),
    gpus=(A100,),
    driver="570.86",
    driver_cuda="12.8",
    compiler="/usr/bin/c++",
    headers=True,
    disk=500 * GIB,
    shared_memory=8 * GIB,
)
NEEDS = RecipeNeeds(download=2 * GIB, pairs=4_500_000, hosts=("data.example",))


def bad(system: System, **options: object) -> list[Finding]:
    findings = check_system(system, **options)  # type: ignore[arg-type]
    return [finding for finding in findings if finding.level != "ok"]


def changed(**facts: object) -> System:
    return dataclasses.replace(GOOD, **facts)  # type: ignore[arg-type]


def test_a_good_system_has_no_problem() -> None:
    assert not bad(GOOD, model="big", recipe=NEEDS)


CPU_TORCH = Torch("2.13.0+cpu", None, False)


@pytest.mark.parametrize(
    ("facts", "stage", "level", "message", "fix"),
    [
        ({"python_version": (3, 13, 0)}, "setup", "problem", "Python 3.13.0", "3.12"),
        ({"python_version": (3, 9, 1)}, "setup", "problem", "Python 3.9.1", "3.10"),
        ({"torch": None, "torch_error": "No module named 'torch'"},
         "setup", "problem", "No module named 'torch'", "setup.sh"),
        ({"fairseq_error": "No module named 'fairseq'"},
         "setup", "problem", "No module named 'fairseq'", "setup.sh"),
        ({"out_error": "`/x` is not writable"}, "prepare", "problem", "/x", "--out"),
        ({"disk": GIB}, "prepare", "problem", "1.0 GiB free", "--out"),
        ({"host_errors": {"data.example": "timed out"}},
         "prepare", "problem", "data.example cannot be reached (timed", "--source"),
        ({"torch": CPU_TORCH}, "train", "problem", "built for the CPU", "CUDA 12.8"),
        ({"driver_cuda": "11.4", "driver": "470.1"},
         "train", "problem", "driver 470.1 runs CUDA up to 11.4", "update the driver"),
        ({"torch": dataclasses.replace(GOOD.torch, sees_gpu=False)},
         "train", "problem", "torch sees no GPU", "CUDA_VISIBLE_DEVICES"),
        ({"gpus": (Gpu("P100", 16384, 16000, (6, 0)),)},
         "train", "problem", "not built for P100 (compute capability 6.0)", "older"),
        ({"gpus": (Gpu("T4", 16384, 16000, (7, 5)),)},
         "train", "warning", "T4 has no bfloat16", "bf16=null fp16=true"),
        ({"gpus": (dataclasses.replace(A100, free_memory=2000),)},
         "train", "warning", "GPU memory: 2.0 GiB free", "halve max_tokens"),
        ({"gpus": (), "torch": CPU_TORCH}, "train", "warning", "no NVIDIA GPU", "GPU"),
        ({"gpus": (), "driver_error": "Driver/library version mismatch"},
         "train", "problem", "Driver/library version mismatch", "driver"),
        ({"shared_memory": 64 << 20}, "train", "warning", "0.1 GiB free", "--shm-size"),
        ({"packages": {"sentencepiece": "1"}},
         "evaluate", "problem", "sacrebleu is not installed", "setup.sh"),
    ],
)  # fmt: skip
def test_a_problem_is_named_with_its_fix(
    facts: dict[str, object], stage: str, level: str, message: str, fix: str
) -> None:
    found = bad(changed(**facts), model="base", recipe=NEEDS)
    [finding] = [
        each for each in found if each.stage == stage and message in each.message
    ]
    assert finding.level == level
    assert fix in finding.fix
    others = {each.stage for each in found} - {stage}
    shared = {"train", "evaluate"}  # these need disk and GPU memory, too
    assert not others - (shared if facts.keys() & {"disk", "gpus"} else set())


@pytest.mark.parametrize(
    ("newer", "fine"), [("12.4", True), ("13.0", True), ("11.8", False)]
)
def test_a_driver_runs_all_of_its_major_version_and_what_is_older(
    newer: str, fine: bool
) -> None:
    assert bool(bad(changed(driver_cuda=newer))) != fine


def test_a_missing_compiler_matters_only_while_fairseq_is_not_built() -> None:
    assert not bad(changed(compiler=None, headers=False))
    found = bad(changed(compiler=None, headers=False, fairseq_error="no"))
    assert [each.message for each in found][1:] == [
        "C++ compiler: none", "Python's headers: missing"
    ]  # fmt: skip


def test_unknown_sizes_are_reported() -> None:
    recipe = dataclasses.replace(NEEDS, unknown_archives=2, unknown_parts=1)
    [disk] = [f for f in check_system(GOOD, recipe=recipe) if "corpus" in f.message]
    extra = "plus 2 archives of unknown size and 1 parts of unknown length"
    assert extra in disk.message


@pytest.mark.parametrize(
    ("model", "name"),
    [("lstm", "wmt14_en_fr_lstm"), ("base", "wmt14_en_de_base"),
     ("big", "wmt14_en_de_big")],
)  # fmt: skip
def test_the_estimates_are_of_the_models_of_the_configurations(
    model: str, name: str, task: object
) -> None:
    import torch
    from fairseq import models, options
    from fairseq.data import Dictionary

    from fairseq_plugins.training.config import PROJECT_KEYS, read_config
    from fairseq_plugins.training.fairseq_options import build_arguments

    config = read_config(ROOT / "configs" / f"{name}.yaml")
    arguments = build_arguments(
        {k: v for k, v in config.items() if k not in PROJECT_KEYS}
    )
    args = options.parse_args_and_arch(
        options.get_training_parser(), ["data", *arguments]
    )
    dictionary = Dictionary()
    for number in range(32000 - len(dictionary)):
        dictionary.add_symbol(f"w{number}")

    class Task:
        source_dictionary = target_dictionary = dictionary

    with torch.device("meta"):
        built = models.ARCH_MODEL_REGISTRY[args.arch].build_model(args, Task)
    size, beam = MODELS[model], read_config(ROOT / "configs" / f"{name}_soft_beam.yaml")
    parameters = sum(each.numel() for each in built.parameters())
    assert parameters == pytest.approx(size.parameters, rel=0.01)
    assert beam["max_tokens"] == size.tokens
    assert beam["batches_per_update"] == size.batches_per_update
    assert config["keep_interval_updates"] == size.kept
    assert estimate_checkpoint_bytes(model) > 14 * parameters * size.kept
    assert estimate_training_bytes(model) > 20 * parameters


def call(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "doctor.py"), *map(str, arguments)],
        env={**os.environ, **env}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def fake(path: Path, *lines: str) -> Path:
    path.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def test_the_command_reports_a_driver_that_is_too_old(
    tmp_path: Path,
) -> None:
    smi = tmp_path / "nvidia-smi"
    fake(smi, 'case "$1" in --query*) echo "Tesla K80, 11441, 11000, 3.7, 450.80";;',
         '*) echo "| Driver Version: 450.80  CUDA Version: 9.2 |";; esac')  # fmt: skip
    result = call(
        "--json", "--recipe", "wmt14-en-de", "--source", tmp_path, "--model", "base",
        "--python", sys.executable, PATH=f"{tmp_path}:{os.environ['PATH']}",
    )  # fmt: skip
    findings = json.loads(result.stdout)
    assert result.returncode == any(f["level"] == "problem" for f in findings)
    messages = [finding["message"] for finding in findings]
    assert "Tesla K80, 11.2 GiB" in messages
    assert "fairseq loads the plug-in" in messages
    assert any("for the corpus" in message for message in messages)
    assert not any("network" in message for message in messages)  # the files are here
    import torch

    wrong = "CUDA up to 9.2" if torch.version.cuda else "built for the CPU only"
    assert any(wrong in f["message"] and f["level"] == "problem" for f in findings)


@pytest.mark.parametrize("status", [0, 1])
def test_a_python_that_does_not_run_is_reported(status: int, tmp_path: Path) -> None:
    python = fake(tmp_path / "python", "echo ImportError: broken >&2", f"exit {status}")
    result = call("--python", python, "--stage", "setup")
    assert result.returncode == 1
    assert f"setup     PROBLEM  Python does not run ({python})" in result.stdout
    assert "torch: ImportError: broken" in result.stdout
    assert result.stdout.endswith("setup cannot run yet.\n")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("cause", "fix"),
    [("python", "setup.sh"), ("recipe", "another --recipe"), ("source", "--source")],
)
def test_a_fault_of_a_recipe_has_the_fix_of_its_cause(cause: str, fix: str) -> None:
    [finding] = bad(GOOD, recipe=RecipeNeeds(fault="it is so", cause=cause))
    assert finding.stage == "prepare" and finding.level == "problem"
    assert finding.message == "the recipe: it is so" and fix in finding.fix


def inspect(*arguments: object) -> RecipeNeeds:
    return inspect_recipe(Path(sys.executable), *arguments)  # type: ignore[arg-type]


def test_files_that_prepare_would_not_find_are_a_fault(tmp_path: Path) -> None:
    recipe = inspect("multi30k-de-en")
    assert recipe.pairs == 29_000
    assert recipe.cause == "source" and "cannot be downloaded" in recipe.fault
    for source, message in (
        (tmp_path, f"`{tmp_path}` lacks train.de"),
        (tmp_path / "nowhere", "does not exist"),
    ):
        recipe = inspect("multi30k-de-en", source)
        assert recipe.cause == "source" and message in recipe.fault
    assert not inspect("builtin-en-fr").fault
    assert not inspect("builtin-en-fr", ROOT / "data" / "builtin").fault


def test_archives_to_be_downloaded_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairseq_plugins.doctor.system.DOWNLOADS", tmp_path)
    content = (ROOT / "data" / "recipes" / "wmt14-en-de.yaml").read_text()
    before = inspect("wmt14-en-de")
    assert not before.fault and before.hosts and before.pairs > 4_000_000
    for name in re.findall(r"file: (\S+\.tgz)", content):
        (tmp_path / name).write_text("")
    after = inspect("wmt14-en-de")
    assert not after.fault and after.pairs == before.pairs
    assert after.download < before.download and not after.hosts


def test_paths_are_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = (ROOT / "data" / "recipes" / "builtin-en-fr.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(recipe.replace("../builtin", "text"))
    shutil.copytree(ROOT / "data" / "builtin", tmp_path / "text")
    (tmp_path / "json.py").write_text("raise SystemExit('not that one')")
    monkeypatch.chdir(tmp_path)
    assert not inspect("mine.yaml").fault
    assert not inspect("builtin-en-fr", Path("text")).fault


def test_a_misspelt_recipe_gets_the_message_of_prepare() -> None:
    result = call("--recipe", "mult30k-de-en", "--stage", "prepare")
    assert result.returncode == 1
    expected = "the recipe: there is no recipe `mult30k-de-en`. Did you mean `multi30k"
    assert expected in result.stdout
    assert "UserError" not in result.stdout and "setup.sh" not in result.stdout


def test_an_out_folder_must_not_be_or_lie_below_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    python = Path("/bin/false")  # its packages do not matter here
    for out in (file, file / "below"):
        error = inspect_system(python, out, ()).out_error
        assert error == f"`--out` must be a folder, but `{file}` is not one"
    assert inspect_system(python, tmp_path / "new", ()).out_error is None


def test_a_server_that_cannot_be_reached_is_an_error_message() -> None:
    error = find_connection_error("127.0.0.1:not-a-port")
    assert error and "not-a-port" in error


def test_a_source_without_its_recipe_is_refused(tmp_path: Path) -> None:
    result = call("--source", tmp_path)
    assert result.returncode == 2 and "pass --recipe, too" in result.stderr
