"""SOFT top-k memberships of long rows, at about the cost of a hard top-k.

For n far above k almost every membership is zero to rounding. A pool of the candidates
in the best groups is solved alone. Left-out candidates could only raise the threshold,
so each of them has at most ``sigmoid((s - tau) / T)`` with the pool's tau, and their
sum is what the members of the pool lose:

    bound = sum over left-out groups of  size * sigmoid((maximum - tau) / T)

bounds the error of every membership, inside the pool and outside.

`soft_topk` uses a pool whose bound is below rounding. If that needs too many groups,
the other candidates enter the equation of the threshold through sums of powers, from
one pass over memory: they lie below the threshold, where
``sigmoid(z) = e^z - e^2z + e^3z - ...``. The first omitted power bounds the error.
Where it is too large, every candidate is treated individually. Rows are processed in
pieces that fit the cache.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Iterator, NamedTuple

import torch
from torch import Tensor

from .arguments import full_precision, prepare_scores
from .threshold import (
    GROUP,
    balance_sides,
    compute_group_maxima,
    compute_memberships,
    differentiate_again,
    get_members,
    solve_threshold,
)

__all__ = ["PooledMemberships", "compute_long_memberships", "pooled_soft_topk"]

FIRST_GROUPS = 24  # beyond k; few enough for topk to keep a heap of them
MARGIN = 1.15  # rows other than the one examined may need a few more
WIDEST = 0.25  # a larger fraction of the groups costs more than all candidates
WIDEST_LONG_ROWS = 0.02  # a larger fraction costs more than sums of powers
CHUNK, CHUNK_GPU = 2**19, 2**24  # entries of a piece that fits a cache, fills a GPU
MAX_POWERS = 5
LOG2_E = math.log2(math.e)


class CandidatePool(NamedTuple):
    """A pool of candidates, its threshold and its error bound."""

    members: Tensor  # indices, (rows, M), unordered
    center: Tensor  # (rows, 1), see `solve_threshold`
    offset: Tensor
    bound: Tensor  # (rows,)
    highest: Tensor  # (rows, 1), upper bound of the logits outside


class PooledMemberships(NamedTuple):
    """SOFT top-k of ``members`` alone, within ``bound`` of that of all candidates."""

    memberships: Tensor  # (..., M), differentiable
    members: Tensor  # their indices, (..., M), unordered
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
    """Return `soft_topk` of as many candidates as ``tolerance`` requires, and a bound.

    The pool is widened until the bound is met, up to all n candidates. It has the same
    size in all rows. Arguments as in `soft_topk`.

    Raises:
        ValueError: an argument is out of its range, or ``k`` is a tensor.
    """
    if isinstance(k, Tensor):
        raise ValueError("`k` must be an integer here, but is a tensor.")
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be positive, but is {tolerance}.")
    values, k, epsilon = prepare_scores(
        scores, k, epsilon=epsilon, mask=mask, largest=largest
    )
    num_candidates = values.size(-1)
    rows = values.reshape(-1, num_candidates)
    with torch.no_grad():
        pool = build_pool(rows, k, epsilon / 2, tolerance)
    if pool is not None and bool((pool.bound <= tolerance).all()):
        members, bound = pool.members, pool.bound
    else:
        members = torch.arange(num_candidates, device=rows.device).expand_as(rows)
        bound = rows.new_zeros(rows.size(0))
    memberships = compute_memberships(rows.gather(1, members), k, epsilon / 2)
    leading = scores.shape[:-1]
    return PooledMemberships(
        memberships.to(scores.dtype).reshape(*leading, members.size(1)),
        members.reshape(*leading, members.size(1)),
        bound.reshape(leading),
    )


def build_pool(
    scores: Tensor,
    k: int,
    temperature: float,
    tolerance: float,
    *,
    widest: float = WIDEST,
) -> CandidatePool | None:
    """Return the first of a series of growing pools that meets ``tolerance``.

    Returns the last pool tried if larger ones would cost more than they save, and None
    if the first would.

    Args:
        scores: float32 or float64, shape (rows, n); -inf where deleted.
        k, temperature: as in `solve_threshold`.
        tolerance: the largest bound wanted in any row.
        widest: largest fraction of all groups in a pool after the first try.
    """
    maxima = compute_group_maxima(scores)
    num_groups = maxima.size(1)
    size = k + max(FIRST_GROUPS, k)
    pool = None
    while size <= num_groups * (WIDEST if pool is None else widest):
        groups = maxima.topk(size, sorted=False).indices
        members = get_members(groups, num_groups, scores.size(1))
        center, offset = solve_threshold(scores.gather(1, members), k, temperature)
        left_out = (maxima - center).div_(temperature).sub_(offset)
        highest = left_out.scatter_(1, groups, -math.inf).amax(-1, keepdim=True)
        left_out = _flush_(left_out).sigmoid_().mul_(GROUP)
        bound = left_out.sum(-1)
        pool = CandidatePool(members, center, offset, bound, highest)
        if not bool((bound > tolerance).any()):  # NaN needs no wider pool
            break
        needed = _count_needed_groups(
            left_out, bound, tolerance, widest * num_groups - size
        )
        size += FIRST_GROUPS + int(MARGIN * needed)
    return pool


def _count_needed_groups(
    left_out: Tensor, bound: Tensor, tolerance: float, room: float
) -> int:
    """Return the number of groups to add for the row with the largest bound.

    The other groups only lose weight when the pool grows, so this number suffices. If
    more than ``room`` exceed the tolerance on their own, it is theirs, without a sort.
    """
    row = left_out[bound.nan_to_num(0.0).argmax()]
    at_least = int((row > tolerance).sum())
    if at_least > room:
        return at_least
    return int((row.sort().values.cumsum(0) > tolerance).sum())


def compute_long_memberships(scores: Tensor, k: int, temperature: float) -> Tensor:
    """Return memberships of (rows, n) scores; see `soft_topk`."""
    tolerance = torch.finfo(scores.dtype).eps
    with torch.no_grad(), full_precision(scores):
        pool = build_pool(scores, k, temperature, tolerance, widest=WIDEST_LONG_ROWS)
    if pool is None or not bool((pool.bound <= tolerance).all()):
        return _LongSoftTopK.apply(scores, k, temperature, pool)
    members = scores.gather(1, pool.members)
    solution = pool.center, pool.offset
    weights = compute_memberships(members, k, temperature, solution)
    return torch.zeros_like(scores).scatter_(1, pool.members, weights)


class _LongSoftTopK(torch.autograd.Function):
    """Memberships of (rows, n) scores; only scores and memberships are kept."""

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
        if torch.is_grad_enabled():
            again = differentiate_again(scores, ctx.k, ctx.temperature, grad)
            return again, None, None, None
        tiny = torch.finfo(scores.dtype).tiny
        result, scratch = torch.empty_like(scores), _allocate_scratch(scores)
        for rows in _split(scores):
            part, out = memberships[rows], result[rows]
            # A - A * A would have a denormal square in most of a long row.
            density = torch.sub(1, part, out=scratch[: len(part)]).mul_(part)
            total = density.sum(-1, keepdim=True)
            torch.mul(density, grad[rows], out=out)
            mean = out.sum(-1, keepdim=True) / total.clamp_min(tiny)
            out.addcmul_(density, mean, value=-1).mul_(1 / ctx.temperature)
        return result, None, None, None


def _allocate_scratch(scores: Tensor) -> Tensor:
    """Return memory for one piece: fresh memory would cost more than the arithmetic."""
    return torch.empty_like(scores[: _count_rows_per_piece(scores)])


def _count_rows_per_piece(scores: Tensor) -> int:
    chunk = CHUNK_GPU if scores.is_cuda else CHUNK
    return max(1, chunk // scores.size(-1))


def _split(scores: Tensor) -> Iterator[slice]:
    step = _count_rows_per_piece(scores)
    for start in range(0, scores.size(0), step):
        yield slice(start, start + step)


def _solve_with_sums(
    out: Tensor, scores: Tensor, k: int, temperature: float, pool: CandidatePool
) -> bool:
    """Write memberships to ``out``; False if that needs more than MAX_POWERS sums."""
    eps = torch.finfo(scores.dtype).eps
    num_powers = _count_needed_powers(float(pool.highest.max()), math.log(eps))
    sums = _sum_powers(out, scores, temperature, min(num_powers, MAX_POWERS), pool)
    members = scores.gather(1, pool.members)
    members = (members - pool.center).div_(temperature).sub_(pool.offset)
    top, index = members.topk(k)
    rest = members.scatter(1, index, -math.inf)
    start = torch.zeros_like(pool.offset)
    shift = balance_sides(-top, rest, start, partial(_sum_tail, sums))
    # A certified row needs no tail, and its sums over the pool may underflow.
    shift = shift.masked_fill(pool.bound.unsqueeze(-1) <= eps, 0.0)
    highest = float((pool.highest - shift).max())
    if _count_needed_powers(highest, math.log(eps)) > MAX_POWERS:
        return False
    growth, scratch = shift.exp(), _allocate_scratch(scores)
    for rows in _split(scores):  # `out` holds exp(z)
        part = out[rows]
        part.div_(torch.add(part, growth[rows], out=scratch[: len(part)]))
    out.scatter_(1, pool.members, members.sub_(shift).sigmoid_())
    return True


def _count_needed_powers(highest: float, log_eps: float) -> int:
    """Return how many powers of exp(z) give an error below eps, if z <= ``highest``."""
    return math.ceil(log_eps / highest) if highest < log_eps / 1000 else 1000


def _solve_with_all(out: Tensor, scores: Tensor, k: int, temperature: float) -> None:
    """Write memberships to ``out``, treating every candidate individually."""
    for rows in _split(scores):
        center, offset = solve_threshold(scores[rows], k, temperature)
        part = torch.sub(scores[rows], center, out=out[rows])
        torch.add(-offset, part, alpha=1 / temperature, out=part)
        _flush_(part).sigmoid_()


def _flush_(logits: Tensor) -> Tensor:
    """Replace logits of memberships below the normal range by -inf, in place.

    On many CPUs arithmetic on denormal numbers takes ten times longer.
    """
    return torch.threshold_(logits, math.log(torch.finfo(logits.dtype).tiny), -math.inf)


def _sum_powers(
    out: Tensor,
    scores: Tensor,
    temperature: float,
    num_powers: int,
    pool: CandidatePool,
) -> Tensor:
    """Return the sums over non-members of exp(j z), j = 1.., (rows, num_powers).

    Leaves exp(z) in ``out``, and 0 for the members.
    """
    # In a row with at most k entries infinity minus infinity must not occur.
    offset = pool.offset.clamp_min(torch.finfo(scores.dtype).min / 2).mul_(-LOG2_E)
    slope = LOG2_E / temperature
    result = scores.new_empty(scores.size(0), num_powers)
    small = math.sqrt(torch.finfo(scores.dtype).tiny)
    scratch = _allocate_scratch(scores)
    for rows in _split(scores):
        values = torch.sub(scores[rows], pool.center[rows], out=out[rows])
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


def _sum_tail(sums: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of sigmoid(z - shift) and of its derivative over non-members."""
    power = torch.arange(1, sums.size(1) + 1, dtype=sums.dtype, device=sums.device)
    sign = 1 - 2 * ((power + 1) % 2)
    terms = sums * sign * (-power * shift).exp()
    return terms.sum(-1, keepdim=True), (terms * power).sum(-1, keepdim=True)
