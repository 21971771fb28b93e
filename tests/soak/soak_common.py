"""What the sections of tests/soak/run.py share: a small corpus, runs, and results."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import yaml

from fairseq_plugins.utils.files import read_json, write_atomically, write_json
from fairseq_plugins.utils.process import ALLOCATION

__all__ = [
    "PLUGIN",
    "ROOT",
    "SMALL_LSTM",
    "TRAINING",
    "call",
    "keep_part",
    "known_parts",
    "prepared_corpus",
    "read_notes",
    "script",
    "watched",
    "write_corpus",
    "write_yaml",
]

ROOT = Path(__file__).resolve().parents[2]
_WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("l", "rn", "schß")]
_PAIRS = {"train": 1500, "dev": 30, "new": 40}
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
# The same for fairseq-train itself, smaller still and without dropout.
SMALL_LSTM = (
    "--arch", "lstm", "--encoder-embed-dim", 16, "--decoder-embed-dim", 16,
    "--encoder-hidden-size", 16, "--decoder-hidden-size", 16,
    "--decoder-out-embed-dim", 16, "--dropout", 0, "--num-workers", 0,
    "--disable-validation", "--cpu", "--seed", 1, "--log-format", "json",
)  # fmt: skip


def write_corpus(folder: Path, *, pairs: Mapping[str, int] = _PAIRS) -> Path:
    """Write made-up text, the target is the source reversed, and its recipe."""
    rng = random.Random(5)
    (folder / "text").mkdir(parents=True, exist_ok=True)
    for name, count in pairs.items():
        lines = [rng.choices(_WORDS, k=rng.randint(2, 12)) for _ in range(count)]
        for language, step in (("xx", 1), ("yy", -1)):
            text = "".join(" ".join(line[::step]) + "\n" for line in lines)
            (folder / "text" / f"{name}.{language}").write_text(text, encoding="utf-8")
    sides = (("source", "xx"), ("target", "yy"))
    parts = {
        name: {"name": name}
        | {side: {"file": f"{name}.{language}"} for side, language in sides}
        for name in pairs
    }
    recipe = {
        "description": "made up", "licence": "none", "published": "no place",
        "source_lang": "xx", "target_lang": "yy", "folder": "text",
        "train": [parts["train"]], "valid": [parts["dev"]], "test": [parts["new"]],
        "subwords": {"vocab_size": 120, "model_type": "bpe", "max_lines": 10000,
                     "character_coverage": 1.0, "seed": 1},
        "cleaning": {"max_words": 50, "drop_duplicates": True},
    }  # fmt: skip
    return write_yaml(folder / "made_up.yaml", recipe)


def write_yaml(path: Path, content: Any) -> Path:
    with write_atomically(path) as stream:
        yaml.safe_dump(content, stream, sort_keys=False, allow_unicode=True)
    return path


def prepared_corpus(work: Path) -> Path:
    """Return the folder of the corpus, prepared once."""
    recipe = write_corpus(work / "corpus")
    call(*script("prepare.py"), recipe, "--out", work / "prepared")
    return work / "prepared"


def script(name: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / name)]


def watched(notes: Path, what: str, *, launcher: Sequence[str] = ()) -> list[str]:
    """Return the begin of a fairseq-train command that takes notes of its updates.

    The corpus and the options are to follow. See `soak_watched.py`.
    """
    for path in notes.parent.glob(f"{notes.name}.*"):
        path.unlink()
    program = str(ROOT / "tests" / "soak" / "soak_watched.py")
    return [sys.executable, *launcher, program, str(notes), what, *PLUGIN]


def read_notes(notes: Path, rank: int = 0) -> Any:
    import torch

    return torch.load(f"{notes}.{rank}", weights_only=True)


def call(*command: object) -> str:
    """Run a command to its end, with memory as trainings have it; return its output.

    Raises:
        RuntimeError: it failed; the message is the end of its output.
    """
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True,
        env={**ALLOCATION, **os.environ},
    )  # fmt: skip
    if result.returncode:
        end = "\n".join((result.stdout + result.stderr).splitlines()[-15:])
        raise RuntimeError(f"status {result.returncode} of {command}:\n{end}")
    return result.stdout + result.stderr


def known_parts(results: Path, section: str) -> dict[str, Any]:
    """Return the parts of a section that results hold already.

    Raises:
        UserError: the results are not valid JSON.
    """
    parts: dict[str, Any] = _kept(results).get(section, {})
    return parts


def keep_part(results: Path, section: str, part: str, figures: Any) -> None:
    """Merge one part's figures into the results; sections may run side by side."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with _locked(results.parent):
        content = _kept(results)
        content.setdefault(section, {})[part] = figures
        write_json(results, dict(sorted(content.items())))


def _kept(results: Path) -> Any:
    return read_json(results) if results.exists() else {}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder itself: a file for it could not be removed without a race."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
