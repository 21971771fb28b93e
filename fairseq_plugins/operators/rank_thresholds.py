"""The k unknowns of sorted SOFT top-k: one threshold per rank, by Newton's method.

The plan is a softmax over the k ranks and "not selected", in which neighbouring logits
differ by ``d_li = (s_i - tau_l) / T``. With ``Q_li`` the share of candidate i in ranks
1..l and ``R_li = 1 - Q_li`` in later ones, the ranks hold one candidate each if, for
every l,

    V_l = sum of Q_li over i outside the l best  =  sum of R_li over the l best = U_l.

As for one threshold, the equations are solved as ``log(V_l / U_l) = 0``: sums of
positive terms keep full relative precision, diagonal slopes stay in [-2, -1], and the
Jacobian never degenerates as plans harden, where that of ``sum_i Q_li = l`` vanishes.

Tensors here have the rows last, (ranks, candidates, rows), so that sums over ranks and
over candidates add whole vectors.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

from .threshold import hard_gap, is_settled

__all__ = ["covariance", "plan_from", "shares", "solve_rank_thresholds"]

MAX_STEPS = 16  # the worst of 12,000 adversarial float64 rows took 8
UNCHECKED_STEPS = 2


def solve_rank_thresholds(
    scores: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return centre and offset, both (k, rows): tau = centre + temperature * offset.

    Args:
        scores: float32 or float64, shape (rows, n); -inf where deleted.
        k: 1 <= k <= n. In a row with m <= k entries, ranks after m stay empty and the
            m-th takes all that is left: their offsets are a huge negative number.
        temperature: T = epsilon / 2, in score units.
    """
    best, index = scores.topk(min(k + 1, scores.size(-1)))
    rest = scores.scatter(-1, index[:, :k], -math.inf).t()
    best = best.t().contiguous()
    if best.size(0) == k:
        best = torch.cat([best, torch.full_like(best[:1], -math.inf)])
    top, following = best[:-1], best[1:]
    is_open = following > -math.inf
    centre = top.masked_fill(~is_open, 0.0)
    following = following.masked_fill(~is_open, 0.0)
    gap = ((centre - following) / temperature).masked_fill(~is_open, 0.0)
    narrowed = gap.clamp_max(hard_gap(scores.dtype))

    rank = torch.arange(k, device=scores.device)
    is_top = (rank <= rank.unsqueeze(-1)).unsqueeze(-1)  # (k, k, 1): rank, candidate
    # Candidates below a wide gap are moved up, for the rank of that gap alone.
    below = following + narrowed * temperature
    inner = top - torch.where(is_top, centre.unsqueeze(1), below.unsqueeze(1))
    steps = torch.cat([inner, rest - below.unsqueeze(1)], 1) / temperature
    lowest = -math.sqrt(torch.finfo(scores.dtype).max)  # sums of k stay finite
    start = (narrowed / -2).masked_fill(~is_open, lowest)
    offset = _newton(steps, is_top, is_open, start)
    return centre, offset + (narrowed - gap) / 2


def plan_from(steps: Tensor) -> Tensor:
    """Return the plan, (k + 1, n, rows), whose neighbouring logits differ by ``steps``.

    The logit of rank j is the sum of ``steps`` from j on, up to a constant per
    candidate. Summing negative steps from the right and positive ones from the left
    puts the zero at the candidate's own rank, so that rounding does not grow with k.
    """
    weights = _weights_from(steps)
    return weights / weights.sum(0)


def shares(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q (ranks up to l) and R (later ones), (k, n, rows), without 1 - Q.

    Args:
        weights: the plan, or any multiple of it per candidate, (k + 1, n, rows).
    """
    total = weights.sum(0)
    within = running_sum(weights[:-1]) / total
    beyond = running_sum(weights[1:].flip(0)).flip(0) / total
    return within, beyond


def covariance(within: Tensor, beyond: Tensor) -> Tensor:
    """Return ``sum over candidates of cov(Q_l, Q_m) = Q_min R_max``, (k, k, rows)."""
    rows = []
    for rank in range(within.size(0)):
        rows.append((beyond[rank] * within[: rank + 1]).sum(1))
    lower = torch.stack([_padded(row, within.size(0)) for row in rows])
    strictly = torch.ones_like(lower[..., 0]).tril(-1).unsqueeze(-1)
    return lower + (lower * strictly).transpose(0, 1)


def running_sum(values: Tensor) -> Tensor:
    """Return the cumulative sum over the first dimension, by whole slices if few."""
    if values.size(0) > 16:
        return values.cumsum(0)
    sums = list(values.unbind(0))
    for rank in range(1, len(sums)):
        sums[rank] = sums[rank - 1] + sums[rank]
    return torch.stack(sums)


def _weights_from(steps: Tensor) -> Tensor:
    scaled = steps * (1 / math.log(2))  # 2 ** x is several times faster than e ** x
    zero = torch.zeros_like(steps[:1])
    left = running_sum(scaled.clamp_max(0.0).flip(0)).flip(0)
    right = running_sum(scaled.clamp_min(0.0))
    return torch.exp2(torch.cat([left, zero]) - torch.cat([zero, right]))


def _padded(row: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(row, (0, 0, 0, size - row.size(0)))


def _newton(steps: Tensor, is_top: Tensor, is_open: Tensor, offset: Tensor) -> Tensor:
    small = 4 * torch.finfo(steps.dtype).eps ** (2 / 3)
    closed = torch.diag_embed((~is_open).t().to(steps.dtype))
    jacobian = closed
    for step in range(MAX_STEPS):
        within, beyond = shares(_weights_from(steps - offset.unsqueeze(1)))
        sums = _misplaced(within, beyond, is_top)
        top_sum, rest_sum = (each.masked_fill(~is_open, 1.0) for each in sums)
        balance = (rest_sum / top_sum).log()
        # Once the balance is this small the previous Jacobian makes an exact last step.
        settled = step >= UNCHECKED_STEPS and is_settled(balance.abs(), small)
        if not settled:
            slopes = _jacobian(within, beyond, is_top, top_sum, rest_sum)
            jacobian = slopes.permute(2, 0, 1) + closed
        move, _ = torch.linalg.solve_ex(jacobian, balance.t().unsqueeze(-1))
        offset = offset + move.squeeze(-1).t()
        if settled:
            break
    return offset


def _misplaced(within: Tensor, beyond: Tensor, is_top: Tensor) -> tuple[Tensor, Tensor]:
    """Return U and V, (k, rows). The first k candidates are the best, in order."""
    k = within.size(0)
    top_sum = (beyond[:, :k] * is_top).sum(1)
    return top_sum, within[:, k:].sum(1) + (within[:, :k] * ~is_top).sum(1)


def _jacobian(
    within: Tensor, beyond: Tensor, is_top: Tensor, top_sum: Tensor, rest_sum: Tensor
) -> Tensor:
    """Return minus the Jacobian of log(V / U) in the offsets, (k, k, rows).

    A candidate outside the l best adds ``cov(Q_l, Q_m) / V_l``, one among them
    ``cov(Q_l, Q_m) / U_l``.
    """
    k = within.size(0)
    outside = covariance(within[:, k:], beyond[:, k:]) / rest_sum.unsqueeze(1)
    weight = torch.where(is_top, 1 / top_sum.unsqueeze(1), 1 / rest_sum.unsqueeze(1))
    inner, later = within[:, :k], beyond[:, :k]
    lower = ((weight * later).unsqueeze(1) * inner).sum(2)  # Q_m R_l, for m <= l
    upper = ((weight * inner).unsqueeze(1) * later).sum(2)  # Q_l R_m, for m > l
    is_lower = is_top.squeeze(-1).unsqueeze(-1)
    return outside + torch.where(is_lower, lower, upper)
