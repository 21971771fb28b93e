"""SOFT top-k memberships of long rows, at about the cost of a hard top-k.

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
from typing import Any, Iterator

import torch
from torch import Tensor

from .arguments import full_precision
from .candidate_pool import CandidatePool, certified_pool
from .short_rows import memberships_and_logits, short_memberships
from .threshold import balance_by_side, flush_, solve_threshold

__all__ = ["long_memberships"]

CHUNK, CHUNK_GPU = 2**19, 2**24  # entries in a piece: what fits a cache, fills a GPU
MAX_POWERS = 5
WIDEST = 0.02  # a pool of more groups than this costs more than sums of powers do
LOG2_E = math.log2(math.e)


def long_memberships(scores: Tensor, k: int, temperature: float) -> Tensor:
    """Return memberships of (rows, n) scores; see `soft_topk`."""
    tolerance = torch.finfo(scores.dtype).eps
    with torch.no_grad(), full_precision(scores):
        pool = certified_pool(scores, k, temperature, tolerance, widest=WIDEST)
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
