"""When the plug-in registers in fairseq and fixes it, and when it must not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_module

from fairseq_plugins.compat import FIXES, SKIP_VARIABLE

# What a registration or a fix would change: functions, registries, allowed classes.
SNAPSHOT = """
import sys, types
import torch
def snapshot():
    found = {"safe": len(torch.serialization.get_safe_globals())}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in ("fairseq", "fairseq_cli"):
            continue
        for key, value in vars(module).items():
            if isinstance(value, (type, types.FunctionType)):
                found[f"{name}.{key}"] = id(value)
            if isinstance(value, type):
                for attribute, content in vars(value).items():
                    if callable(content) or isinstance(content, staticmethod):
                        found[f"{name}.{key}.{attribute}"] = id(content)
            if isinstance(value, dict) and key.isupper():
                found[f"{name}.{key}"] = sorted(map(str, value))
    return found
def changes(before, after):
    return [key for key in before if before[key] != after.get(key)]
"""
IMPORT_FAIRSEQ = "import fairseq, fairseq.trainer, fairseq_cli.train, fairseq.file_io\n"
PARTS = (
    "operators", "beam", "compat", "corpus", "criterions", "evaluation", "knn",
    "knn_mt", "models", "models.topk_attention", "training",
)  # fmt: skip


def run_code(code: str) -> Any:
    """Run Python code in a new process; return what it prints as JSON at its end."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("part", PARTS)
def test_importing_a_part_changes_nothing_in_fairseq_or_torch(part: str) -> None:
    code = (
        SNAPSHOT + IMPORT_FAIRSEQ + "import json\nbefore = snapshot()\n"
        f"import fairseq_plugins.{part}\nprint(json.dumps(changes(before, snapshot())))"
    )
    assert run_code(code) == []


@pytest.mark.parametrize("first", ["fairseq", "plug-in"])
def test_register_fixes_and_registers_in_either_order_of_imports(first: str) -> None:
    imports = [IMPORT_FAIRSEQ, "import fairseq_plugins.operators\n"]
    if first == "plug-in":
        imports.reverse()
    code = (
        SNAPSHOT
        + "import json\n"
        + "".join(imports)
        + "before = snapshot()\nfairseq_plugins.register()\nonce = snapshot()\n"
        "fairseq_plugins.register()\ntwice = snapshot()\n"
        "print(json.dumps([changes(before, once), changes(once, twice)]))"
    )
    once, twice = run_code(code)
    assert {
        "safe",
        "fairseq.checkpoint_utils.load_checkpoint_to_cpu",
        "fairseq.data.data_utils.batch_by_size",
        "fairseq.file_io.PathManager.copy",
        "fairseq.trainer.Trainer.train_step",
        "fairseq.criterions.CRITERION_REGISTRY",
        "fairseq.models.ARCH_MODEL_REGISTRY",
    } <= set(once)
    assert twice == []


@pytest.mark.parametrize("package", ["operators", "corpus", "training", "evaluation"])
def test_the_parts_below_fairseq_do_not_import_it(package: str) -> None:
    code = (
        f"import sys, fairseq_plugins.{package}; print(int('fairseq' in sys.modules))"
    )
    assert run_code(code) == 0


@pytest.mark.parametrize("command", ["train", "generate"])
def test_a_command_with_the_user_dir_knows_the_criterion_and_the_fixes(
    command: str,
) -> None:
    code = (
        "import json, sys\nfrom fairseq import checkpoint_utils, options\n"
        f"sys.argv = ['fairseq-{command}', '--user-dir', 'fairseq_plugins']\n"
        f"options.get_{command.replace('train', 'training').replace('ate', 'ation')}"
        "_parser()\nfrom fairseq.criterions import CRITERION_REGISTRY\n"
        "from fairseq.models import ARCH_MODEL_REGISTRY\nprint(json.dumps(["
        "'soft_beam_search' in CRITERION_REGISTRY, 'lstm_topk' in ARCH_MODEL_REGISTRY,"
        "hasattr(checkpoint_utils.load_checkpoint_to_cpu, '__wrapped__')]))"
    )
    assert run_code(code) == [True, True, True]


SPAWN = """
import json, sys, torch
from fairseq import options, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

def work(index, cfg, folder):
    utils.import_user_module(cfg.common)  # as fairseq-train does in each process
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.data import data_utils
    found = ["soft_beam_search" in CRITERION_REGISTRY,
             hasattr(data_utils.batch_by_size, "__wrapped__")]
    with open(f"{folder}/{index}", "w") as stream:
        json.dump(found, stream)

if __name__ == "__main__":
    parser = options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser))
    torch.multiprocessing.spawn(work, (cfg, sys.argv[1]), nprocs=2)
"""


@pytest.mark.parametrize("arch", ["lstm_topk", "transformer_topk"])
def test_spawned_processes_register_too(arch: str, tmp_path: Path) -> None:
    # They unpickle the options first, which must not import the plug-in: fairseq skips
    # a user-dir that is imported.
    program = tmp_path / "spawn.py"
    program.write_text(SPAWN)
    result = subprocess.run(
        [sys.executable, program, tmp_path, "--user-dir", ROOT / "fairseq_plugins",
         "--arch", arch, "--criterion", "soft_beam_search", "--optimizer", "adam"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for rank in "01":
        assert json.loads((tmp_path / rank).read_text()) == [True, True]


def test_the_variable_leaves_out_the_named_fixes_only(monkeypatch) -> None:
    monkeypatch.setenv(SKIP_VARIABLE, "keep-last-batch, copy-checkpoints-atomically")
    code = (
        "import json, fairseq_plugins; fairseq_plugins.register()\n"
        "from fairseq import checkpoint_utils\nfrom fairseq.data import data_utils\n"
        "from fairseq.file_io import PathManager\nprint(json.dumps(["
        "hasattr(f, '__wrapped__') for f in (data_utils.batch_by_size, "
        "PathManager.copy, checkpoint_utils.load_checkpoint_to_cpu)]))"
    )
    assert run_code(code) == [False, False, True]


def test_without_the_fixes_only_the_registries_change(monkeypatch) -> None:
    monkeypatch.setenv(SKIP_VARIABLE, ",".join(FIXES))
    code = (
        SNAPSHOT
        + IMPORT_FAIRSEQ
        + "import fairseq_plugins, json\nbefore = snapshot()\n"
        "fairseq_plugins.register()\nprint(json.dumps(changes(before, snapshot())))"
    )
    changed = run_code(code)
    assert "fairseq.criterions.CRITERION_REGISTRY" in changed
    assert all(name.isupper() for name in (key.split(".")[-1] for key in changed))


def test_an_unknown_fix_is_an_error_that_lists_the_fixes(monkeypatch) -> None:
    monkeypatch.setenv(SKIP_VARIABLE, "keep-last-batch,keep-first-batch")
    result = run_module("fairseq_cli.train", "--user-dir", "fairseq_plugins", "--help")
    assert result.returncode != 0
    message = result.stderr.splitlines()[-1]
    assert "but names `keep-first-batch`." in message
    assert all(name in message for name in FIXES)


def test_the_document_lists_the_fixes() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    table = text.partition("## Fixes of fairseq")[2].partition("\n## ")[0]
    rows = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert rows == list(FIXES)
