"""SOFT top-k converges for every epsilon, k and kind of scores, against bisection."""

from __future__ import annotations

import math

import pytest
import torch

from fairseq_plugins.operators import soft_topk

EPSILONS = (1e-6, 1e-4, 1e-2, 0.1, 1.0, 10.0, 1e3)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(28)


def bisected(scores, k, epsilon):
    """Memberships in float64, halving in units of the temperature around the best."""
    values = scores.double()
    values = 2 * (values - values.amax(-1, keepdim=True)) / epsilon
    low = values.amin(-1, keepdim=True) - 40
    high = torch.full_like(low, 40.0)
    for _ in range(120):
        middle = (low + high) / 2
        too_many = torch.sigmoid(values - middle).sum(-1, keepdim=True) > k
        low = torch.where(too_many, middle, low)
        high = torch.where(too_many, high, middle)
    return torch.sigmoid(values - (low + high) / 2)


def kinds_of_scores(rng, n):
    plain = torch.randn(3, n, generator=rng)
    steps = torch.arange(n).expand(3, n)
    return {
        "normal": plain,
        "equal": torch.full_like(plain, -200.0),
        "two values": (steps % 3 == 0).float(),
        "tied": (2 * plain).round() / 2,
        "geometric": 2.0 ** -(steps % 60),
        "ladder": -0.7 * steps,
        "one far above": plain.index_fill(1, torch.tensor([0]), 1e4),
        "one far below": plain.index_fill(1, torch.tensor([0]), -1e4),
        "huge": 1e4 * plain,
        "near ties": 1.0 + 1e-6 * plain,
    }


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("n", [2, 40, 256, 300])
def test_every_epsilon_and_kind_of_scores_converges(epsilon, n, rng):
    for kind, scores in kinds_of_scores(rng, n).items():
        for k in sorted({1, 2, n // 2, n - 1} - {n}):
            exact = bisected(scores, k, epsilon)
            rough = soft_topk(scores, k, epsilon=epsilon).double()
            assert (rough - exact).abs().max() < 1e-6, (kind, k)
            fine = soft_topk(scores.double(), k, epsilon=epsilon)
            assert (fine.sum(-1) - k).abs().max() < 1e-13 * n, (kind, k)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_gradients_of_every_kind_are_finite_and_sum_to_zero(epsilon, rng):
    for kind, scores in kinds_of_scores(rng, 40).items():
        leaf = scores.double().requires_grad_()
        weights = torch.randn(3, 40, generator=rng).double()
        (soft_topk(leaf, 7, epsilon=epsilon) * weights).sum().backward()
        assert leaf.grad.isfinite().all(), kind
        assert leaf.grad.sum(-1).abs().max() <= 1e-10 / epsilon, kind


def test_gradient_of_a_hard_row_is_zero(rng):
    scores = torch.arange(12.0).expand(2, 12).clone().requires_grad_()
    soft_topk(scores, 3, epsilon=1e-4).square().sum().backward()
    assert torch.equal(scores.grad, torch.zeros(2, 12))


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_a_saturated_and_an_ordinary_row_may_share_a_batch(epsilon, rng):
    scores = torch.randn(3, 20, generator=rng)
    scores[0, 4:] = -math.inf
    scores[1] = -math.inf
    together = soft_topk(scores, 5, epsilon=epsilon)
    alone = soft_topk(scores[2], 5, epsilon=epsilon)
    assert torch.equal(together[:2], (scores[:2] > -math.inf).float())
    torch.testing.assert_close(together[2], alone, rtol=0, atol=1e-6)
