"""Preselection of the candidates that can carry weight, with a certified bound.

For n far above k almost every membership is zero to rounding. A pool of the candidates
in the best groups is solved alone; since left-out candidates could only raise the
threshold, each of them has at most ``sigmoid((s - tau) / T)`` with the pool's own tau,
and what they get together is all that the pool's members lose:

    bound = sum over left-out groups of  size * sigmoid((maximum - tau) / T)

bounds the error of every membership, inside the pool and outside it.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import check_k, effective_scores, scale_by_epsilon
from .largest import GROUP, group_maxima, members_of
from .short_rows import short_memberships
from .threshold import flush_, solve_threshold

__all__ = ["CandidatePool", "certified_pool", "pooled_soft_topk"]

FIRST_GROUPS = 24  # beyond k; few enough for topk to keep a heap of them
MARGIN = 1.15  # another row than the one looked at may need a few more
WIDEST = 0.25  # a pool of more groups than this costs more than all candidates do


class CandidatePool(NamedTuple):
    """A pool and what is known about it."""

    members: Tensor  # indices, (rows, M), in no order
    centre: Tensor  # (rows, 1), see `solve_threshold`
    offset: Tensor
    bound: Tensor  # (rows,)
    highest: Tensor  # (rows, 1), no logit outside is larger


class PooledMemberships(NamedTuple):
    """SOFT top-k of ``members`` alone, which is the full one up to ``bound``."""

    memberships: Tensor  # (..., M), differentiable
    members: Tensor  # their indices, (..., M), in no order
    bound: Tensor  # (...), largest possible error of any membership


def pooled_soft_topk(
    scores: Tensor,
    k: int,
    *,
    epsilon: float | Tensor,
    tolerance: float = 1e-6,
    mask: Tensor | None = None,
    largest: bool = True,
) -> PooledMemberships:
    """Return `soft_topk` on as many candidates as ``tolerance`` takes, and a bound.

    The pool starts small and is widened until the bound holds, at the worst to all n
    candidates. It is one size for the whole batch. Arguments as in `soft_topk`.

    Raises:
        ValueError: an argument is out of its range.
    """
    if isinstance(k, Tensor):
        raise ValueError("`k` must be an integer here, but is a tensor.")
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be positive, but is {tolerance}.")
    values = effective_scores(scores, mask, largest)
    num_candidates = values.size(-1)
    check_k(k, num_candidates)
    values, epsilon = scale_by_epsilon(values, epsilon)
    rows = values.reshape(-1, num_candidates)
    with torch.no_grad():
        pool = certified_pool(rows, k, epsilon / 2, tolerance)
    if pool is not None and bool((pool.bound <= tolerance).all()):
        members, bound = pool.members, pool.bound
    else:
        members = torch.arange(num_candidates, device=rows.device).expand_as(rows)
        bound = rows.new_zeros(rows.size(0))
    memberships = short_memberships(rows.gather(1, members), k, epsilon / 2)
    leading = scores.shape[:-1]
    return PooledMemberships(
        memberships.to(scores.dtype).reshape(*leading, members.size(1)),
        members.reshape(*leading, members.size(1)),
        bound.reshape(leading),
    )


def certified_pool(
    scores: Tensor,
    k: int,
    temperature: float,
    tolerance: float,
    *,
    widest: float = WIDEST,
) -> CandidatePool | None:
    """Return the first of a series of growing pools whose bound is met by every row.

    Returns the last one tried if larger ones would not pay, None if none would.

    Args:
        scores: float32 or float64, shape (rows, n); -inf where deleted.
        k, temperature: as in `solve_threshold`.
        tolerance: what the bound should not exceed.
        widest: the share of all groups that the pool may have after the first try.
    """
    maxima = group_maxima(scores)
    num_groups = maxima.size(1)
    size = k + max(FIRST_GROUPS, k)
    pool = None
    while size <= num_groups * (WIDEST if pool is None else widest):
        groups = maxima.topk(size, sorted=False).indices
        members = members_of(groups, num_groups, scores.size(1))
        centre, offset = solve_threshold(scores.gather(1, members), k, temperature)
        left_out = (maxima - centre).div_(temperature).sub_(offset)
        highest = left_out.scatter_(1, groups, -math.inf).amax(-1, keepdim=True)
        left_out = flush_(left_out).sigmoid_().mul_(GROUP)
        bound = left_out.sum(-1)
        pool = CandidatePool(members, centre, offset, bound, highest)
        if not bool((bound > tolerance).any()):  # a NaN is nothing to widen for
            break
        needed = _num_needed(left_out, bound, tolerance, widest * num_groups - size)
        size += FIRST_GROUPS + int(MARGIN * needed)
    return pool


def _num_needed(
    left_out: Tensor, bound: Tensor, tolerance: float, room: float
) -> int:
    """Return how many groups the row with the largest bound has to add.

    The others only lose weight when the pool grows, so this many are enough there. If
    more than ``room`` exceed the tolerance alone, their number will do, without a sort.
    """
    row = left_out[bound.nan_to_num(0.0).argmax()]
    at_least = int((row > tolerance).sum())
    if at_least > room:
        return at_least
    return int((row.sort().values.cumsum(0) > tolerance).sum())
