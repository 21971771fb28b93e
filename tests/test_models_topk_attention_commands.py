"""From a plain Transformer to top-k attention by fairseq's own commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_module

import fairseq_plugins

SIZE = [
    "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32",
    "--encoder-layers", "2", "--encoder-attention-heads", "2",
    "--decoder-layers", "2", "--decoder-attention-heads", "2",
]  # fmt: skip
USER_DIR = ["--user-dir", ROOT / "fairseq_plugins"]


def train(data: Path, save_dir: Path, *options: object) -> str:
    result = run_module(
        "fairseq_cli.train", data, *USER_DIR, "--cpu", *SIZE,
        "--optimizer", "adam", "--lr", "1e-2", "--max-tokens", "400",
        "--num-workers", "0", "--save-dir", save_dir, "--log-format", "simple",
        "--log-interval", "1", *options,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def checkpoints(
    tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A plain checkpoint, and one with top-k attention and beam loss from it."""
    folder = tmp_path_factory.mktemp("commands")
    train(tiny_data, folder / "plain", "--arch", "transformer", "--max-epoch", "4")
    plain = folder / "plain" / "checkpoint_last.pt"
    log = train(
        tiny_data, folder / "topk", "--arch", "transformer_topk",
        "--finetune-from-model", plain, "--max-update", "6",
        "--topk-k", "8", "--topk-k-end", "3", "--topk-epsilon", "1",
        "--topk-epsilon-end", "0.5", "--topk-updates", "4",
        "--topk-attentions", "cross,decoder,encoder",
        "--criterion", "soft_beam_search", "--rho", "0.5", "--beam", "3",
    )  # fmt: skip
    fairseq_plugins.register()  # for safe loading
    costs = [float(cost) for cost in re.findall(r" cost=([\d.]+)", log)]
    assert costs and all(0 < cost <= 1 for cost in costs)
    return {"plain": plain, "topk": folder / "topk" / "checkpoint_last.pt"}


def test_a_plain_checkpoint_continues_with_topk_attention_in_the_beam(
    checkpoints,
):
    before, after = (torch.load(checkpoints[name])["model"] for name in checkpoints)
    added = after.keys() - before.keys()
    assert added and all(name.endswith("topk.updates") for name in added)
    assert all(after[name] == 5 for name in added)  # counted at the start of each
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > len(before) / 2


def averaged(paths: list[Path], out: Path) -> Path:
    """Average as fairseq's scripts/average_checkpoints.py does."""
    states = [torch.load(path) for path in paths]
    for name in states[0]["model"]:
        total = sum(state["model"][name] for state in states)
        mean = total / len(states) if total.is_floating_point() else total // 2
        states[0]["model"][name] = mean
    torch.save(states[0], out)
    return out


def test_an_ensemble_of_an_average_and_a_plain_model_translates(
    checkpoints, tiny_data, tmp_path
):
    """``fairseq-generate`` and ``fairseq-interactive`` give the same translations."""
    first = checkpoints["topk"]
    average = averaged([first, first], tmp_path / "average.pt")
    arguments = [
        tiny_data, *USER_DIR, "--cpu", "--beam", "3",
        "--path", f"{average}:{checkpoints['plain']}",
    ]  # fmt: skip
    generated = run_module("fairseq_cli.generate", *arguments, "--max-tokens", "400")
    assert generated.returncode == 0, generated.stderr[-3000:]
    sources = dict(re.findall(r"^S-(\d+)\t(.*)$", generated.stdout, re.M))
    expected = dict(re.findall(r"^H-(\d+)\t[^\t]*\t(.*)$", generated.stdout, re.M))
    assert len(expected) == 20
    numbers = sorted(sources)[:3]
    command: list[Any] = [sys.executable, "-m", "fairseq_cli.interactive", *arguments]
    result = subprocess.run(
        list(map(str, command)), cwd=ROOT, text=True, capture_output=True, timeout=300,
        input="".join(sources[number] + "\n" for number in numbers),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    found = re.findall(r"^H-\d+\t[^\t]*\t(.*)$", result.stdout, re.M)
    assert found == [expected[number] for number in numbers]
