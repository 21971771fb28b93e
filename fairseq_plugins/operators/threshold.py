"""The one unknown of SOFT top-k, the threshold of a row, and its differentiation.

Memberships are ``A_i = sigmoid(z_i)`` with ``z_i = (s_i - tau) / T`` and must sum to k.
Let "top" be any k largest scores and "rest" the others. The condition reads

    V = sum over rest of sigmoid(z)  =  sum over top of sigmoid(-z) = U,

and Newton's method without damping solves ``f = log(V / U) = 0``. Two facts make f the
right function:

- Both sums have positive terms only, so f has full relative precision however hard the
  selection is. In ``sum sigmoid(z) - k`` only rounding errors would be left.
- Its slope in tau / T lies in [-2, -1]: every top score is at least every other, so the
  mean of sigmoid(z) over top and that of sigmoid(-z) over rest add up to at least 1. A
  step is between 1/2 and 2 times the distance to the root, so the method converges
  from any start, in 2 to 5 steps.

The gradient is ``dA / ds = (diag(D) - D D' / sum(D)) / T`` with ``D = A (1 - A)``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .arguments import full_precision, has_values, is_transformed

__all__ = [
    "GROUP",
    "SHORT_ROW",
    "balance_sides",
    "compute_group_maxima",
    "compute_memberships",
    "compute_memberships_and_logits",
    "differentiate_again",
    "get_hard_gap",
    "get_maximum",
    "get_members",
    "select_largest",
    "solve_threshold",
]

GROUP = 16  # one entry in 16 is left to sort after a pass at the speed of memory
SHORT_ROW = 4096  # below, torch.topk takes less time than the extra calls
MAX_STEPS = 8  # the worst of 12,000 adversarial float64 rows took 5
GPU_CHECK = 4  # the only step after which a GPU is queried; most rows are done by then
UNCHECKED_STEPS = 2  # fewer never suffice unless the row is hard already
SMALL = 4  # times eps ** (2 / 3): see `_balance_jointly`
JOINT_LENGTH = 256  # longer rows: fewer passes matter more, and careful sums


def compute_group_maxima(scores: Tensor) -> Tensor:
    """Return the maxima of groups of GROUP entries, (rows, n // GROUP).

    Group j holds the entries j, j + G, j + 2 G, ... with G = n // GROUP, so that the
    maximum is over whole vectors. The last n % GROUP entries are in no group.
    """
    num_groups = scores.size(-1) // GROUP
    return scores[:, : GROUP * num_groups].unflatten(1, (GROUP, num_groups)).amax(1)


def select_largest(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return values and indices of the ``size`` largest of (rows, n), best first.

    As exact as ``torch.topk`` and faster on long rows: the entries lie in the ``size``
    groups with the largest maxima, or in no group.
    """
    num_groups = scores.size(-1) // GROUP
    if scores.size(-1) < SHORT_ROW or 4 * size > num_groups:
        return scores.topk(size)
    groups = compute_group_maxima(scores).topk(size, sorted=False).indices
    members = get_members(groups, num_groups, scores.size(-1))
    best, position = scores.gather(1, members).topk(size)
    return best, members.gather(1, position)


def get_members(groups: Tensor, num_groups: int, num_entries: int) -> Tensor:
    """Return the indices in ``groups`` and those in no group, (rows, members)."""
    strides = num_groups * torch.arange(GROUP, device=groups.device).unsqueeze(-1)
    members = (groups.unsqueeze(1) + strides).flatten(1)
    if num_entries == GROUP * num_groups:
        return members
    ungrouped = torch.arange(GROUP * num_groups, num_entries, device=groups.device)
    return torch.cat([members, ungrouped.expand(groups.size(0), -1)], 1)


def solve_threshold(
    scores: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Solve ``sum sigmoid((s - center) / temperature - offset) = k`` row by row.

    Args:
        scores: float32 or float64, shape (rows, n); -inf where deleted.
        k: 1 <= k <= n.
        temperature: T = epsilon / 2, in score units.

    Returns:
        center and offset, both (rows, 1). In rows with no more than k entries, whose
        memberships are all 1, the offset is the most negative finite number.
    """
    lowest = torch.finfo(scores.dtype).min
    if k == scores.size(-1):
        return torch.zeros_like(scores[:, :1]), torch.full_like(scores[:, :1], lowest)
    if scores.size(-1) <= JOINT_LENGTH and not scores.is_cuda:
        solution = _solve_jointly(scores, k, temperature)
        if solution is not None:
            return solution
    top, index = select_largest(scores, k)
    rest = scores.scatter(-1, index, -math.inf)
    center = top[:, -1:]
    best_rest = rest.amax(-1, keepdim=True)
    gap = (center - best_rest) / temperature
    saturated = None
    if not get_maximum(gap) < math.inf:
        saturated = best_rest == -math.inf
        center = center.masked_fill(saturated, 0.0)
        best_rest = best_rest.masked_fill(saturated, 0.0)
        gap = gap.masked_fill(saturated, 0.0)
    narrowed = gap.clamp_max(get_hard_gap(scores.dtype))
    above = (center - top) / temperature
    below = (rest - best_rest).div_(temperature).sub_(narrowed)
    offset = balance_sides(above, below, narrowed / -2) + (narrowed - gap) / 2
    if saturated is not None:
        offset = offset.masked_fill(saturated, lowest)
    return center, offset


def _solve_per_row(
    scores: Tensor, k: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """As `solve_threshold`, for (rows, 1) values of ``k`` that need not be whole.

    A fraction of k splits one candidate, which counts partly as top and partly as one
    of the others; both facts about the slope remain true. Rows with k <= 0 select
    nothing; their offset is the largest finite number.
    """
    ordered = scores.sort(-1, descending=True).values
    num_valid = (scores > -math.inf).sum(-1, keepdim=True)
    rank = torch.arange(scores.size(-1), dtype=scores.dtype, device=scores.device)
    is_top = (k - rank).clamp(0.0, 1.0)
    saturated, empty = num_valid <= k, k <= 0
    # NaN is no index; it reaches the result of its row through `is_top`.
    ordinary = torch.where(saturated | empty | k.isnan(), 0.5, k)
    center = ordered.gather(-1, ordinary.ceil().long() - 1)
    center = center.masked_fill(center == -math.inf, 0.0)
    best_rest = ordered.gather(-1, ordinary.floor().long())
    best_rest = best_rest.masked_fill(best_rest == -math.inf, 0.0)
    gap = (center - best_rest) / temperature
    narrowed = gap.clamp_max(get_hard_gap(scores.dtype))
    # An entry that is not on a side is at -inf there.
    above = (center - ordered).masked_fill(is_top == 0, -math.inf) / temperature
    below = (ordered - best_rest).masked_fill(is_top == 1, -math.inf) / temperature
    offset = balance_sides(
        above, below - narrowed, narrowed / -2, weights=(is_top, 1 - is_top)
    )
    offset = offset + (narrowed - gap) / 2
    limits = torch.finfo(scores.dtype)
    offset = offset.masked_fill(saturated, limits.min)
    return center, offset.masked_fill(empty, limits.max)


def get_hard_gap(dtype: torch.dtype) -> float:
    """Return the gap, in temperatures, beyond which both sides no longer interact.

    With a gap g, both sums are of order exp(-g / 2). Below the rounding unit the
    solution relative to the middle of the gap stays the same, so wider gaps are
    narrowed to this one, which avoids underflow.
    """
    return -2 * math.log(torch.finfo(dtype).eps)


def get_maximum(values: Tensor, *, may_wait: bool = False) -> float:
    """Return the largest of ``values``; NaN if one is NaN or if it cannot be read.

    Reading breaks a compiled graph and makes a GPU wait, so a GPU is only read with
    ``may_wait``. Comparisons with NaN are false, and callers then take the path that
    is right for any values.
    """
    must_wait = values.is_cuda and not may_wait
    if must_wait or torch.compiler.is_compiling() or not values.numel():
        return math.nan
    if not has_values(values):
        return math.nan
    return float(values.max())


def _solve_jointly(
    scores: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor] | None:
    """Solve short rows with few operations; None if a gap is infinite or NaN.

    Both sides are in one tensor, (2, rows, n): the rest, measured from its best entry,
    and the top, measured from its worst, both moved by half the gap.
    """
    values, index = scores.topk(k + 1)
    top, index = values[:, :k], index[:, :k]
    center, best_rest = values[:, k - 1 : k], values[:, k:]
    gap = center - best_rest
    widest = get_maximum(gap)
    if not widest < math.inf:
        return None
    # On few entries a Python number costs more than a tensor of one entry.
    rate = scores.new_full((), 1 / temperature)
    gap *= rate
    limit = get_hard_gap(scores.dtype)
    narrowed = gap if widest <= limit * temperature else gap.clamp_max(limit)
    below = (scores - best_rest).scatter_(1, index, -math.inf)
    above = torch.full_like(scores, -math.inf).scatter_(1, index, center - top)
    sides = torch.stack([below, above]).mul_(rate).sub_(narrowed, alpha=0.5)
    offset = _balance_jointly(sides)
    return center, torch.sub(offset.unsqueeze(-1), gap, alpha=0.5)


def _balance_jointly(sides: Tensor) -> Tensor:
    """Return the offset o that balances the sums of ``sigmoid(sides -+ o)``, (rows,).

    Small matrices compute the difference and the sum of the two sides, which is cheaper
    than separating them. The last step uses the slope of the step before. As steps
    shrink quadratically, m' = c m^2, it is then wrong by about 2 m'^2 / m =
    2 sqrt(c) m'^1.5; with c <= 1/4 that is at most 8 rounding units if m' is SMALL.
    """
    difference, both = _get_constants(sides.dtype)
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


def balance_sides(
    above: Tensor,
    below: Tensor,
    offset: Tensor,
    tail: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    weights: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """Return the offset o for which the top and the rest have equal sums, (rows, 1).

    The sums are those of ``sigmoid(above + o)`` and ``sigmoid(below - o)``. Newton's
    method with few passes over memory, for long rows. The last step uses the slope of
    the step before, which is wrong by about the balance before that step, relatively.
    The error left is about the product of the two balances: 64 rounding units of it
    change no membership by 1e-6 in float32.

    Args:
        above: distances of the top, in temperatures, (rows, k).
        below: distances of the rest, in temperatures, (rows, n).
        offset: the start.
        tail: returns, for an offset, the sum of further candidates and its derivative,
            to be added to those of ``below``.
        weights: how often each entry of ``above`` and ``below`` counts; None for once.
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
        if step >= UNCHECKED_STEPS:
            error = get_maximum((balance * previous).abs(), may_wait=step == GPU_CHECK)
            if error <= 64 * torch.finfo(balance.dtype).eps:
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


@lru_cache(maxsize=8)
def _get_constants(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the matrices that make (U - V, V - U) and twice the sum of (V, U)."""
    with torch.inference_mode(False):
        difference = torch.tensor([[-1, 1], [1, -1]], dtype=dtype)
        return difference, torch.ones_like(difference)


def compute_memberships(
    scores: Tensor,
    k: int | Tensor,
    temperature: float,
    solution: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return only the memberships; arguments as in `compute_memberships_and_logits`.

    ``solution`` is the result of `solve_threshold`, if known.
    """
    if isinstance(k, Tensor) or is_transformed(scores):
        return compute_memberships_and_logits(scores, k, temperature)[0]
    memberships: Tensor = _Memberships.apply(scores, k, temperature, solution)
    return memberships


def compute_memberships_and_logits(
    scores: Tensor, k: int | Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return memberships and logits of (rows, n) scores, both twice differentiable.

    Args:
        scores, temperature: as in `solve_threshold`.
        k: a number; or (rows, 1), of the dtype of ``scores``, differentiable.
    """
    is_compiling = torch.compiler.is_compiling()
    function = _SoftTopK if is_compiling else _TransformableSoftTopK
    memberships, logits, _ = function.apply(scores, k, temperature)
    return memberships, logits


def differentiate_again(
    scores: Tensor, k: int, temperature: float, grad: Tensor
) -> Tensor:
    """Return the gradient of the memberships as a differentiable function."""
    memberships, _ = compute_memberships_and_logits(scores, k, temperature)
    (result,) = torch.autograd.grad(memberships, scores, grad, create_graph=True)
    return result


class _Memberships(torch.autograd.Function):
    """Memberships with few operations, whose number decides the cost of short rows."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        k: int,
        temperature: float,
        solution: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        if solution is None:
            # In inference mode an operation takes a third less time.
            with full_precision(scores), torch.inference_mode():
                solution = solve_threshold(scores, k, temperature)
        center, offset = solution
        logits = torch.add(-offset, scores - center, alpha=1 / temperature)
        memberships = logits.sigmoid()
        if ctx.needs_input_grad[0]:
            density = logits.neg_().sigmoid_().mul_(memberships)
            ctx.save_for_backward(scores, density)
            ctx.k, ctx.temperature = k, temperature
        return memberships

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        scores, density = ctx.saved_tensors
        if torch.is_grad_enabled():
            again = differentiate_again(scores, ctx.k, ctx.temperature, grad)
            return again, None, None, None
        weighted = density * grad
        mean = weighted.sum(-1, keepdim=True).div_(density.sum(-1, keepdim=True))
        mean.nan_to_num_()  # 0 / 0 in a hard row
        weighted.addcmul_(density, mean, value=-1)
        return weighted.mul_(1 / ctx.temperature), None, None, None


class _SoftTopK(torch.autograd.Function):
    """Memberships, logits and offsets of (rows, n) scores, differentiable any times."""

    @staticmethod
    def forward(
        scores: Tensor, k: int | Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        with full_precision(scores):
            if isinstance(k, Tensor):
                center, offset = _solve_per_row(scores, k, temperature)
            else:
                center, offset = solve_threshold(scores, k, temperature)
        logits = torch.add(-offset, scores - center, alpha=1 / temperature)
        return logits.sigmoid(), logits, offset

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        memberships, logits, offset = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(offset)
        ctx.save_for_backward(logits, memberships, offset)
        ctx.save_for_forward(logits, memberships, offset)
        ctx.temperature = inputs[2]

    @staticmethod
    def backward(
        ctx: Any,
        grad_memberships: Tensor | None,
        grad_logits: Tensor | None,
        _: None,
    ) -> tuple[Tensor | None, Tensor | None, None]:
        logits, memberships, offset = ctx.saved_tensors
        grad, grad_k = None, None
        if grad_memberships is not None:
            grad, grad_k = _differentiate_memberships(
                grad_memberships, logits, memberships
            )
        if grad_logits is not None:
            along, along_k = _differentiate_logits(grad_logits, logits, offset)
            grad = along if grad is None else grad + along
            grad_k = along_k if grad_k is None else grad_k + along_k
        if grad is not None:
            grad = grad / ctx.temperature
        return grad, grad_k if ctx.needs_input_grad[1] else None, None


class _TransformableSoftTopK(_SoftTopK):
    """`_SoftTopK` with the rules that `torch.compile` does not accept."""

    @staticmethod
    def jvp(
        ctx: Any, tangent: Tensor | None, tangent_k: Tensor | None, _: None
    ) -> tuple[Tensor, Tensor, None]:
        logits, memberships, offset = ctx.saved_tensors
        density = memberships * (-logits).sigmoid()
        rise = torch.zeros_like(logits) if tangent is None else tangent
        rise = rise / ctx.temperature
        weights, slope = _weigh_candidates(logits, offset)
        shift = (weights * rise).sum(-1, keepdim=True)
        if tangent_k is not None:
            shift = shift - slope * tangent_k
        change = (rise - shift).masked_fill(_is_fixed(offset), 0.0)
        return density * change, change, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        scores: Tensor,
        k: int | Tensor,
        temperature: float,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        rows = _move_batch(scores, in_dims[0], info.batch_size)
        if isinstance(k, Tensor):
            k = _move_batch(k, in_dims[1], info.batch_size).flatten(0, 1)
        found = _TransformableSoftTopK.apply(rows.flatten(0, 1), k, temperature)
        return tuple(each.unflatten(0, rows.shape[:2]) for each in found), (0, 0, 0)


def _move_batch(values: Tensor, dim: int | None, size: int) -> Tensor:
    if dim is None:
        return values.expand(size, *values.shape)
    return values.movedim(dim, 0)


def _differentiate_memberships(
    grad: Tensor, logits: Tensor, memberships: Tensor
) -> tuple[Tensor, Tensor]:
    density = memberships * (-logits).sigmoid()
    weighted = density * grad
    total = density.sum(-1, keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
    mean = weighted.sum(-1, keepdim=True) / total
    return torch.addcmul(weighted, density, mean, value=-1), mean


def _differentiate_logits(
    grad: Tensor, logits: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    weights, slope = _weigh_candidates(logits, offset)
    total = grad.sum(-1, keepdim=True)
    along = torch.addcmul(grad, weights, total, value=-1)
    fixed = _is_fixed(offset)
    return along.masked_fill(fixed, 0.0), (total * slope).masked_fill(fixed, 0.0)


def _weigh_candidates(logits: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Return D / sum(D), (rows, n), and 1 / sum(D), (rows, 1), also where D is tiny."""
    # An infinite density in a row that is fixed would make second derivatives NaN.
    log_density = logsigmoid(logits) + logsigmoid(-logits)
    log_density = log_density.masked_fill(_is_fixed(offset), 0.0)
    slope = (-torch.logsumexp(log_density, -1, keepdim=True)).exp()
    return torch.softmax(log_density, -1), slope


def _is_fixed(offset: Tensor) -> Tensor:
    """Return whether a row selects all or nothing: its threshold does not move."""
    return offset.abs() == torch.finfo(offset.dtype).max
