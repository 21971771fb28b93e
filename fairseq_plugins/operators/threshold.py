"""The one unknown of SOFT top-k: the row threshold, by a Newton method without damping.

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
"""
from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["hard_gap", "is_settled", "solve_threshold"]

MAX_STEPS = 8  # the worst of 12,000 adversarial float64 rows took 5
UNCHECKED_STEPS = 2  # fewer never suffice unless the row is hard already
MAX_CACHED = 4096  # building the constants of a small problem takes as long as a step


def solve_threshold(scores: Tensor, k: int, temperature: float) -> tuple[Tensor, ...]:
    """Solve ``sum sigmoid((s - centre) / temperature - offset) = k`` row by row.

    Args:
        scores: float32 or float64, shape (rows, n); -inf where deleted.
        k: 1 <= k < n.
        temperature: T = epsilon / 2, in score units.

    Returns:
        centre and offset, both (rows, 1). In rows with no more than k entries, whose
        memberships are all 1, the offset is the most negative finite number.
    """
    top, index = scores.topk(k)
    rest = scores.scatter(-1, index, -math.inf)
    centre = top[:, -1:]
    best_rest = rest.amax(-1, keepdim=True)
    gap = (centre - best_rest) / temperature
    limit = hard_gap(scores.dtype)
    if is_settled(gap, limit):
        offset = _newton(centre - top, rest - centre, temperature, gap / -2)
        return centre, offset
    saturated = best_rest == -math.inf
    centre = centre.masked_fill(saturated, 0.0)
    gap, narrowed = gap.masked_fill(saturated, 0.0), gap.clamp_max(limit)
    best_rest = best_rest.masked_fill(saturated, 0.0)
    below = rest - best_rest - narrowed * temperature
    offset = _newton(centre - top, below, temperature, narrowed / -2)
    offset = offset + (narrowed - gap) / 2
    return centre, offset.masked_fill(saturated, torch.finfo(scores.dtype).min)


def hard_gap(dtype: torch.dtype) -> float:
    """Return the gap, in temperatures, beyond which both sides no longer interact.

    With a gap g, both sums are of order exp(-g / 2); below the rounding unit the
    solution relative to the middle of the gap stays the same, so that wider gaps are
    narrowed to this one and nothing underflows.
    """
    return -2 * math.log(torch.finfo(dtype).eps)


def is_settled(values: Tensor, bound: float) -> bool:
    """Whether all ``values`` are known to be at most ``bound`` (NaN is not).

    Asking makes a GPU wait for its queue and breaks a compiled graph, so there the
    answer is no, and callers take the path that is right for any values.
    """
    if values.is_cuda or torch.compiler.is_compiling() or not values.numel():
        return False
    return float(values.max()) <= bound


def _newton(above: Tensor, below: Tensor, temperature: float, offset: Tensor) -> Tensor:
    """Balance ``sum sigmoid(above + offset)`` and ``sum sigmoid(below - offset)``.

    Rows are laid out last: sums over candidates are then sums of whole vectors.
    """
    joint = torch.cat([above, below], -1).t().contiguous().mul_(1 / temperature)
    sides, sign, difference, both = _constants(
        above.size(-1), below.size(-1), above.dtype, above.device
    )
    offset = slope = offset.t()
    # Once the balance is this small the previous slope makes an exact last step.
    small = 4 * torch.finfo(above.dtype).eps ** (2 / 3)
    for step in range(MAX_STEPS):
        misplaced = torch.addcmul(joint, sign, offset).sigmoid_()
        sums = sides @ misplaced
        balance = difference @ sums.log()
        if step >= UNCHECKED_STEPS and is_settled(balance.abs(), small):
            return (offset - balance / slope).t()
        spread = sides @ torch.addcmul(misplaced, misplaced, misplaced, value=-1)
        slope = both @ (spread / sums)
        offset = offset - balance / slope
    return offset.t()


def _constants(
    num_top: int, num_rest: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """Return the matrices that sum the two sides, their signs, and log U - log V."""
    if torch.compiler.is_compiling() or num_rest > MAX_CACHED:
        return _make_constants(num_top, num_rest, dtype, device)
    return _cached_constants(num_top, num_rest, dtype, device)


def _make_constants(
    num_top: int, num_rest: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    sides = torch.zeros(2, num_top + num_rest, dtype=dtype, device=device)
    sides[0, :num_top] = 1
    sides[1, num_top:] = 1
    sign = (sides[0] - sides[1]).unsqueeze(-1)
    both = torch.ones(1, 2, dtype=dtype, device=device)
    difference = both.clone()
    difference[0, 1] = -1
    return sides, sign, difference, both


_cached_constants = lru_cache(maxsize=64)(_make_constants)
