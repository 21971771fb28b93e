"""The architecture of ``start_from`` completes a configuration or contradicts it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_plugins.training.launch import add_architecture
from fairseq_plugins.utils.errors import UserError

OPTIONS = {"optimizer": "adam", "max_tokens": 100}


def save(folder: Path, **model: Any) -> dict[str, Any]:
    """Write a checkpoint with these options; return a configuration to continue it."""
    start = folder / "start.pt"
    torch.save({"model": {}, "cfg": {"model": Namespace(**model)}}, start)
    return {"data": "d", "run": "r", "start_from": str(start), **OPTIONS}


@pytest.fixture
def transformer(tmp_path: Path) -> dict[str, Any]:
    return save(
        tmp_path, arch="transformer", encoder_layers=2, decoder_layers=2, dropout=0.3,
        share_all_embeddings=True, share_decoder_input_output_embed=True,
    )  # fmt: skip


def test_architecture_and_sizes_come_from_the_checkpoint(
    task: object, transformer: dict[str, Any]
) -> None:
    added = {"arch": "transformer", "encoder_layers": 2, "decoder_layers": 2,
             "share_all_embeddings": True,
             "share_decoder_input_output_embed": True}  # fmt: skip
    completed = add_architecture(transformer, recorded=None)
    assert completed == {**transformer, **added}


def test_a_repeated_architecture_adds_nothing(
    task: object, transformer: dict[str, Any]
) -> None:
    config = {**transformer, "arch": "transformer", "encoder_layers": 2,
              "decoder_layers": 2, "share_all_embeddings": True}  # fmt: skip
    assert add_architecture(config, recorded=None) == config


def test_top_k_attention_may_continue_from_the_plain_model(
    task: object, transformer: dict[str, Any]
) -> None:
    config = {**transformer, "arch": "transformer_topk", "topk_k": 4}
    completed = add_architecture(config, recorded=None)
    assert completed["arch"] == "transformer_topk"
    assert completed["encoder_layers"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder_layers": 4},
            "`encoder_layers` must be 2 as in `start_from`, but is",
        ),
        (
            {"arch": "lstm"},
            "`arch` must be transformer as in `start_from`, but is lstm",
        ),
    ],
)
def test_a_contradiction_names_both_values(
    task: object, transformer: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        add_architecture({**transformer, **change}, recorded=None)


def test_text_and_number_of_one_option_are_equal(task: object, tmp_path: Path) -> None:
    config = save(tmp_path, arch="lstm", decoder_attention="1", encoder_layers=1)
    config = {**config, "arch": "lstm", "decoder_attention": True}
    assert add_architecture(config, recorded=None) == config


def test_without_the_checkpoint_the_run_knows_its_architecture(
    transformer: dict[str, Any],
) -> None:
    Path(transformer["start_from"]).unlink()
    recorded = {**transformer, "arch": "transformer", "encoder_layers": 2, "lr": 7}
    assert add_architecture(transformer, recorded=recorded) == {
        **transformer, "arch": "transformer", "encoder_layers": 2
    }  # fmt: skip


def test_a_checkpoint_without_options_is_named(tmp_path: Path) -> None:
    config = save(tmp_path)
    with pytest.raises(UserError, match="start.pt` must hold the options of its model"):
        add_architecture(config, recorded=None)
