"""Sorted SOFT top-k, exactly (Xie et al., 2020, arXiv:2002.06504, section 2.4).

The entropic optimal-transport plan between n scores and the k + 1 targets "rank 1",
..., "rank k", "not selected". Its k dual unknowns are found by Newton's method (see
`rank_thresholds`); the gradient needs one k x k solve and no iteration.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import check_k, effective_scores, full_precision, scale_by_epsilon
from .per_row import for_each_k
from .rank_thresholds import (
    add_from_left_,
    add_from_right_,
    covariance,
    plan_from,
    shares,
    solve_rank_thresholds,
)

__all__ = ["SortedSoftTopKFunction", "sorted_soft_topk"]


def sorted_soft_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
) -> Tensor:
    """Return the assignment of candidates to ranks 1..k, best first.

    Columns sum to 1 over the candidates; what a candidate's row lacks of 1 is not
    selected. As ``epsilon`` tends to 0 column l becomes the one-hot of the l-th best. A
    deleted entry (masked, or -inf) has a row of zeros. With only m < k others, the
    first m columns sum to 1 and the remaining ones are zero.

    Args:
        scores, epsilon, mask: as in `soft_topk`.
        k: how many ranks, 1 <= k <= n; or a tensor of integers from 0 to n that
            broadcasts to shape (...): columns after a row's own k are then zero.
        largest: False ranks the smallest first.

    Returns:
        assignment, shape (..., n, k), dtype of ``scores``.

    Raises:
        ValueError: an argument is out of its range.
    """
    if isinstance(k, Tensor):
        return for_each_k(
            sorted_soft_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest
        )
    values = effective_scores(scores, mask, largest)
    num_candidates = values.size(-1)
    check_k(k, num_candidates)
    values, epsilon = scale_by_epsilon(values, epsilon)
    rows = values.reshape(-1, num_candidates)
    plan = SortedSoftTopKFunction.apply(rows, k, epsilon / 2)
    assignment = plan[:-1].permute(2, 1, 0).to(scores.dtype)
    return assignment.reshape(*scores.shape, k)


class SortedSoftTopKFunction(torch.autograd.Function):
    """The plan, (k + 1, n, rows), of (rows, n) scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int, temperature: float) -> Tensor:
        with full_precision(scores):
            centre, offset = solve_rank_thresholds(scores, k, temperature)
        steps = (scores.t().contiguous() - centre.unsqueeze(1)) / temperature
        plan = plan_from(steps - offset.unsqueeze(1))
        ctx.save_for_backward(plan)
        ctx.temperature = temperature
        return plan

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (plan,) = ctx.saved_tensors
        within, beyond = shares(plan)
        grad = grad.contiguous()
        rise = grad[:-1] - grad[1:]  # per unit moved from rank l + 1 to rank l
        with full_precision(plan):
            pull = _covariance_product(within, beyond, rise).sum(1)
            shift = _solve_scaled(covariance(within, beyond), pull)
        # Scores move all ranks at once: sum the covariance over its first index.
        later = add_from_right_(beyond.clone())
        earlier = add_from_left_(within.clone()) - within
        reach = within * later + beyond * earlier
        slope = (reach * (rise - shift.unsqueeze(1))).sum(0)
        return slope.t() / ctx.temperature, None, None


def _covariance_product(within: Tensor, beyond: Tensor, rise: Tensor) -> Tensor:
    """Return, per candidate, the covariance of the shares Q times ``rise``.

    ``cov(Q_l, Q_m) = Q_m R_l`` for m <= l, so the product takes two running sums.
    """
    before = add_from_left_(within * rise)
    after = beyond * rise
    after = add_from_right_(after.clone()) - after
    return beyond * before + within * after


def _solve_scaled(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve with the unit-diagonal form of ``matrix``, whose entries span decades.

    A rank without spread has a zero row and a zero right side: it gets 0.
    """
    finfo = torch.finfo(matrix.dtype)
    scale = matrix.diagonal().t().clamp_min(finfo.tiny).rsqrt()
    unit = (matrix * scale * scale.unsqueeze(1)).permute(2, 0, 1)
    ridge = finfo.eps * torch.eye(unit.size(-1), dtype=unit.dtype, device=unit.device)
    solution, _ = torch.linalg.solve_ex(unit + ridge, (right * scale).t().unsqueeze(-1))
    return solution.squeeze(-1).t() * scale
