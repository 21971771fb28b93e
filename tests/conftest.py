"""Shared fixtures: a tiny translation task, real models and batches of it."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from random_models import create_model

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

torch.set_num_threads(1)


# A training that takes seconds; `max_tokens` and its length are to be added.
TINY_TRAINING = {
    "arch": "lstm", "encoder_embed_dim": 8, "decoder_embed_dim": 8,
    "encoder_hidden_size": 8, "decoder_hidden_size": 8, "decoder_out_embed_dim": 8,
    "optimizer": "adam", "lr": 0.01, "no_epoch_checkpoints": True, "cpu": True,
}  # fmt: skip


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave out the soak tests, which take an hour, unless ``-m`` asks for them."""
    if "soak" not in config.option.markexpr:
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


def run_module(module: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ARGS`` in the repository and capture its output."""
    command = [sys.executable, "-m", module, *map(str, args)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def write_reversal_corpus(folder: Path, *, sentences: int, seed: int) -> None:
    """Write train and valid text whose target is the source reversed."""
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(30)]
    for split, count in (("train", sentences), ("valid", 20)):
        lines = [rng.choices(words, k=rng.randint(2, 9)) for _ in range(count)]
        for language, step in (("xx", 1), ("yy", -1)):
            text = "".join(" ".join(line[::step]) + "\n" for line in lines)
            (folder / f"{split}.{language}").write_text(text)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``fairseq-train``: 30 words, 200 sentences, xx -> yy."""
    folder = tmp_path_factory.mktemp("tiny")
    write_reversal_corpus(folder, sentences=200, seed=1)
    result = run_module(
        "fairseq_cli.preprocess", "--source-lang", "xx", "--target-lang", "yy",
        "--trainpref", folder / "train", "--validpref", folder / "valid",
        "--testpref", folder / "valid", "--destdir", folder / "bin",
        "--joined-dictionary",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "bin"


@pytest.fixture(scope="session")
def task(tiny_data: Path) -> Any:
    """fairseq's translation task on the tiny data, with the plug-in registered."""
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    import fairseq_plugins

    fairseq_plugins.register()
    cfg = TranslationConfig(data=str(tiny_data), source_lang="xx", target_lang="yy")
    cfg.dataset_impl = None
    cfg.train_subset = "train"
    cfg.required_seq_len_multiple = 1
    task = TranslationTask.setup_task(cfg)
    task.load_dataset("train")
    return task


@pytest.fixture(scope="session")
def sentences(task: Any) -> list[Any]:
    """Sixteen training sentences of different lengths."""
    dataset = task.dataset("train")
    return [dataset[i] for i in range(16)]


@pytest.fixture
def collate(task: Any) -> Callable[[list[Any]], dict[str, Any]]:
    return lambda items: task.dataset("train").collater(items)


_SIZES = {
    "lstm": dict(
        encoder_embed_dim=16, decoder_embed_dim=16, encoder_hidden_size=16,
        decoder_hidden_size=16, decoder_out_embed_dim=16, encoder_bidirectional=False,
    ),
    "transformer": dict(
        encoder_embed_dim=16, encoder_ffn_embed_dim=32, encoder_layers=2,
        encoder_attention_heads=2, decoder_layers=2, decoder_attention_heads=2,
    ),
}  # fmt: skip


@pytest.fixture(params=["lstm", "transformer"])
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def trained_weights(task: Any) -> dict[str, Any]:
    """Weights by architecture after 60 updates; the reference is sometimes in the beam.

    With initial weights all words are about equally likely, so that rounding would
    decide every search.
    """
    from fairseq.criterions.cross_entropy import CrossEntropyCriterion

    dataset, criterion = task.dataset("train"), CrossEntropyCriterion(task, False)
    weights = {}
    for arch in _SIZES:
        model = _build(task, arch)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for update in range(60):
            start = 32 * update % 160
            sample = dataset.collater([dataset[start + i] for i in range(32)])
            optimizer.zero_grad()
            loss, size, _ = criterion(model, sample)
            (loss / size).backward()
            optimizer.step()
        weights[arch] = model.state_dict()
    return weights


@pytest.fixture
def make_model(task: Any, trained_weights: dict[str, Any]) -> Callable[..., Any]:
    """Return a small trained model: ``make_model(arch, dropout=0.0)``.

    An architecture with top-k attention gets the weights of the ordinary one.
    """

    def make(arch: str, **options: Any) -> Any:
        model = _build(task, arch, **options)
        model.load_state_dict(trained_weights[arch.removesuffix("_topk")])
        return model.train()

    return make


def _build(task: Any, arch: str, **options: Any) -> Any:
    sizes = _SIZES[arch.removesuffix("_topk")]
    return create_model(task, arch, seed=3, **{"dropout": 0.0, **options, **sizes})


@pytest.fixture
def make_criterion(task: Any) -> Callable[..., Any]:
    """Build the criterion as fairseq does: ``make_criterion(rho=0.5)``."""
    from omegaconf import OmegaConf

    from fairseq_plugins.criterions.options import SoftBeamSearchConfig
    from fairseq_plugins.criterions.soft_beam_search import SoftBeamSearchCriterion

    def make(**options: Any) -> Any:
        cfg = OmegaConf.structured(SoftBeamSearchConfig(**options))
        cfg.sentence_avg = options.get("sentence_avg", False)
        return SoftBeamSearchCriterion.build_criterion(cfg, task).train()

    return make
