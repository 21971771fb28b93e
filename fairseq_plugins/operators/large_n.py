"""Preselection of the candidates that can carry weight, with a certified bound.

For n far above k almost every membership is zero to rounding. A pool of the candidates
in the best groups is solved alone; since left-out candidates could only raise the
threshold, each of them has at most ``sigmoid((s - tau) / T)`` with the pool's own tau,
and what they get together is all that the pool's members lose:

    bound = sum over left-out groups of  size * sigmoid((maximum - tau) / T)

bounds the error of every membership, inside the pool and outside it.

SOFT top-k memberships of long rows, at about the cost of a hard top-k.

The candidates of the best groups are treated one by one, as in `candidate_pool`. If
these alone are exact to rounding, the others get 0. Otherwise the left-out ones enter
the equation of the threshold through sums of powers, found in one pass: all of them lie
below the threshold, where ``sigmoid(z) = e^z - e^2z + e^3z - ...``. The first power
that is left out bounds the error; where it is too large every candidate is treated one
by one. Work goes through memory in pieces that stay in the cache.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Iterator, NamedTuple

import torch
from torch import Tensor

from .arguments import check_k, effective_scores, full_precision, scale_by_epsilon
from .threshold import (
    GROUP,
    balance_by_side,
    flush_,
    group_maxima,
    members_of,
    memberships_and_logits,
    short_memberships,
    solve_threshold,
)

__all__ = ["CandidatePool", "certified_pool", "long_memberships", "pooled_soft_topk"]

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


def _num_needed(left_out: Tensor, bound: Tensor, tolerance: float, room: float) -> int:
    """Return how many groups the row with the largest bound has to add.

    The others only lose weight when the pool grows, so this many are enough there. If
    more than ``room`` exceed the tolerance alone, their number will do, without a sort.
    """
    row = left_out[bound.nan_to_num(0.0).argmax()]
    at_least = int((row > tolerance).sum())
    if at_least > room:
        return at_least
    return int((row.sort().values.cumsum(0) > tolerance).sum())


CHUNK, CHUNK_GPU = 2**19, 2**24  # entries in a piece: what fits a cache, fills a GPU
MAX_POWERS = 5
WIDEST_LONG_ROWS = (
    0.02  # a pool of more groups than this costs more than sums of powers do
)
LOG2_E = math.log2(math.e)


def long_memberships(scores: Tensor, k: int, temperature: float) -> Tensor:
    """Return memberships of (rows, n) scores; see `soft_topk`."""
    tolerance = torch.finfo(scores.dtype).eps
    with torch.no_grad(), full_precision(scores):
        pool = certified_pool(
            scores, k, temperature, tolerance, widest=WIDEST_LONG_ROWS
        )
    if pool is None or not bool((pool.bound <= tolerance).all()):
        return _LongSoftTopK.apply(scores, k, temperature, pool)
    members = scores.gather(1, pool.members)
    solution = pool.centre, pool.offset
    weights = short_memberships(members, k, temperature, solution)
    return torch.zeros_like(scores).scatter_(1, pool.members, weights)


class _LongSoftTopK(torch.autograd.Function):
    """Memberships of (rows, n) scores, keeping none of the intermediate results."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, k: int, temperature: float, pool: CandidatePool | None
    ) -> Tensor:
        memberships = torch.empty_like(scores)
        with full_precision(scores):
            solved = pool is not None and _solve_with_sums(
                memberships, scores, k, temperature, pool
            )
            if not solved:
                _solve_with_all(memberships, scores, k, temperature)
        ctx.save_for_backward(scores, memberships)
        ctx.k, ctx.temperature = k, temperature
        return memberships

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        scores, memberships = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            again, _ = memberships_and_logits(scores, ctx.k, ctx.temperature)
            (slope,) = torch.autograd.grad(again, scores, grad, create_graph=True)
            return slope, None, None, None
        tiny = torch.finfo(scores.dtype).tiny
        result, scratch = torch.empty_like(scores), _scratch(scores)
        for rows in _pieces(scores):
            part, out = memberships[rows], result[rows]
            # Not A - A * A, whose square is denormal for most of a long row.
            density = torch.sub(1, part, out=scratch[: len(part)]).mul_(part)
            total = density.sum(-1, keepdim=True)
            torch.mul(density, grad[rows], out=out)
            mean = out.sum(-1, keepdim=True) / total.clamp_min(tiny)
            out.addcmul_(density, mean, value=-1).mul_(1 / ctx.temperature)
        return result, None, None, None


def _scratch(scores: Tensor) -> Tensor:
    """Return room for one piece: fresh memory would cost more than the arithmetic."""
    return torch.empty_like(scores[: _rows_per_piece(scores)])


def _rows_per_piece(scores: Tensor) -> int:
    chunk = CHUNK_GPU if scores.is_cuda else CHUNK
    return max(1, chunk // scores.size(-1))


def _pieces(scores: Tensor) -> Iterator[slice]:
    step = _rows_per_piece(scores)
    for start in range(0, scores.size(0), step):
        yield slice(start, start + step)


def _solve_with_sums(
    out: Tensor, scores: Tensor, k: int, temperature: float, pool: CandidatePool
) -> bool:
    """Write memberships to ``out`` unless that takes more than MAX_POWERS sums."""
    eps = torch.finfo(scores.dtype).eps
    num_powers = _powers_needed(float(pool.highest.max()), math.log(eps))
    sums = _power_sums(out, scores, temperature, min(num_powers, MAX_POWERS), pool)
    members = scores.gather(1, pool.members)
    members = (members - pool.centre).div_(temperature).sub_(pool.offset)
    top, index = members.topk(k)
    rest = members.scatter(1, index, -math.inf)
    start = torch.zeros_like(pool.offset)
    shift = balance_by_side(-top, rest, start, partial(_tail, sums))
    # A hard row needs no tail, and its sums over the pool may underflow.
    shift = shift.masked_fill(pool.bound.unsqueeze(-1) <= eps, 0.0)
    highest = float((pool.highest - shift).max())
    if _powers_needed(highest, math.log(eps)) > MAX_POWERS:
        return False
    growth, scratch = shift.exp(), _scratch(scores)
    for rows in _pieces(scores):  # exp(z) is there already
        part = out[rows]
        part.div_(torch.add(part, growth[rows], out=scratch[: len(part)]))
    out.scatter_(1, pool.members, members.sub_(shift).sigmoid_())
    return True


def _powers_needed(highest: float, log_eps: float) -> int:
    """Return how many powers of exp(z) leave out less than eps, if z <= ``highest``."""
    return math.ceil(log_eps / highest) if highest < log_eps / 1000 else 1000


def _solve_with_all(out: Tensor, scores: Tensor, k: int, temperature: float) -> None:
    """Write memberships to ``out``, treating every candidate one by one."""
    for rows in _pieces(scores):
        centre, offset = solve_threshold(scores[rows], k, temperature)
        part = torch.sub(scores[rows], centre, out=out[rows])
        torch.add(-offset, part, alpha=1 / temperature, out=part)
        flush_(part).sigmoid_()


def _power_sums(
    out: Tensor,
    scores: Tensor,
    temperature: float,
    num_powers: int,
    pool: CandidatePool,
) -> Tensor:
    """Return the sums over non-members of exp(j z), j = 1.., (rows, num_powers).

    What is left in ``out`` is exp(z), and 0 for the members.
    """
    # A row that selects all it has must not make infinity minus infinity.
    offset = pool.offset.clamp_min(torch.finfo(scores.dtype).min / 2).mul_(-LOG2_E)
    slope = LOG2_E / temperature
    result = scores.new_empty(scores.size(0), num_powers)
    small = math.sqrt(torch.finfo(scores.dtype).tiny)
    scratch = _scratch(scores)
    for rows in _pieces(scores):
        values = torch.sub(scores[rows], pool.centre[rows], out=out[rows])
        torch.add(offset[rows], values, alpha=slope, out=values)
        torch.threshold_(values, math.log2(small), -math.inf).exp2_()
        values.scatter_(1, pool.members[rows], 0.0)
        result[rows, 0] = values.sum(-1)
        power = values
        for column in range(1, num_powers):
            power = torch.mul(power, values, out=scratch[: len(values)])
            torch.threshold_(power, small, 0.0)
            result[rows, column] = power.sum(-1)
    return result


def _tail(sums: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of sigmoid(z - shift) and of its derivative over the others."""
    power = torch.arange(1, sums.size(1) + 1, dtype=sums.dtype, device=sums.device)
    sign = 1 - 2 * ((power + 1) % 2)
    terms = sums * sign * (-power * shift).exp()
    return terms.sum(-1, keepdim=True), (terms * power).sum(-1, keepdim=True)
