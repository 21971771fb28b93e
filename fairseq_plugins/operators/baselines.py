"""Other ways to select the k best, for comparison.

- Sinkhorn's iteration, ``P = diag(u) exp(-cost / epsilon) diag(v)`` with alternating
  updates of u and v: the published algorithm of SOFT (Xie et al., 2020), which moves
  scores to fixed anchors at squared cost. It returns how exact its result is, so it
  serves as an oracle. It is slow for a small epsilon.
- Nested SOFT top-k: column l is ``soft_topk(l) - soft_topk(l - 1)``. Memberships grow
  with k, so entries are not negative, columns sum to 1 and rows to at most 1. The k
  unknowns are independent, and ranks are slightly blurrier than in `sorted_soft_topk`.
- SoftSort (Prillo & Eisenschlos, 2020, arXiv:2006.16038), the k best ranks.
- NeuralSort (Grover et al., 2019, arXiv:1903.08850), the k best ranks.
- Hard top-k.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .arguments import (
    SortedOperator,
    apply_to_rows,
    check_epsilon,
    check_k,
    orient_scores,
    prepare_scores,
)
from .sorted_soft_topk import sorted_soft_topk
from .threshold import compute_memberships_and_logits

__all__ = [
    "SORTED_OPERATORS",
    "SinkhornResult",
    "get_sorted_operator",
    "hard_topk",
    "nested_soft_topk",
    "neuralsort_topk",
    "sinkhorn",
    "sinkhorn_topk",
    "softsort_topk",
]

CHECK_EVERY = 10  # iterations of `sinkhorn` between two checks of the residual
PUBLISHED_ITERATIONS = 200


class SinkhornResult(NamedTuple):
    """A plan with exact column sums and row sums within ``residual``."""

    plan: Tensor  # (..., n, number of anchors); rows sum to 1, not to 1 / n
    residual: Tensor  # (...), largest absolute error of a row sum
    iterations: int


def sinkhorn(
    scores: Tensor,
    anchors: Tensor,
    capacities: Tensor,
    *,
    epsilon: float,
    mask: Tensor | None = None,
    tolerance: float = 1e-12,
    max_iterations: int = 100_000,
) -> SinkhornResult:
    """Transport each score, of mass 1, to ``anchors`` of the given ``capacities``.

    The cost is ``(score - anchor) ** 2``, so the lowest anchor takes the smallest
    scores. The iteration runs in the log domain (Xie et al., 2020, algorithm 1).

    Args:
        scores: finite, float32 or float64, shape (..., n).
        anchors: positions of the targets, shape (m,).
        capacities: positive, shape (m,), with sum n.
        epsilon: entropic regularization, in squared score units.
        mask: shape (..., n); where False, all mass goes to the last anchor.
        tolerance: stop when every row sum is within this distance of 1.
        max_iterations: stop after this number of iterations in any case.

    Raises:
        ValueError: ``epsilon`` is not positive, or shapes or masses do not fit.
    """
    check_epsilon(epsilon)
    _check_masses(scores, anchors, capacities)
    log_kernel = _compute_log_kernel(scores, anchors, epsilon, mask)
    log_capacities = capacities.to(scores.dtype).log()
    return _iterate(log_kernel, log_capacities, tolerance, max_iterations)


def _iterate(
    log_kernel: Tensor, log_capacities: Tensor, tolerance: float, max_iterations: int
) -> SinkhornResult:
    column = torch.zeros_like(log_kernel[..., :1, :])
    for iteration in range(1, max_iterations + 1):
        row = -torch.logsumexp(log_kernel + column, -1, keepdim=True)
        column = log_capacities - torch.logsumexp(log_kernel + row, -2, keepdim=True)
        if iteration % CHECK_EVERY and iteration < max_iterations:
            continue
        plan = (log_kernel + row + column).exp()
        residual = (plan.sum(-1) - 1).abs().amax(-1)
        if not bool((residual > tolerance).any()):  # NaN does not converge
            break
    return SinkhornResult(plan, residual, iteration)


def _compute_log_kernel(
    scores: Tensor, anchors: Tensor, epsilon: float, mask: Tensor | None
) -> Tensor:
    log_kernel = -(scores.unsqueeze(-1) - anchors).square() / epsilon
    if mask is None:
        return log_kernel
    before_last = torch.arange(anchors.numel(), 0, -1, device=scores.device) > 1
    deleted = ~mask.unsqueeze(-1)
    return log_kernel.masked_fill(deleted, 0.0).masked_fill(
        deleted & before_last, -math.inf
    )


def _check_masses(scores: Tensor, anchors: Tensor, capacities: Tensor) -> None:
    if anchors.dim() != 1 or anchors.shape != capacities.shape:
        raise ValueError(
            "`anchors` and `capacities` must be vectors of one length, but have shapes "
            f"{tuple(anchors.shape)} and {tuple(capacities.shape)}."
        )
    total = float(capacities.sum())
    if abs(total - scores.size(-1)) > 1e-6 * scores.size(-1):
        raise ValueError(
            f"`capacities` must sum to {scores.size(-1)} (the number of scores), "
            f"but sum to {total:g}."
        )


def nested_soft_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
    dim: int = -1,
) -> Tensor:
    """Return ``soft_topk(l) - soft_topk(l - 1)`` for the ranks l = 1..k, (..., n, k).

    Arguments, errors, deleted entries and short rows as in `sorted_soft_topk`.
    """
    if dim != -1 or isinstance(k, Tensor):
        return apply_to_rows(
            nested_soft_topk,
            scores,
            k,
            epsilon=epsilon,
            mask=mask,
            largest=largest,
            dim=dim,
        )
    values, k, epsilon = prepare_scores(
        scores, k, epsilon=epsilon, mask=mask, largest=largest
    )
    num_candidates = values.size(-1)
    rows = values.reshape(-1, 1, num_candidates).expand(-1, k, -1)
    sizes = torch.arange(1, k + 1, dtype=values.dtype, device=values.device)
    sizes = sizes.expand(rows.size(0), -1).reshape(-1, 1)
    memberships, _ = compute_memberships_and_logits(
        rows.reshape(-1, num_candidates), sizes, epsilon / 2
    )
    upto = memberships.view(-1, k, num_candidates)
    assignment = torch.cat([upto[:, :1], upto[:, 1:] - upto[:, :-1]], 1)
    return assignment.transpose(1, 2).to(scores.dtype).reshape(*scores.shape, k)


def softsort_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
    dim: int = -1,
) -> Tensor:
    """Return ``softmax_i(-|l-th best - s_i| / T)`` with T = epsilon / 2, (..., n, k).

    Closed form and cheap. Columns sum to 1, but a candidate may fill several ranks: its
    row may sum to more than 1, and the gradient has kinks where scores cross.
    Arguments, errors, deleted entries and short rows as in `sorted_soft_topk`.
    """
    if dim != -1 or isinstance(k, Tensor):
        return apply_to_rows(
            softsort_topk,
            scores,
            k,
            epsilon=epsilon,
            mask=mask,
            largest=largest,
            dim=dim,
        )
    values, k, epsilon = prepare_scores(
        scores, k, epsilon=epsilon, mask=mask, largest=largest
    )
    best = values.topk(k).values.unsqueeze(-2)  # (..., 1, k)
    best = best.masked_fill(best[..., :1] == torch.inf, torch.nan)
    values = values.unsqueeze(-1)
    is_filled, is_valid = best != -torch.inf, values != -torch.inf
    # Differences of infinities would turn the gradient into NaN.
    distance = best.masked_fill(~is_filled, 0.0) - values.masked_fill(~is_valid, 0.0)
    logits = distance.abs() * (-2 / epsilon)
    logits = logits.masked_fill(~is_valid, torch.finfo(logits.dtype).min)
    assignment = torch.softmax(logits, -2) * (is_valid & is_filled)
    return assignment.to(scores.dtype)


def neuralsort_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
    dim: int = -1,
) -> Tensor:
    """Return ``softmax_i(((n + 1 - 2 l) s_i - sum_j |s_i - s_j|) / T)``, (..., n, k).

    T = epsilon / 2 and l = 1..k is the rank (theorem 4 of the paper). Columns sum to 1,
    but a candidate may fill several ranks, and every score changes every rank. In
    descending order the logits of rank l differ by

        logit_(j + 1) - logit_j = (2 (l - j) - 1) (s_j - s_(j + 1)) / T,

    and are summed up from the l-th candidate on. The terms of a sum have one sign, so
    that nothing cancels. Arguments, errors, deleted entries and short rows as in
    `sorted_soft_topk`.
    """
    if dim != -1 or isinstance(k, Tensor):
        return apply_to_rows(
            neuralsort_topk,
            scores,
            k,
            epsilon=epsilon,
            mask=mask,
            largest=largest,
            dim=dim,
        )
    values, k, epsilon = prepare_scores(
        scores, k, epsilon=epsilon, mask=mask, largest=largest
    )
    ranked, order = values.sort(-1, descending=True)  # deleted entries come last
    is_valid = (ranked != -torch.inf).unsqueeze(-1)
    ranked = ranked.unsqueeze(-1).masked_fill(~is_valid, 0.0)
    gaps = (ranked[..., :-1, :] - ranked[..., 1:, :]) * is_valid[..., 1:, :]
    position = torch.arange(values.size(-1), device=values.device).unsqueeze(-1)
    rank = position[:k, 0]  # position: (n, 1); rank: (k,)
    steps = (2 * (rank - position[:-1]) - 1) * gaps * (2 / epsilon)  # (..., n - 1, k)
    later = pad(steps * (position[:-1] >= rank), (0, 0, 1, 0)).cumsum(-2)
    earlier = pad(steps * (position[:-1] < rank), (0, 0, 0, 1))
    logits = later - earlier.flip(-2).cumsum(-2).flip(-2)
    logits = logits.masked_fill(~is_valid, torch.finfo(logits.dtype).min)
    is_filled = is_valid[..., :k, :].transpose(-1, -2)
    assignment = torch.softmax(logits, -2) * (is_valid & is_filled)
    order = order.unsqueeze(-1).expand_as(assignment)
    assignment = torch.zeros_like(assignment).scatter(-2, order, assignment)
    return assignment.to(scores.dtype)


def hard_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor = 0.0,
    mask: Tensor | None = None,
    largest: bool = True,
    dim: int = -1,
) -> Tensor:
    """Return the one-hot assignment of ``scores.topk(k)``, without gradient.

    The columns of a row with NaN are NaN. ``epsilon`` is ignored. Other arguments and
    errors as in `sorted_soft_topk`.
    """
    if dim != -1 or isinstance(k, Tensor):
        return apply_to_rows(
            hard_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest, dim=dim
        )
    values = orient_scores(scores, mask, largest)
    k = check_k(k, values.size(-1))
    best = values.topk(k)  # NaN comes first
    chosen = best.indices.unsqueeze(-2)  # (..., 1, k)
    filled = (best.values != -torch.inf).to(scores.dtype)
    filled = filled.masked_fill(best.values[..., :1].isnan(), torch.nan).unsqueeze(-2)
    return scores.new_zeros(*scores.shape, k).scatter(-2, chosen, filled)


def sinkhorn_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
    dim: int = -1,
) -> Tensor:
    """Return `sorted_soft_topk` as published: 200 Sinkhorn iterations with autograd.

    It is far from converged when ``epsilon`` is small, which must be a number here.
    Arguments, errors, deleted entries and short rows as in `sorted_soft_topk`.
    """
    if dim != -1 or isinstance(k, Tensor):
        return apply_to_rows(
            sinkhorn_topk,
            scores,
            k,
            epsilon=epsilon,
            mask=mask,
            largest=largest,
            dim=dim,
        )
    if isinstance(epsilon, Tensor):
        raise ValueError("`epsilon` must be a number for the operator `sinkhorn`.")
    values, k, epsilon = prepare_scores(
        scores, k, epsilon=epsilon, mask=mask, largest=largest
    )
    is_valid = values != -torch.inf
    anchors = torch.arange(k + 1, dtype=values.dtype, device=values.device)
    costs = -values.masked_fill(~is_valid, 0.0)
    # A row without valid entries needs some mass, and all goes to the last anchor.
    is_moved = is_valid | ~is_valid.any(-1, keepdim=True)
    log_kernel = _compute_log_kernel(costs, anchors, epsilon, is_moved)
    filled = is_valid.sum(-1, keepdim=True).clamp_max(k)
    capacities = torch.where(
        anchors == k, values.size(-1) - filled, (anchors < filled).long()
    )
    log_capacities = capacities.to(values.dtype).log().unsqueeze(-2)
    result = _iterate(log_kernel, log_capacities, 1e-12, PUBLISHED_ITERATIONS)
    return result.plan[..., :k].to(scores.dtype)


SORTED_OPERATORS: dict[str, SortedOperator] = {
    "ot": sorted_soft_topk,
    "nested": nested_soft_topk,
    "softsort": softsort_topk,
    "neuralsort": neuralsort_topk,
    "sinkhorn": sinkhorn_topk,
    "hard": hard_topk,
}


def get_sorted_operator(name: str) -> SortedOperator:
    """Return the sorted operator called ``name``.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in SORTED_OPERATORS:
        raise ValueError(
            f"`operator` must be one of {', '.join(SORTED_OPERATORS)}, but is {name!r}."
        )
    return SORTED_OPERATORS[name]
