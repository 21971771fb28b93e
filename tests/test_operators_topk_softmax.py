"""Attention weights restricted softly to the k best positions."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from fairseq_plugins.operators import hard_topk_softmax, soft_topk_logits, topk_softmax


def by_definition(scores: torch.Tensor, k: int, epsilon: float) -> torch.Tensor:
    """Return softmax(f + log A) by the operator that sorts, in float64."""
    logits = soft_topk_logits(scores.double(), k, epsilon=epsilon)
    return torch.softmax(scores.double() + logsigmoid(logits), -1)


def some_scores(
    rows: int, length: int, *, scale: float, dtype: torch.dtype
) -> torch.Tensor:
    """Return rows with masked entries, ties and, in some of them, few entries."""
    generator = torch.Generator().manual_seed(length)
    scores = scale * torch.randn(rows, length, generator=generator, dtype=dtype)
    scores[: rows // 4] = (2 * scores[: rows // 4]).round()
    masked = torch.rand(rows, length, generator=generator) < 0.3
    masked[rows // 2 : rows // 2 + 5, 2:] = True
    masked[:, 0] = False
    return scores.masked_fill(masked, -math.inf)


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 3e-6), (torch.float64, 1e-12)]
)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("length, k", [(12, 5), (64, 8), (100, 1), (64, 40)])
def test_weights_are_softmax_of_scores_plus_log_memberships(
    length, k, epsilon, scale, dtype, tolerance
):
    scores = some_scores(200, length, scale=scale, dtype=dtype)
    weights = topk_softmax(scores, k, epsilon=epsilon)
    expected = by_definition(scores, k, epsilon)
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=tolerance)


@pytest.fixture
def checks(monkeypatch):
    """The results of the checks for convergence, one per step."""
    module = sys.modules[topk_softmax.__module__]
    results: list[bool] = []
    is_over = module._is_over

    def record(*arguments):
        results.append(is_over(*arguments))
        return results[-1]

    monkeypatch.setattr(module, "_is_over", record)
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 1.0, 100.0])
def test_every_row_converges_long_before_the_last_step(dtype, scale, epsilon, checks):
    topk_softmax(some_scores(300, 50, scale=scale, dtype=dtype), 5, epsilon=epsilon)
    assert checks[-1] and len(checks) <= 60


def test_an_ordinary_attention_needs_few_steps(checks):
    torch.manual_seed(0)
    topk_softmax(2 * torch.randn(1000, 64), 8, epsilon=1.0)
    assert len(checks) <= 6


@pytest.mark.parametrize("learned", [False, True])
def test_gradients_are_those_of_finite_differences(learned):
    torch.manual_seed(1)
    scores = torch.randn(5, 8, dtype=torch.float64)
    scores[0, 3:] = -math.inf  # no more than k entries
    scores[1, 5:] = -math.inf
    valid = scores.isfinite()
    k = torch.tensor([3.5, 2.5, 1.0, 6.3, 2.0], dtype=torch.float64)
    epsilon = torch.tensor([0.5, 1.0, 2.0, 0.3, 5.0], dtype=torch.float64)

    def weights(entries, k, epsilon):
        full = torch.full_like(scores, -math.inf).masked_scatter(valid, entries)
        return topk_softmax(full, k, epsilon=epsilon)

    arguments = (scores[valid].requires_grad_(), k, epsilon)
    for value in (k, epsilon):
        value.requires_grad_(learned)
    assert torch.autograd.gradcheck(weights, arguments)


def test_blocks_of_rows_change_nothing(monkeypatch):
    module = sys.modules[topk_softmax.__module__]
    scores = some_scores(50, 20, scale=2.0, dtype=torch.float64).requires_grad_()
    whole = topk_softmax(scores, 4, epsilon=0.5)
    (expected,) = torch.autograd.grad(whole.square().sum(), scores)
    monkeypatch.setattr(module, "BLOCK", 60)
    blocks = topk_softmax(scores, 4, epsilon=0.5)
    (gradient,) = torch.autograd.grad(blocks.square().sum(), scores)
    torch.testing.assert_close(blocks, whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@given(
    length=st.integers(1, 20),
    k=st.integers(1, 25),
    epsilon=st.floats(1e-3, 1e3),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 50.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_weights_sum_to_1_in_the_order_of_the_scores(length, k, epsilon, scale, seed):
    torch.manual_seed(seed)
    scores = scale * torch.randn(4, length, dtype=torch.float64)
    weights = topk_softmax(scores, k, epsilon=epsilon)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, dtype=torch.float64))
    ordered = weights.gather(-1, scores.argsort(-1))
    assert (ordered.diff(dim=-1) >= -1e-12).all()
    # No position in the top k has less of the whole than an ordinary softmax gives it.
    best = scores.argmax(-1, keepdim=True)
    plain = torch.softmax(scores, -1)
    assert (weights.gather(-1, best) >= plain.gather(-1, best) - 1e-12).all()


def test_limits_of_epsilon_are_hard_top_k_and_softmax():
    torch.manual_seed(2)
    scores = torch.randn(20, 30, dtype=torch.float64)
    narrow = topk_softmax(scores, 6, epsilon=1e-5)
    torch.testing.assert_close(narrow, hard_topk_softmax(scores, 6), rtol=0, atol=1e-6)
    wide = topk_softmax(scores, 6, epsilon=1e7)
    torch.testing.assert_close(wide, torch.softmax(scores, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_with_no_more_than_k_entries_are_softmax_bit_for_bit(dtype):
    scores = torch.randn(6, 10).to(dtype)
    scores[:3, 4:] = -math.inf
    plain = torch.softmax(scores, -1, dtype=torch.float32)
    for function in (lambda k: topk_softmax(scores, k, epsilon=0.5),
                     lambda k: hard_topk_softmax(scores, k)):  # fmt: skip
        assert torch.equal(function(10), plain)
    weights = topk_softmax(scores, 4, epsilon=0.5)
    assert torch.equal(weights[:3], plain[:3])
    assert not torch.equal(weights[3:], plain[3:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_get_the_weights_of_their_rounded_values(dtype):
    scores = (4 * torch.randn(20, 40)).to(dtype).requires_grad_()
    weights = topk_softmax(scores, 5, epsilon=0.5)
    assert weights.dtype == torch.float32
    expected = by_definition(scores.detach(), 5, 0.5)
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=3e-6)
    weights.square().sum().backward()
    assert scores.grad.dtype == dtype and scores.grad.isfinite().all()


def test_masked_positions_have_no_weight_gradient_or_influence():
    scores = torch.randn(3, 7, dtype=torch.float64)
    padded = torch.cat([scores, torch.full((3, 4), -math.inf)], -1).requires_grad_()
    weights = topk_softmax(padded, 3, epsilon=1.0)
    assert torch.equal(weights[:, 7:], torch.zeros(3, 4, dtype=torch.float64))
    torch.testing.assert_close(weights[:, :7], topk_softmax(scores, 3, epsilon=1.0))
    weights[:, :2].sum().backward()
    assert torch.equal(padded.grad[:, 7:], torch.zeros(3, 4, dtype=torch.float64))
    # A finite mask such as fairseq's -1e8 is as good.
    finite = padded.detach().clamp_min(-1e8)
    torch.testing.assert_close(topk_softmax(finite, 3, epsilon=1.0), weights.detach())


def test_a_fully_masked_row_is_nan_as_in_softmax_and_the_others_are_not():
    scores = torch.randn(3, 7)
    expected = topk_softmax(scores, 2, epsilon=1.0)
    scores[1] = -math.inf
    weights = topk_softmax(scores, 2, epsilon=1.0)
    assert weights[1].isnan().all() and torch.equal(weights[::2], expected[::2])


def test_hard_weights_are_softmax_over_the_k_largest():
    scores = torch.tensor([[1.0, 3.0, 2.0, 0.0]], requires_grad=True)
    weights = hard_topk_softmax(scores, 2)
    share = 1 / (1 + math.exp(-1.0))
    torch.testing.assert_close(weights, torch.tensor([[0.0, share, 1 - share, 0.0]]))
    weights[0, 1].backward()
    assert scores.grad[0, 0] == scores.grad[0, 3] == 0 and scores.grad[0, 1] > 0


@pytest.mark.parametrize("k", [0, -1.0, math.nan, math.inf])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"`k` must be a positive number, but is {k}"):
        topk_softmax(torch.zeros(2, 3), k, epsilon=1.0)


def test_an_epsilon_out_of_range_is_refused():
    with pytest.raises(ValueError, match="`epsilon` must be a positive number"):
        topk_softmax(torch.zeros(2, 3), 1, epsilon=0.0)
