"""Attention weights by head."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from plot_attention import (
    attention_by_head,
    cross_attention,
    entropy,
    weight_outside,
)

from fairseq_plugins.utils.errors import UserError


def test_entropy_and_weight_outside_of_known_weights():
    weights = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([1.5 * math.log(2), 0.0])
    torch.testing.assert_close(entropy(weights), expected)
    torch.testing.assert_close(weight_outside(weights, 1), torch.tensor([0.5, 0.0]))
    assert not weight_outside(weights, 4).any()


def test_weights_by_head_average_to_those_that_fairseq_returns(
    make_model, sentences, collate
):
    sample = collate(sentences)
    for arch, options in (("transformer", {}), ("transformer_topk", {"topk_k": 2.5})):
        model = make_model(arch, **options).eval()
        weights = cross_attention(model, sample)
        assert weights.shape[:2] == (2, 2)
        returned = model(**sample["net_input"])[1]["attn"][0]
        torch.testing.assert_close(weights[-1].mean(0), returned)
        assert not any(part._forward_hooks for part in model.modules())


def test_means_over_words_do_not_depend_on_batches(make_model, sentences, collate):
    model = make_model("transformer_topk", topk_operator="hard", topk_k=2)
    together = attention_by_head(model, [collate(sentences)], k=2)
    apart = attention_by_head(model, [collate([item]) for item in sentences], k=2)
    for one, other in zip(together, apart, strict=True):
        assert one["entropy"] == pytest.approx(other["entropy"], rel=1e-4)
        assert 0 < one["entropy"] <= math.log(2)
        assert one["outside"] == pytest.approx(0.0, abs=1e-6)


def test_a_model_without_such_attention_is_refused(make_model, sentences, collate):
    with pytest.raises(UserError, match="must be a Transformer, but .* LSTMDecoder"):
        cross_attention(make_model("lstm"), collate(sentences))
    nothing = SimpleNamespace(decoder=SimpleNamespace(layers=[]))
    with pytest.raises(UserError, match="must be a Transformer"):
        cross_attention(nothing, {})
