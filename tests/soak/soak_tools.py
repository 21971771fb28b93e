"""Shared by the soak tests: a small corpus, commands, and comparisons of results.

``SOAK_SCALE=0.01 pytest -m soak tests/soak`` reduces all repetitions to a hundredth.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Mapping, Sequence

import psutil
import torch
import yaml
from conftest import ROOT

from fairseq_plugins.utils.process import ALLOCATION

__all__ = [
    "PLUGIN",
    "SMALL_LSTM",
    "TRAINING",
    "differences",
    "files_in",
    "kill_tree",
    "last_checkpoint",
    "load_checkpoint",
    "prepare_corpus",
    "run",
    "scaled",
    "script",
    "write_corpus",
    "write_yaml",
]

_SCALE = float(os.environ.get("SOAK_SCALE", "1"))
_WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("l", "rn", "schß")]
_PAIRS = {"train": 1500, "dev": 30, "new": 40}
_SECONDS = re.compile(rb'"(seconds|tokens_per_second)": [\d.e+-]+')
# Dropout and accumulation are on: both must survive a restart.
TRAINING: Mapping[str, Any] = {
    "arch": "lstm", "encoder_embed_dim": 64, "decoder_embed_dim": 64,
    "encoder_hidden_size": 128, "decoder_hidden_size": 128,
    "decoder_out_embed_dim": 64, "dropout": 0.2, "optimizer": "adam", "lr": 0.003,
    "lr_scheduler": "inverse_sqrt", "warmup_updates": 50, "clip_norm": 1.0,
    "max_tokens": 250, "update_freq": 2, "num_workers": 0, "seed": 3, "cpu": True,
    "max_update": 240, "save_interval_updates": 8, "keep_interval_updates": 2,
    "no_epoch_checkpoints": True, "log_format": "json", "log_interval": 1,
}  # fmt: skip
PLUGIN = ("--user-dir", str(ROOT / "fairseq_plugins"))
# For fairseq-train itself, without dropout.
SMALL_LSTM = (
    "--arch", "lstm", "--encoder-embed-dim", 16, "--encoder-hidden-size", 16,
    "--decoder-embed-dim", 16, "--decoder-hidden-size", 16,
    "--decoder-out-embed-dim", 16, "--dropout", 0, "--num-workers", 0, "--cpu",
    "--seed", 1, "--log-format", "json",
)  # fmt: skip


def scaled(count: int) -> int:
    """Return a number of repetitions, multiplied by SOAK_SCALE, but at least 1."""
    return max(1, round(count * _SCALE))


def write_yaml(path: Path, content: Any) -> Path:
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_corpus(folder: Path, *, pairs: Mapping[str, int] = _PAIRS) -> Path:
    """Write made-up text whose target is the reversed source; return its recipe."""
    rng = random.Random(5)
    (folder / "text").mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = {}
    for name, count in pairs.items():
        lines = [rng.choices(_WORDS, k=rng.randint(2, 12)) for _ in range(count)]
        parts[name] = {"name": name}
        for side, language, step in (("source", "xx", 1), ("target", "yy", -1)):
            text = "".join(" ".join(line[::step]) + "\n" for line in lines)
            (folder / "text" / f"{name}.{language}").write_text(text, encoding="utf-8")
            parts[name][side] = {"file": f"{name}.{language}"}
    recipe = {
        "description": "made up", "licence": "none", "published": "no place",
        "source_lang": "xx", "target_lang": "yy", "folder": "text",
        "train": [parts["train"]], "valid": [parts["dev"]], "test": [parts["new"]],
        "subwords": {"vocab_size": 120, "model_type": "bpe", "max_lines": 10000,
                     "character_coverage": 1.0, "seed": 1},
        "cleaning": {"max_words": 50, "drop_duplicates": True},
    }  # fmt: skip
    return write_yaml(folder / "made_up.yaml", recipe)


def prepare_corpus(folder: Path) -> Path:
    """Write and prepare the corpus; return the prepared folder."""
    run(*script("prepare.py"), write_corpus(folder), "--out", folder / "prepared")
    return folder / "prepared"


def script(name: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / name)]


def run(*command: object) -> str:
    """Run a command with the memory settings of trainings; return its output."""
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True,
        env={**ALLOCATION, **os.environ},
    )  # fmt: skip
    output = result.stdout + result.stderr
    assert result.returncode == 0, "\n".join(output.splitlines()[-15:])
    return output


def kill_tree(process: subprocess.Popen[Any]) -> bool:
    """Kill a process and its children; return whether it was alive."""
    if process.poll() is not None:
        return False
    parent = psutil.Process(process.pid)
    for each in [*parent.children(recursive=True), parent]:
        each.kill()
    process.wait()
    return True


def load_checkpoint(path: Path) -> Any:
    from fairseq import checkpoint_utils

    import fairseq_plugins

    fairseq_plugins.register()
    return checkpoint_utils.load_checkpoint_to_cpu(str(path))


def last_checkpoint(run_folder: Path) -> Any:
    return load_checkpoint(run_folder / "checkpoints" / "checkpoint_last.pt")


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Return the places where two trees of tensors and values are not bit-equal."""
    pairs: Sequence[tuple[Any, Any, Any]] = ()
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{place} (keys)"]
        pairs = [(key, one[key], other[key]) for key in one]
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{place} (length)"]
        pairs = [(index, *pair) for index, pair in enumerate(zip(one, other))]
    elif torch.is_tensor(one) and torch.is_tensor(other):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [place]
    elif one != other:
        return [place]
    return [d for key, a, b in pairs for d in differences(a, b, f"{place}/{key}")]


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the files with their final names, without logs and times in JSON."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and path.suffix != ".log":
            content = path.read_bytes()
            if path.suffix == ".json":
                content = _SECONDS.sub(b"", content)
            found[str(name)] = content
    return found
