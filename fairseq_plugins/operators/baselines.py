"""Sinkhorn's iteration in the log domain: the published algorithm, kept as the oracle.

Xie et al. (2020) transport scores to fixed anchors (0 and 1 for SOFT top-k; 0..k for
the sorted one) at squared cost. This runs the same iteration on the same problem until
the row sums are met, so that it can say how exact it is. It is slow when epsilon is
small, and only tests and benchmarks use it.

Nested SOFT top-k: ranks as differences of successive memberships.

Column l is ``soft_topk(l) - soft_topk(l - 1)``. Memberships grow with k, so entries are
never negative; columns sum to 1 and rows to 1 at most. It takes k independent unknowns
where the transport plan couples them, and is a little blurrier at the same epsilon.

SoftSort, restricted to the k best (Prillo & Eisenschlos, 2020, arXiv:2006.16038).

NeuralSort, restricted to the k best (Grover et al., 2019, arXiv:1903.08850).

The sorted operators by name, so that experiments can swap them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import (
    SortedOperator,
    check_epsilon,
    check_k,
    effective_scores,
    for_each_k,
    scale_by_epsilon,
)
from .sorted_soft_topk import sorted_soft_topk
from .threshold import memberships_and_logits

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

CHECK_EVERY = 10


class SinkhornResult(NamedTuple):
    """A plan whose columns are met exactly and whose rows are within ``residual``."""

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
    """Transport each score, mass 1, to ``anchors`` that take ``capacities`` in all.

    The cost is ``(score - anchor) ** 2``: the lowest anchor takes the smallest scores.

    Args:
        scores: finite, float32 or float64, shape (..., n).
        anchors: positions of the targets, shape (m,).
        capacities: positive, shape (m,), sum n.
        epsilon: entropic regularisation, in squared score units.
        mask: shape (..., n); where False all mass goes to the last anchor.
        tolerance, max_iterations: stop when every row sum is so close to 1, or anyway.

    Raises:
        ValueError: ``epsilon`` is not positive, or shapes or masses do not fit.
    """
    check_epsilon(epsilon)
    _check_masses(scores, anchors, capacities)
    log_kernel = _log_kernel(scores, anchors, epsilon, mask)
    log_capacities = capacities.to(scores.dtype).log()
    column = torch.zeros_like(log_kernel[..., :1, :])
    for iteration in range(1, max_iterations + 1):
        row = -torch.logsumexp(log_kernel + column, -1, keepdim=True)
        column = log_capacities - torch.logsumexp(log_kernel + row, -2, keepdim=True)
        if iteration % CHECK_EVERY and iteration < max_iterations:
            continue
        plan = (log_kernel + row + column).exp()
        residual = (plan.sum(-1) - 1).abs().amax(-1)
        if bool((residual <= tolerance).all()):
            break
    return SinkhornResult(plan, residual, iteration)


def _log_kernel(
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
) -> Tensor:
    """Return the assignment of candidates to ranks 1..k, (..., n, k), best first.

    Arguments, deleted entries and short rows as in `sorted_soft_topk`.
    """
    if isinstance(k, Tensor):
        return for_each_k(
            nested_soft_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest
        )
    values = effective_scores(scores, mask, largest)
    num_candidates = values.size(-1)
    check_k(k, num_candidates)
    values, epsilon = scale_by_epsilon(values, epsilon)
    rows = values.reshape(-1, 1, num_candidates).expand(-1, k, -1)
    sizes = torch.arange(1, k + 1, dtype=values.dtype, device=values.device)
    sizes = sizes.expand(rows.size(0), -1).reshape(-1, 1)
    memberships, _ = memberships_and_logits(
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
) -> Tensor:
    """Return ``softmax_i(-|l-th best - s_i| / T)`` with T = epsilon / 2, (..., n, k).

    Closed form and cheap. Columns sum to 1, but a candidate may fill several ranks at
    once: unlike with `sorted_soft_topk` its row is not bounded by 1, and the gradient
    has kinks where scores cross. Arguments, deleted entries and short rows as there.
    """
    if isinstance(k, Tensor):
        return for_each_k(
            softsort_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest
        )
    values = effective_scores(scores, mask, largest)
    check_k(k, values.size(-1))
    values, epsilon = scale_by_epsilon(values, epsilon)
    best = values.topk(k).values.unsqueeze(-2)  # (..., 1, k)
    values = values.unsqueeze(-1)
    is_filled, is_valid = best != -torch.inf, values != -torch.inf
    # Differences of infinities would make NaN of the gradient.
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
) -> Tensor:
    """Return ``softmax_i(((n + 1 - 2 l) s_i - sum_j |s_i - s_j|) / T)``, (..., n, k).

    T = epsilon / 2 and l = 1..k is the rank (theorem 4 of the paper). Columns sum to 1,
    but a candidate may fill several ranks, and every score moves every rank. The sum of
    distances comes from one sort, O(n log n), instead of n^2 differences. Arguments,
    deleted entries and short rows as in `sorted_soft_topk`.
    """
    if isinstance(k, Tensor):
        return for_each_k(
            neuralsort_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest
        )
    values = effective_scores(scores, mask, largest)
    check_k(k, values.size(-1))
    values, epsilon = scale_by_epsilon(values, epsilon)
    is_valid = values != -torch.inf
    values = _centred(values, is_valid)
    count = is_valid.sum(-1, keepdim=True).unsqueeze(-1)  # (..., 1, 1)
    ranks = torch.arange(1, k + 1, device=values.device)
    slopes = (count + 1 - 2 * ranks).to(values.dtype)  # (..., 1, k)
    distances = _sum_of_distances(values, is_valid).unsqueeze(-1)
    logits = (slopes * values.unsqueeze(-1) - distances) * (2 / epsilon)
    is_valid = is_valid.unsqueeze(-1)
    logits = logits.masked_fill(~is_valid, torch.finfo(logits.dtype).min)
    assignment = torch.softmax(logits, -2) * (is_valid & (ranks <= count))
    return assignment.to(scores.dtype)


def _centred(values: Tensor, is_valid: Tensor) -> Tensor:
    """Shift each row, which changes no rank, so that sums do not round more than need
    be, and put 0 where deleted."""
    kept = values.masked_fill(~is_valid, 0.0)
    count = is_valid.sum(-1, keepdim=True).clamp_min(1)
    return (kept - kept.detach().sum(-1, keepdim=True) / count) * is_valid


def _sum_of_distances(values: Tensor, is_valid: Tensor) -> Tensor:
    """Return ``sum_j |s_i - s_j|`` over the valid j, for the valid i, (..., n)."""
    order = values.masked_fill(~is_valid, -torch.inf).argsort(-1, descending=True)
    ranked = values.gather(-1, order)  # the deleted are last, and 0
    upto = ranked.cumsum(-1)
    total = upto[..., -1:]
    place = torch.arange(1, values.size(-1) + 1, device=values.device)
    count = is_valid.sum(-1, keepdim=True)
    # `place` scores are no lower, the others no higher; each pair in one of the sums.
    distances = (2 * place - count) * -ranked + 2 * upto - total
    return torch.zeros_like(values).scatter(-1, order, distances)


PUBLISHED_ITERATIONS = 200


def hard_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor = 0.0,
    mask: Tensor | None = None,
    largest: bool = True,
) -> Tensor:
    """Return the one-hot assignment of ``scores.topk(k)``, without gradient.

    ``epsilon`` is accepted and ignored. Arguments as in `sorted_soft_topk`.
    """
    if isinstance(k, Tensor):
        return for_each_k(
            hard_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest
        )
    values = effective_scores(scores, mask, largest)
    check_k(k, values.size(-1))
    best = values.topk(k)
    chosen = best.indices.unsqueeze(-2)  # (..., 1, k)
    filled = (best.values != -torch.inf).unsqueeze(-2).to(scores.dtype)
    return scores.new_zeros(*scores.shape, k).scatter(-2, chosen, filled)


def sinkhorn_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
) -> Tensor:
    """Return `sorted_soft_topk` as published: 200 Sinkhorn iterations, by autograd.

    For comparison only. It is far from converged when ``epsilon`` is small, and takes
    one number for it. Arguments as in `sorted_soft_topk`; deleted entries need a mask.
    """
    if isinstance(k, Tensor):
        return for_each_k(
            sinkhorn_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest
        )
    if isinstance(epsilon, Tensor):
        raise ValueError("`epsilon` must be a number for the operator `sinkhorn`.")
    check_epsilon(epsilon)
    values = effective_scores(scores, None, largest)
    num_candidates = values.size(-1)
    check_k(k, num_candidates)
    num_anchors = k + (k < num_candidates)
    anchors = torch.arange(num_anchors, dtype=values.dtype, device=values.device)
    capacities = torch.ones_like(anchors)
    capacities[-1] += num_candidates - num_anchors
    result = sinkhorn(
        -values,
        anchors,
        capacities,
        epsilon=epsilon,
        mask=None if mask is None else mask.expand_as(scores),
        max_iterations=PUBLISHED_ITERATIONS,
    )
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
        ValueError: there is none of that name.
    """
    if name not in SORTED_OPERATORS:
        raise ValueError(
            f"`operator` must be one of {', '.join(SORTED_OPERATORS)}, but is {name!r}."
        )
    return SORTED_OPERATORS[name]
