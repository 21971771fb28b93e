"""The largest entries of long rows, faster than ``torch.topk`` and just as exact.

The one unknown of SOFT top-k: the row threshold, by a Newton method without damping.

Memberships are ``sigmoid(z_i)`` with ``z_i = (s_i - tau) / T`` and must sum to k. Let
"top" be any k largest scores and "rest" the others. The condition reads

    V = sum over rest of sigmoid(z)  =  sum over top of sigmoid(-z) = U,

and ``f = log(V / U)`` is the function solved here. Two facts make it the right one:

- Both sums have positive terms only, so f has full relative precision however hard the
  selection is, where ``sum sigmoid(z) - k`` is all rounding error.
- Its slope in tau / T lies in [-2, -1]: every top score exceeds every other, so the
  mean of sigmoid(z) over top and that of sigmoid(-z) over rest add up to 1 at least.
  Newton's step is then between 1/2 and 2 times the distance to the root, so plain
  Newton converges from everywhere; it needs 2 to 5 steps.

SOFT top-k memberships and logits as one differentiable function of the scores.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .arguments import full_precision

__all__ = [
    "SHORT_ROW",
    "balance_by_side",
    "flush_",
    "group_maxima",
    "hard_gap",
    "is_settled",
    "known_maximum",
    "largest",
    "members_of",
    "memberships_and_logits",
    "short_memberships",
    "solve_threshold",
    "solve_threshold_per_row",
]

GROUP = 16  # one entry in 16 is left to sort after a pass at the speed of memory
SHORT_ROW = 4096  # below, torch.topk takes less time than the extra calls


def group_maxima(scores: Tensor) -> Tensor:
    """Return the maxima of GROUP interleaved entries each, (rows, n // GROUP).

    Group j holds the entries j, j + G, j + 2 G, ... with G = n // GROUP, so that the
    maximum runs over whole vectors. The last n % GROUP entries are in no group.
    """
    num_groups = scores.size(-1) // GROUP
    return scores[:, : GROUP * num_groups].unflatten(1, (GROUP, num_groups)).amax(1)


def largest(
    scores: Tensor, size: int, maxima: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return values and indices of the ``size`` largest entries, best first.

    These lie in the ``size`` groups whose maxima are the largest (or in no group).

    Args:
        scores: shape (rows, n).
        size: 1 <= size <= n.
        maxima: of ``scores``, from `group_maxima`, if known already.
    """
    num_groups = scores.size(-1) // GROUP
    if scores.size(-1) < SHORT_ROW or 4 * size > num_groups:
        return scores.topk(size)
    if maxima is None:
        maxima = group_maxima(scores)
    groups = maxima.topk(size, sorted=False).indices
    members = members_of(groups, num_groups, scores.size(-1))
    best, position = scores.gather(1, members).topk(size)
    return best, members.gather(1, position)


def members_of(groups: Tensor, num_groups: int, num_entries: int) -> Tensor:
    """Return the entries of some groups, and those in no group, (rows, members)."""
    strides = num_groups * torch.arange(GROUP, device=groups.device).unsqueeze(-1)
    members = (groups.unsqueeze(1) + strides).flatten(1)
    if num_entries == GROUP * num_groups:
        return members
    ungrouped = torch.arange(GROUP * num_groups, num_entries, device=groups.device)
    return torch.cat([members, ungrouped.expand(groups.size(0), -1)], 1)


MAX_STEPS = 8  # the worst of 12,000 adversarial float64 rows took 5
GPU_CHECK = 4  # the one step after which a GPU is asked; most rows are done by then
UNCHECKED_STEPS = 2  # fewer never suffice unless the row is hard already
SMALL = 4  # times eps ** (2 / 3): see `_newton_jointly`
JOINT_LENGTH = 256  # longer rows: fewer passes matter more, and careful sums


def solve_threshold(
    scores: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Solve ``sum sigmoid((s - centre) / temperature - offset) = k`` row by row.

    Args:
        scores: float32 or float64, shape (rows, n); -inf where deleted.
        k: 1 <= k <= n.
        temperature: T = epsilon / 2, in score units.

    Returns:
        centre and offset, both (rows, 1). In rows with no more than k entries, whose
        memberships are all 1, the offset is the most negative finite number.
    """
    lowest = torch.finfo(scores.dtype).min
    if k == scores.size(-1):
        return torch.zeros_like(scores[:, :1]), torch.full_like(scores[:, :1], lowest)
    if scores.size(-1) <= JOINT_LENGTH and not scores.is_cuda:
        solution = _solve_jointly(scores, k, temperature)
        if solution is not None:
            return solution
    top, index = largest(scores, k)
    rest = scores.scatter(-1, index, -math.inf)
    centre = top[:, -1:]
    best_rest = rest.amax(-1, keepdim=True)
    gap = (centre - best_rest) / temperature
    saturated = None
    if not known_maximum(gap) < math.inf:
        saturated = best_rest == -math.inf
        centre = centre.masked_fill(saturated, 0.0)
        best_rest = best_rest.masked_fill(saturated, 0.0)
        gap = gap.masked_fill(saturated, 0.0)
    narrowed = gap.clamp_max(hard_gap(scores.dtype))
    above = (centre - top) / temperature
    below = (rest - best_rest).div_(temperature).sub_(narrowed)
    offset = balance_by_side(above, below, narrowed / -2) + (narrowed - gap) / 2
    if saturated is not None:
        offset = offset.masked_fill(saturated, lowest)
    return centre, offset


def solve_threshold_per_row(
    scores: Tensor, k: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """As `solve_threshold`, for a ``k`` that differs by row and need not be whole.

    A fraction of k splits one candidate: it counts in part as top, for the rest of it
    as one of the others, and both facts about the slope stay true.

    Args:
        k: of the dtype of ``scores``, shape (rows, 1). Rows with k <= 0 select nothing,
            with the largest finite number as offset.
    """
    ordered = scores.sort(-1, descending=True).values
    num_valid = (scores > -math.inf).sum(-1, keepdim=True)
    rank = torch.arange(scores.size(-1), dtype=scores.dtype, device=scores.device)
    is_top = (k - rank).clamp(0.0, 1.0)
    saturated, empty = num_valid <= k, k <= 0
    ordinary = k.masked_fill(saturated | empty, 0.5)
    centre = ordered.gather(-1, ordinary.ceil().long() - 1)
    centre = centre.masked_fill(centre == -math.inf, 0.0)
    best_rest = ordered.gather(-1, ordinary.floor().long())
    best_rest = best_rest.masked_fill(best_rest == -math.inf, 0.0)
    gap = (centre - best_rest) / temperature
    narrowed = gap.clamp_max(hard_gap(scores.dtype))
    # What has no part in a side is at -inf there, so that its distance cannot matter.
    above = (centre - ordered).masked_fill(is_top == 0, -math.inf) / temperature
    below = (ordered - best_rest).masked_fill(is_top == 1, -math.inf) / temperature
    offset = balance_by_side(
        above, below - narrowed, narrowed / -2, weights=(is_top, 1 - is_top)
    )
    offset = offset + (narrowed - gap) / 2
    limits = torch.finfo(scores.dtype)
    offset = offset.masked_fill(saturated, limits.min)
    return centre, offset.masked_fill(empty, limits.max)


def hard_gap(dtype: torch.dtype) -> float:
    """Return the gap, in temperatures, beyond which both sides no longer interact.

    With a gap g, both sums are of order exp(-g / 2); below the rounding unit the
    solution relative to the middle of the gap stays the same, so that wider gaps are
    narrowed to this one and nothing underflows.
    """
    return -2 * math.log(torch.finfo(dtype).eps)


def known_maximum(values: Tensor, *, may_wait: bool = False) -> float:
    """Return the largest of ``values``, or NaN if any is or if it is not to be asked.

    Asking breaks a compiled graph and makes a GPU wait for its queue, which is done
    where ``may_wait`` says that it pays. Comparisons with NaN are false: callers then
    take the path that is right for any values.
    """
    must_wait = values.is_cuda and not may_wait
    if must_wait or torch.compiler.is_compiling() or not values.numel():
        return math.nan
    return float(values.max())


def _solve_jointly(
    scores: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor] | None:
    """Solve with few operations, for small rows; None if some have a gap of inf or NaN.

    Both sides are in one tensor, (2, rows, n): the others, then the top ones, each
    measured from its own best or worst and a distance of half the gap.
    """
    values, index = scores.topk(k + 1)
    top, index = values[:, :k], index[:, :k]
    centre, best_rest = values[:, k - 1 : k], values[:, k:]
    gap = centre - best_rest
    widest = known_maximum(gap)
    if not widest < math.inf:
        return None
    # A Python number costs more than a tensor of one entry, on each of few entries.
    rate = scores.new_full((), 1 / temperature)
    gap *= rate
    limit = hard_gap(scores.dtype)
    narrowed = gap if widest <= limit * temperature else gap.clamp_max(limit)
    below = (scores - best_rest).scatter_(1, index, -math.inf)
    above = torch.full_like(scores, -math.inf).scatter_(1, index, centre - top)
    sides = torch.stack([below, above]).mul_(rate).sub_(narrowed, alpha=0.5)
    offset = _newton_jointly(sides)
    return centre, torch.sub(offset.unsqueeze(-1), gap, alpha=0.5)


def _newton_jointly(sides: Tensor) -> Tensor:
    """Return the offset o that balances the sums of ``sigmoid(sides -+ o)``, (rows,).

    Small matrices take the difference and the sum of the two sides, which is cheaper
    than to take them apart. The last move is made with the slope of the one before. As
    moves shrink quadratically, m' = c m^2, it is then wrong by about 2 m'^2 / m =
    2 sqrt(c) m'^1.5; with c <= 1/4 that is 8 rounding units at most if m' is SMALL.
    """
    difference, both = _constants(sides.dtype)
    small = SMALL * torch.finfo(sides.dtype).eps ** (2 / 3)
    misplaced = sides.sigmoid()
    shift = slope = torch.zeros_like(misplaced[..., 0])  # -o and o, (2, rows)
    for step in range(MAX_STEPS):
        sums = misplaced.sum(-1)
        balance = torch.mm(difference, sums.log())
        if step >= UNCHECKED_STEPS and float((balance / slope).max()) <= small:
            break
        norms = torch.linalg.vector_norm(misplaced, dim=-1)
        slope = torch.mm(both, torch.addcmul(sums, norms, norms, value=-1).div_(sums))
        shift = torch.addcdiv(shift, balance, slope)
        torch.add(sides, shift.unsqueeze(-1), out=misplaced).sigmoid_()
    return torch.addcdiv(shift, balance, slope)[1]


def balance_by_side(
    above: Tensor,
    below: Tensor,
    offset: Tensor,
    tail: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    weights: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """Newton with few passes over memory, for long rows: (rows, k) and (rows, n).

    Args:
        above, below: in temperatures; see `_newton`.
        tail: what further candidates add to the sum over ``below`` and to its
            derivative, as a function of the offset.
        weights: how often each entry of ``above`` and ``below`` counts; once if None.
    """
    slope = previous = offset
    buffer = torch.empty_like(below)
    for step in range(MAX_STEPS):
        top_sum, top_spread = _sum_and_spread(torch.sigmoid(above + offset), weights[0])
        misplaced = torch.sub(below, offset, out=buffer).sigmoid_()
        rest_sum, rest_spread = _sum_and_spread(misplaced, weights[1])
        if tail is not None:
            tail_sum, tail_spread = tail(offset)
            rest_sum, rest_spread = rest_sum + tail_sum, rest_spread + tail_spread
        balance = (top_sum / rest_sum).log()
        if is_settled(step, balance, previous):
            return offset - balance / slope
        slope = top_spread / top_sum + rest_spread / rest_sum
        offset, previous = offset - balance / slope, balance
    return offset


def _sum_and_spread(misplaced: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    if weight is not None:
        spread = (misplaced * (1 - misplaced) * weight).sum(-1, keepdim=True)
        return (misplaced * weight).sum(-1, keepdim=True), spread
    total = misplaced.sum(-1, keepdim=True)
    norm = torch.linalg.vector_norm(misplaced, dim=-1, keepdim=True)
    return total, total - norm.square()


def flush_(logits: Tensor) -> Tensor:
    """Replace logits of memberships below the normal range by -inf, in place.

    On many CPUs arithmetic on denormal numbers takes ten times longer.
    """
    return torch.threshold_(logits, math.log(torch.finfo(logits.dtype).tiny), -math.inf)


def is_settled(step: int, balance: Tensor, previous: Tensor) -> bool:
    """Whether a last step with the slope of the step before is exact to rounding.

    That slope is wrong by about ``previous`` in proportion, so the step leaves an error
    of about the product; 64 rounding units of it move no membership by 1e-6 in float32.
    """
    if step < UNCHECKED_STEPS:
        return False
    error = (balance * previous).abs()
    largest_error = known_maximum(error, may_wait=step == GPU_CHECK)
    return largest_error <= 64 * torch.finfo(balance.dtype).eps


@lru_cache(maxsize=8)
def _constants(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the matrices that make (U - V, V - U) and twice the sum of (V, U)."""
    with torch.inference_mode(False):
        difference = torch.tensor([[-1, 1], [1, -1]], dtype=dtype)
        return difference, torch.ones_like(difference)


def short_memberships(
    scores: Tensor,
    k: int | Tensor,
    temperature: float,
    solution: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the memberships alone; arguments as in `memberships_and_logits`."""
    if isinstance(k, Tensor) or torch.compiler.is_compiling():
        return memberships_and_logits(scores, k, temperature, solution)[0]
    memberships: Tensor = _Memberships.apply(scores, k, temperature, solution)
    return memberships


def memberships_and_logits(
    scores: Tensor,
    k: int | Tensor,
    temperature: float,
    solution: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return memberships and logits of (rows, n) scores, as `solve_threshold` says.

    Args:
        k: a number, or of the dtype of ``scores``, shape (rows, 1), and differentiable.
        solution: what `solve_threshold` would return, if known.
    """
    memberships, logits = _SoftTopK.apply(scores, k, temperature, solution)
    return memberships, logits


class _Memberships(torch.autograd.Function):
    """Memberships with the fewest operations: short rows cost what these are worth."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        k: int,
        temperature: float,
        solution: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        if solution is None:
            # Without the bookkeeping of autograd an operation takes a third less.
            with full_precision(scores), torch.inference_mode():
                solution = solve_threshold(scores, k, temperature)
        centre, offset = solution
        logits = torch.add(-offset, scores - centre, alpha=1 / temperature)
        memberships = logits.sigmoid()
        if ctx.needs_input_grad[0]:
            density = logits.neg_().sigmoid_().mul_(memberships)
            ctx.save_for_backward(scores, density)
            ctx.k, ctx.temperature = k, temperature
        return memberships

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        scores, density = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            again, _ = memberships_and_logits(scores, ctx.k, ctx.temperature)
            (slope,) = torch.autograd.grad(again, scores, grad, create_graph=True)
            return slope, None, None, None
        weighted = density * grad
        mean = weighted.sum(-1, keepdim=True).div_(density.sum(-1, keepdim=True))
        mean.nan_to_num_()  # 0 / 0 where nothing is soft
        weighted.addcmul_(density, mean, value=-1)
        return weighted.mul_(1 / ctx.temperature), None, None, None


class _SoftTopK(torch.autograd.Function):
    """Memberships and logits of (rows, n) scores; the backward is differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        k: int | Tensor,
        temperature: float,
        solution: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature = temperature
        if solution is None:
            with full_precision(scores):
                if isinstance(k, Tensor):
                    solution = solve_threshold_per_row(scores, k, temperature)
                else:
                    solution = solve_threshold(scores, k, temperature)
        centre, offset = solution
        logits = torch.add(-offset, scores - centre, alpha=1 / temperature)
        memberships = logits.sigmoid()
        ctx.save_for_backward(logits, memberships, offset)
        return memberships, logits

    @staticmethod
    def backward(
        ctx: Any, grad_memberships: Tensor | None, grad_logits: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        logits, memberships, offset = ctx.saved_tensors
        grad, grad_k = None, None
        if grad_memberships is not None:
            grad, grad_k = _through_memberships(grad_memberships, logits, memberships)
        if grad_logits is not None:
            along, along_k = _through_logits(grad_logits, logits, offset)
            grad = along if grad is None else grad + along
            grad_k = along_k if grad_k is None else grad_k + along_k
        if grad is not None:
            grad = grad / ctx.temperature
        return grad, grad_k if ctx.needs_input_grad[1] else None, None, None


def _through_memberships(
    grad: Tensor, logits: Tensor, memberships: Tensor
) -> tuple[Tensor, Tensor]:
    density = memberships * (-logits).sigmoid()
    weighted = density * grad
    total = density.sum(-1, keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
    mean = weighted.sum(-1, keepdim=True) / total
    return torch.addcmul(weighted, density, mean, value=-1), mean


def _through_logits(
    grad: Tensor, logits: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    log_density = logsigmoid(logits) + logsigmoid(-logits)
    total = grad.sum(-1, keepdim=True)
    along = torch.addcmul(grad, torch.softmax(log_density, -1), total, value=-1)
    # The threshold of a row that selects all or nothing does not move.
    fixed = offset.abs() == torch.finfo(offset.dtype).max
    along_k = total * (-torch.logsumexp(log_density, -1, keepdim=True)).exp()
    return along.masked_fill(fixed, 0.0), along_k.masked_fill(fixed, 0.0)
