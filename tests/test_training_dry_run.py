"""A dry run finds what would end a training, and names it with the rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_TRAINING

from fairseq_plugins.training.dry_run import check_training
from fairseq_plugins.training.launch import build_command
from fairseq_plugins.utils.errors import UserError

BEAM = {"criterion": "soft_beam_search"}
TRANSFORMER = {
    "arch": "transformer", "encoder_hidden_size": None, "decoder_hidden_size": None,
    "decoder_out_embed_dim": None,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, tiny_data: Path) -> dict[str, Any]:
    return {"data": str(tiny_data), "run": str(tmp_path / "run"), **TINY_TRAINING,
            "max_tokens": 300}  # fmt: skip


def check(config: dict[str, Any], change: dict[str, Any], **options: bool) -> None:
    changed = {**config, **change}
    changed = {key: value for key, value in changed.items() if value is not None}
    check_training(changed, build_command(changed), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({**BEAM, "rho": 1.5}, "`--rho` must be between 0 and 1, but is 1.5."),
        ({**BEAM, "beam_loss": "riks"}, "has `riks`. Did you mean `risk`?"),
        ({**BEAM, "beam": 1}, "`--beam` must be at least 2 with risk"),
        ({"dropout": 1.5}, "`dropout` must be between 0 and 1, but is 1.5."),
        ({"encoder_layers": 0}, "`encoder_layers` must be positive, but is 0."),
        ({"lr": -1}, "`lr` must be 0 or more, but is -1"),
        ({"update_freq": 0}, "`update_freq` must be positive, but is 0."),
        (
            {**TRANSFORMER, "encoder_attention_heads": 3},
            "`encoder_attention_heads` must divide `encoder_embed_dim` (8), but is 3.",
        ),
        (
            {"max_tokens": 5},
            "`max_tokens` must be at least 10, the length of the longest sentence",
        ),
        (
            {"best_checkpoint_metric": "bleu"},
            "`eval_bleu` must be true with `best_checkpoint_metric: bleu`, but is not",
        ),
        (
            {"best_checkpoint_metric": "bleu", "eval_bleu": True},
            "`maximize_best_checkpoint_metric` must be true with",
        ),
    ],
)
def test_a_wrong_value_is_found_without_a_model(
    config: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        check(config, change)
    assert message in str(error.value)
    assert ".." not in str(error.value) and "?." not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_hidden_size": 7, "encoder_freeze_embed": True}, None),
        ({"arch": "lstm_topk", "topk_k": 0}, "`--topk-k` must be"),
        (
            {"encoder_embed_path": "/no/file"},
            "fairseq cannot make the model of this configuration: ",
        ),
    ],
)
def test_a_dry_run_builds_the_model_and_computes_a_loss(
    config: dict[str, Any], change: dict[str, Any], message: str | None
) -> None:
    if message is None:
        check(config, {**BEAM, **change}, build_model=True)
        return
    with pytest.raises(UserError) as error:
        check(config, change, build_model=True)
    assert message in str(error.value)


def test_the_vocabulary_of_the_initial_checkpoint_must_be_that_of_the_data(
    config: dict[str, Any], tmp_path: Path
) -> None:
    start = tmp_path / "start.pt"
    model = {"encoder.embed_tokens.weight": torch.zeros(99, 8)}
    torch.save({"model": model}, start)
    with pytest.raises(UserError, match="has 99 subwords and the dictionary 40"):
        check(config, {"start_from": str(start)})


def test_another_criterion_than_that_of_the_last_checkpoint_is_refused(
    config: dict[str, Any],
) -> None:
    last = Path(config["run"]) / "checkpoints" / "checkpoint_last.pt"
    last.parent.mkdir(parents=True)
    history = [{"criterion_name": "CrossEntropyCriterion"}]
    torch.save({"optimizer_history": history}, last)
    check(config, {"criterion": "cross_entropy"})
    with pytest.raises(UserError, match="use a new `run` and `start_from: "):
        check(config, {"criterion": "label_smoothed_cross_entropy"})
