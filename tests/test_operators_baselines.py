"""Sinkhorn's iteration as an oracle, and the sorted operators behind one interface."""

from __future__ import annotations

import math

import pytest
import torch

from fairseq_plugins.operators import (
    SORTED_OPERATORS,
    get_sorted_operator,
    hard_topk,
    nested_soft_topk,
    neuralsort_topk,
    sinkhorn,
    sinkhorn_topk,
    soft_topk,
    softsort_topk,
    sorted_soft_topk,
)

EXACT = ("ot", "nested", "softsort", "neuralsort", "hard")


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(23)


@pytest.mark.parametrize("name", SORTED_OPERATORS)
def test_columns_sum_to_one_and_best_comes_first(name, rng):
    scores = torch.randn(2, 3, 9, generator=rng, dtype=torch.float64)
    assignment = get_sorted_operator(name)(scores, 4, epsilon=0.5)
    assert assignment.shape == (2, 3, 9, 4) and assignment.dtype == scores.dtype
    torch.testing.assert_close(assignment.sum(-2), torch.ones(2, 3, 4).double())
    assert (assignment >= 0).all()
    assert torch.equal(assignment[..., 0].argmax(-1), scores.argmax(-1))


@pytest.mark.parametrize("name", ["ot", "nested", "sinkhorn", "hard"])
def test_a_candidate_is_used_at_most_once(name, rng):
    scores = torch.randn(4, 9, generator=rng, dtype=torch.float64)
    assignment = get_sorted_operator(name)(scores, 4, epsilon=1.0)
    assert (assignment.sum(-1) <= 1 + 1e-8).all()


@pytest.mark.parametrize("name", EXACT)
def test_hard_limit_is_the_hard_operator(name, rng):
    scores = torch.randn(8, 9, generator=rng)
    limit = get_sorted_operator(name)(scores, 3, epsilon=1e-6, largest=False)
    torch.testing.assert_close(limit, hard_topk(scores, 3, largest=False))


@pytest.mark.parametrize("name", EXACT)
def test_a_mask_deletes_and_short_rows_leave_ranks_empty(name, rng):
    operator = get_sorted_operator(name)
    scores = torch.randn(3, 6, generator=rng)
    scores.requires_grad_(name != "hard")
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 0, 0], [0] * 6]).bool()
    assignment = operator(scores, 3, epsilon=0.5, mask=mask)
    short = operator(scores[0, mask[0]], 3, epsilon=0.5)
    torch.testing.assert_close(assignment[0, mask[0]], short)
    assert (assignment[~mask] == 0).all()
    expected = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]]).float()
    torch.testing.assert_close(assignment.sum(1), expected)
    if name != "hard":
        assignment.square().sum().backward()
        assert scores.grad.isfinite().all() and (scores.grad[~mask] == 0).all()


def test_published_sinkhorn_respects_a_mask(rng):
    scores = torch.randn(1, 6, generator=rng, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1]]).bool()
    masked = sinkhorn_topk(scores, 2, epsilon=2.0, mask=mask)
    exact = sorted_soft_topk(scores, 2, epsilon=2.0, mask=mask)
    torch.testing.assert_close(masked, exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", SORTED_OPERATORS)
def test_number_of_ranks_may_differ_by_row(name, rng):
    operator = get_sorted_operator(name)
    scores = torch.randn(4, 7, generator=rng, dtype=torch.float64)
    k = torch.tensor([2, 0, 4, 2])
    together = operator(scores, k, epsilon=1.0)
    assert together.shape == (4, 7, 4)
    for row, size in enumerate(k.tolist()):
        assert (together[row, :, size:] == 0).all()
        if size:
            alone = operator(scores[row], size, epsilon=1.0)
            torch.testing.assert_close(together[row, :, :size], alone)


def test_number_of_ranks_per_row_is_checked():
    scores = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="`k` must be between 1 and 4 .* but is 9"):
        sorted_soft_topk(scores, torch.tensor([2, 9]), epsilon=1.0)
    with pytest.raises(ValueError, match="`k` must hold integers"):
        sorted_soft_topk(scores, torch.tensor([2.0, 1.0]), epsilon=1.0)


def test_gradient_with_ranks_masks_and_epsilons_per_row(rng):
    scores = torch.randn(3, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    epsilon = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    k, mask = torch.tensor([2, 1, 3]), torch.tensor([True, True, True, False, True])
    for name in ("ot", "nested", "softsort", "neuralsort"):
        operator = get_sorted_operator(name)
        assert torch.autograd.gradcheck(
            lambda s, e: operator(s, k, epsilon=e, mask=mask), (scores, epsilon)
        )


def test_nested_ranks_add_up_to_memberships(rng):
    scores = torch.randn(4, 9, generator=rng, dtype=torch.float64)
    nested = nested_soft_topk(scores, 3, epsilon=0.4)
    torch.testing.assert_close(nested.sum(-1), soft_topk(scores, 3, epsilon=0.4))
    first = soft_topk(scores, 1, epsilon=0.4)
    torch.testing.assert_close(nested[..., 0], first)


def test_softsort_is_its_formula():
    scores = torch.tensor([0.3, 2.0, 1.1])
    expected = torch.softmax(-(2.0 - scores).abs() / 0.5, 0)
    torch.testing.assert_close(softsort_topk(scores, 2, epsilon=1.0)[:, 0], expected)


def test_neuralsort_is_its_formula(rng):
    scores = torch.randn(2, 7, generator=rng, dtype=torch.float64)
    distances = (scores.unsqueeze(-1) - scores.unsqueeze(-2)).abs().sum(-1)
    slopes = 8 - 2 * torch.arange(1, 4)
    logits = slopes * scores.unsqueeze(-1) - distances.unsqueeze(-1)
    expected = torch.softmax(logits / 0.5, 1)
    torch.testing.assert_close(neuralsort_topk(scores, 3, epsilon=1.0), expected)


def test_nan_affects_only_its_row():
    scores = torch.randn(2, 5)
    scores[0, 1] = math.nan
    for name in ("ot", "nested", "softsort", "neuralsort"):
        assignment = get_sorted_operator(name)(scores, 2, epsilon=0.5)
        assert assignment[0].isnan().any() and assignment[1].isfinite().all()


def test_the_error_for_an_unknown_operator_lists_the_known_ones():
    with pytest.raises(ValueError, match="one of ot, nested, .* but is 'sofsort'"):
        get_sorted_operator("sofsort")


def test_published_sinkhorn_refuses_an_epsilon_per_row():
    with pytest.raises(ValueError, match="`epsilon` must be a number"):
        sinkhorn_topk(torch.zeros(2, 4), 2, epsilon=torch.ones(2))


@pytest.fixture
def problem():
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(24)).double()
    return scores, torch.tensor([0.0, 0.5, 2.0]).double(), torch.tensor([2.0, 1, 4])


def test_plan_meets_row_and_column_sums_within_its_residual(problem):
    result = sinkhorn(*problem, epsilon=0.7, tolerance=1e-9)
    rows, columns = result.plan.sum(-1), result.plan.sum(-2)
    assert (result.residual <= 1e-9).all() and result.iterations < 1000
    torch.testing.assert_close((rows - 1).abs().amax(-1), result.residual)
    torch.testing.assert_close(columns, problem[2].double().expand(3, 3))


def test_plan_has_the_form_that_is_optimal(problem):
    scores, anchors, _ = problem
    plan = sinkhorn(*problem, epsilon=0.7).plan
    cost = (scores.unsqueeze(-1) - anchors).square()
    potentials = plan.log() + cost / 0.7  # must be f_i + g_j
    mixed = potentials - potentials[:, :1] - potentials[..., :1]
    spread = (mixed + potentials[:, :1, :1]).abs().max()
    assert spread < 1e-10


def test_unfinished_iterations_are_reported(problem):
    result = sinkhorn(*problem, epsilon=0.001, max_iterations=25)
    assert result.iterations == 25 and result.residual.max() > 1e-3


def test_masked_scores_go_to_the_last_anchor(problem):
    scores, anchors, capacities = problem
    mask = torch.tensor([True] * 5 + [False] * 2)
    masked = sinkhorn(*problem, epsilon=0.7, mask=mask).plan
    short = sinkhorn(scores[:, :5], anchors, torch.tensor([2.0, 1, 2]), epsilon=0.7)
    torch.testing.assert_close(masked[:, :5], short.plan, rtol=0, atol=1e-10)
    assert (masked[:, 5:, :2] == 0).all()


@pytest.mark.parametrize(
    "anchors, capacities, epsilon, message",
    [
        ([0.0, 1.0], [2.0, 1.0, 4.0], 1.0, r"shapes \(2,\) and \(3,\)"),
        ([0.0, 1.0], [2.0, 1.0], 1.0, "`capacities` must sum to 7 .* but sum to 3"),
        ([0.0, 1.0], [3.0, 4.0], -1.0, "`epsilon` must be a positive number"),
    ],
)
def test_wrong_problems_are_refused(problem, anchors, capacities, epsilon, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(
            problem[0], torch.tensor(anchors), torch.tensor(capacities), epsilon=epsilon
        )


def test_neuralsort_is_exact_in_float32_at_every_scale(rng):
    scores = 1e4 * torch.randn(4, 40, generator=rng)
    for epsilon in (1e-6, 1.0, 1e4, 1e6):
        rough = neuralsort_topk(scores, 5, epsilon=epsilon)
        exact = neuralsort_topk(scores.double(), 5, epsilon=epsilon)
        torch.testing.assert_close(rough.double(), exact, rtol=0, atol=2e-6)
