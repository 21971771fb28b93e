"""Top-k attention inside the beam: both engines, fairseq's search, the criterion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_beam_search import (
    all_scores,
    assert_engines_agree,
    assert_same_hypotheses,
    generated,
    hypotheses_of,
    run,
    settings,
)

__all__ = ["settings"]  # a fixture
CASES = {
    "transformer": ("transformer_topk", dict(topk_attentions="cross,decoder,encoder")),
    "transformer-hard": (
        "transformer_topk",
        dict(topk_operator="hard", topk_k=3, topk_attentions="cross,decoder"),
    ),
    "lstm": ("lstm_topk", {}),
}


@pytest.fixture(params=list(CASES))
def model(request: pytest.FixtureRequest, make_model: Any) -> Any:
    arch, options = CASES[request.param]
    return make_model(arch, **{"topk_k": 2.5, "topk_epsilon": 0.7, **options})


def test_both_engines_give_the_same_losses_and_gradients(
    model, sentences, collate, settings
):
    assert_engines_agree(model, collate(sentences), settings, 1e-4)


def test_the_search_in_training_equals_fairseqs(
    model, task, sentences, collate, settings
):
    sample = collate(sentences)
    with torch.no_grad():
        required = all_scores(gold=False, gold_first=False)
        trace = run("rollout", model.eval(), sample, settings, required)
    expected = generated(
        model, task, sample, beam_size=3, len_penalty=1.0, max_len_a=0, max_len_b=12
    )
    assert_same_hypotheses(hypotheses_of(trace, settings, 1.0), expected)


@pytest.mark.parametrize(
    "options",
    [
        dict(beam_loss="risk=1,survival=0.1"),
        dict(beam_loss="slot-ce", mixing="soft", epsilon=1.0),
        dict(beam_loss="risk", beam_dropout="shared", engine="two-pass"),
    ],
    ids=["risk", "paper", "shared-dropout"],
)
def test_the_beam_loss_reaches_every_parameter(
    model, options, make_criterion, sentences, collate
):
    loss, _, _ = make_criterion(rho=0.0, **options)(model, collate(sentences))
    loss.backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all(), name
        # A constant added to all scores of a row changes no weight.
        assert gradient.any() or name.endswith("k_proj.bias"), name
