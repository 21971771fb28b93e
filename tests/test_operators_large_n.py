"""SOFT top-k of long rows, and pools of candidates with an error bound."""

from __future__ import annotations

import math

import pytest
import torch

from fairseq_plugins.operators import pooled_soft_topk, soft_topk, soft_topk_logits
from fairseq_plugins.operators.threshold import (
    compute_memberships_and_logits,
    select_largest,
)

EPSILONS = (1e-6, 1e-3, 0.03, 0.1, 0.3, 1.0, 30.0, 1e4)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(22)


def reference(scores, k, epsilon):
    return compute_memberships_and_logits(scores.double(), k, epsilon / 2)[0]


def kinds_of_scores(rng, n):
    plain = torch.randn(3, n, generator=rng)
    return {
        "normal": plain,
        "equal": torch.full_like(plain, -200.0),
        "tied": (2 * plain).round() / 2,
        "one peak": plain - 50 * (torch.arange(n) > 6),
        "huge": 1e4 * plain,
        "mixed rows": torch.cat([plain[:1], 100 * plain[1:2], plain[2:] ** 3]),
    }


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_values_equal_those_without_shortcuts(epsilon, rng):
    for kind, scores in kinds_of_scores(rng, 5003).items():
        for k in (1, 7, 300):
            fast = soft_topk(scores, k, epsilon=epsilon)
            error = fast - reference(scores, k, epsilon)
            assert error.abs().max() < 1e-6, (kind, k)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_first_and_second_gradients_equal_those_without_shortcuts(epsilon, dtype, rng):
    scores = torch.randn(2, 5003, generator=rng).to(dtype)
    weights = torch.randn(2, 5003, generator=rng, dtype=torch.float64)
    gradients = []
    for operator in (soft_topk, reference):
        leaf = scores.to(dtype if operator is soft_topk else torch.float64)
        leaf = leaf.clone().requires_grad_()
        loss = (operator(leaf, 5, epsilon=epsilon) * weights).sum()
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (second,) = torch.autograd.grad((first * weights).sum(), leaf)
        gradients.append((first.double(), second.double()))
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    for fast, exact in zip(*gradients):
        assert (fast - exact).abs().max() <= tolerance * exact.abs().max()


def test_two_million_candidates_are_handled(rng):
    scores = torch.randn(1, 2_000_000, generator=rng, requires_grad=True)
    for epsilon in (0.01, 1.0):
        memberships = soft_topk(scores, 10, epsilon=epsilon)
        total = memberships.double().sum().item()
        assert total == pytest.approx(10, abs=1e-5)
        (gradient,) = torch.autograd.grad(memberships[0, :1000].sum(), scores)
        assert gradient.isfinite().all()


def test_masks_and_nan_are_treated_as_in_short_rows(rng):
    scores = torch.randn(4, 6000, generator=rng, requires_grad=True)
    mask = torch.ones(4, 6000, dtype=torch.bool)
    mask[0, 3:] = False
    mask[1, ::2] = False
    memberships = soft_topk(scores, 5, epsilon=0.2, mask=mask)
    assert torch.equal(memberships[0], mask[0].float())
    short = soft_topk(scores[1, mask[1]], 5, epsilon=0.2)
    torch.testing.assert_close(memberships[1, mask[1]], short, rtol=0, atol=1e-6)
    assert (memberships[~mask] == 0).all()
    memberships.square().sum().backward()
    assert scores.grad.isfinite().all() and (scores.grad[~mask] == 0).all()

    spoiled = scores.detach().clone()
    spoiled[2, 77] = math.nan
    memberships = soft_topk(spoiled, 5, epsilon=0.2)
    assert memberships[2].isnan().all() and memberships[[0, 1, 3]].isfinite().all()


def test_logits_of_long_rows_are_exact(rng):
    scores = torch.randn(2, 9000, generator=rng)
    logits = soft_topk_logits(scores, 5, epsilon=0.1)
    exact = compute_memberships_and_logits(scores.double(), 5, 0.05)[1]
    torch.testing.assert_close(logits.double(), exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("n", [4096, 5003, 20000])
@pytest.mark.parametrize("size", [1, 7, 60])
def test_select_largest_equals_topk(n, size, rng):
    scores = torch.randint(0, 500, (5, n), generator=rng).float()
    scores[0, :-3] = -math.inf
    scores[1, n - 1] = 1e9
    values, index = select_largest(scores, size)
    assert torch.equal(values, scores.topk(size).values)
    assert torch.equal(scores.gather(1, index), values)
    assert all(row.unique().numel() == size for row in index)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_pool_differs_from_all_by_no_more_than_its_bound(epsilon, tolerance, rng):
    for kind, scores in kinds_of_scores(rng, 20000).items():
        scores = scores.double()
        pooled = pooled_soft_topk(scores, 5, epsilon=epsilon, tolerance=tolerance)
        dense = torch.zeros_like(scores).scatter(1, pooled.members, pooled.memberships)
        error = (dense - reference(scores, 5, epsilon)).abs().amax(-1)
        assert (error <= pooled.bound + 1e-13).all(), kind
        assert (pooled.bound <= tolerance).all(), kind


def test_pool_grows_with_epsilon(rng):
    scores = torch.randn(2, 50_000, generator=rng)
    sizes = [
        pooled_soft_topk(scores, 5, epsilon=epsilon).members.size(-1)
        for epsilon in (0.01, 0.05, 0.1, 5.0)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < 1000 < sizes[2] < 50_000 == sizes[3]


def test_pooled_memberships_are_differentiable_and_keep_leading_shapes(rng):
    scores = torch.randn(2, 3, 6000, generator=rng, requires_grad=True)
    pooled = pooled_soft_topk(scores, 5, epsilon=0.01, largest=False)
    assert pooled.memberships.shape == pooled.members.shape
    assert pooled.members.shape[:2] == pooled.bound.shape == (2, 3)
    (gradient,) = torch.autograd.grad(pooled.memberships.square().sum(), scores)
    memberships = soft_topk(scores, 5, epsilon=0.01, largest=False)
    (expected,) = torch.autograd.grad(memberships.square().sum(), scores)
    torch.testing.assert_close(gradient, expected)


def test_wrong_arguments_of_the_pool_are_named():
    with pytest.raises(ValueError, match="`k` must be an integer here"):
        pooled_soft_topk(torch.zeros(2, 9), torch.tensor(3), epsilon=1.0)
    with pytest.raises(ValueError, match="`tolerance` must be positive, but is 0"):
        pooled_soft_topk(torch.zeros(2, 9), 3, epsilon=1.0, tolerance=0)
