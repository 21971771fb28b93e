"""Sorted SOFT top-k: assignments to ranks."""

from __future__ import annotations

import pytest
import torch

from fairseq_plugins.operators import sinkhorn, sorted_soft_topk

EPSILONS = (1e-4, 0.01, 0.1, 1.0, 30.0, 1e3)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(21)


def ranked_plan(scores, k, epsilon):
    anchors = torch.arange(k + 1, dtype=scores.dtype)
    capacities = torch.tensor([1] * k + [scores.size(-1) - k])
    return sinkhorn(-scores, anchors, capacities, epsilon=epsilon)


def kinds_of_scores(rng, dtype):
    plain = torch.randn(5, 14, generator=rng, dtype=dtype)
    beam = plain.clone()
    beam[:, 5:] -= 200 * torch.rand(5, 9, generator=rng, dtype=dtype)
    return {
        "plain": plain,
        "tied": (2 * plain).round() / 2,
        "equal": torch.full_like(plain, -200.0),
        "beam": beam,
        "huge": 1e4 * plain,
        "near ties": plain[:, :1] + 1e-5 * plain,
        "far from zero": 1e4 + 3e-3 * plain,
    }


@pytest.mark.parametrize("n, k, epsilon", [(12, 3, 1.0), (7, 6, 0.6), (20, 1, 0.5)])
def test_assignment_equals_the_converged_sinkhorn_plan(n, k, epsilon, rng):
    scores = torch.randn(3, n, generator=rng, dtype=torch.float64)
    oracle = ranked_plan(scores, k, epsilon)
    assert oracle.residual.max() < 1e-11
    exact = sorted_soft_topk(scores, k, epsilon=epsilon)
    torch.testing.assert_close(exact, oracle.plan[..., :k], rtol=0, atol=1e-10)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 20.0])
def test_first_and_second_derivatives_are_those_of_the_function(epsilon, rng):
    scores = torch.randn(2, 6, generator=rng, dtype=torch.float64, requires_grad=True)

    def function(values):
        return sorted_soft_topk(values, 3, epsilon=epsilon)

    assert torch.autograd.gradcheck(function, scores)
    assert torch.autograd.gradgradcheck(function, scores)


def test_epsilon_may_differ_by_row_and_has_a_gradient(rng):
    scores = torch.randn(2, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    epsilon = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)
    together = sorted_soft_topk(scores, 2, epsilon=epsilon)
    for row in range(2):
        alone = sorted_soft_topk(scores[row], 2, epsilon=epsilon[row].item())
        torch.testing.assert_close(together[row], alone)
    assert torch.autograd.gradcheck(
        lambda s, e: sorted_soft_topk(s, 2, epsilon=e), (scores, epsilon)
    )


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_every_epsilon_and_kind_of_scores_converges(epsilon, rng):
    for kind, scores in kinds_of_scores(rng, torch.float64).items():
        for k in (1, 5, 13, 14):
            exact = sorted_soft_topk(scores, k, epsilon=epsilon)
            error = (exact.sum(-2) - 1).abs().max()
            assert error < 1e-12, (kind, k)
            assert exact.sum(-1).max() < 1 + 1e-12, (kind, k)
            assert exact.min() >= 0, (kind, k)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_float32_is_exact_to_rounding_and_gradients_are_finite(epsilon, rng):
    for kind, scores in kinds_of_scores(rng, torch.float32).items():
        leaf = scores.clone().requires_grad_()
        rough = sorted_soft_topk(leaf, 5, epsilon=epsilon)
        exact = sorted_soft_topk(scores.double(), 5, epsilon=epsilon)
        assert (rough - exact).abs().max() < 1e-6, kind
        (rough * torch.randn(rough.shape, generator=rng)).sum().backward()
        assert leaf.grad.isfinite().all(), kind


@pytest.mark.parametrize("largest", [True, False])
def test_a_mask_deletes(largest, rng):
    scores = torch.randn(1, 9, generator=rng, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 0]).bool()
    options = {"epsilon": 0.4, "largest": largest}
    masked = sorted_soft_topk(scores, 3, mask=mask, **options)
    short = sorted_soft_topk(scores[:, mask], 3, **options)
    torch.testing.assert_close(masked[:, mask], short)
    assert (masked[:, ~mask] == 0).all()
    (from_masked,) = torch.autograd.grad(masked[0, 0, 0], scores)
    (from_short,) = torch.autograd.grad(short[0, 0, 0], scores)
    torch.testing.assert_close(from_masked, from_short)


@pytest.mark.parametrize("num_valid", [0, 1, 2, 3, 4])
def test_ranks_without_candidates_stay_empty(num_valid, rng):
    scores = torch.randn(2, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, num_valid:] = False
    assignment = sorted_soft_topk(scores, 4, epsilon=0.5, mask=mask)
    filled = (torch.arange(4) < num_valid).double()
    torch.testing.assert_close(assignment[0].sum(0), filled)
    torch.testing.assert_close(assignment[1].sum(0), torch.ones(4).double())
    torch.testing.assert_close(assignment[0].sum(-1), mask[0].double())
    (gradient,) = torch.autograd.grad((assignment[:, :2] ** 2).sum(), scores)
    assert gradient.isfinite().all() and gradient[1].abs().sum() > 0
    if num_valid > 1:
        short = sorted_soft_topk(scores[0, :num_valid], num_valid, epsilon=0.5)
        torch.testing.assert_close(assignment[0, :num_valid, :num_valid], short)


def test_largest_and_smallest_mirror_each_other(rng):
    scores = torch.randn(3, 9, generator=rng)
    smallest = sorted_soft_topk(scores, 3, epsilon=0.3, largest=False)
    assert torch.equal(smallest, sorted_soft_topk(-scores, 3, epsilon=0.3))


def test_shapes_and_dtypes_are_those_of_the_scores(rng):
    scores = torch.randn(2, 1, 3, 8, generator=rng)
    assignment = sorted_soft_topk(scores, 2, epsilon=0.5)
    assert assignment.shape == (2, 1, 3, 8, 2)
    half = sorted_soft_topk(scores.bfloat16(), 2, epsilon=0.5)
    assert half.dtype == torch.bfloat16
    assert sorted_soft_topk(scores[0, 0, 0], 2, epsilon=0.5).shape == (8, 2)
    assert sorted_soft_topk(torch.zeros(0, 5), 2, epsilon=1.0).shape == (0, 5, 2)


def test_k_out_of_range_is_refused():
    message = r"`k` must be between 1 and 4 \(the number of candidates\), but is 9\."
    with pytest.raises(ValueError, match=message):
        sorted_soft_topk(torch.zeros(2, 4), 9, epsilon=1.0)
