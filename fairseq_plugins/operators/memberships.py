"""SOFT top-k memberships, exactly (Xie et al., 2020, arXiv:2002.06504, section 2).

The entropic optimal-transport plan between n scores and the two targets "selected" and
"not selected" has memberships ``A_i = sigmoid((s_i - tau) / T)`` with T = epsilon / 2
and tau such that the row sums to k. This solves for tau (see `threshold`) in place of
Sinkhorn's iteration, and differentiates in closed form:

    dA / ds = (diag(D) - D D' / sum(D)) / T,    D_i = A_i (1 - A_i).
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .arguments import check_k, effective_scores, full_precision, scale_by_epsilon
from .threshold import solve_threshold

__all__ = ["soft_topk", "soft_topk_logits"]


def soft_topk(
    scores: Tensor,
    k: int,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
) -> Tensor:
    """Return memberships in [0, 1] that sum to ``k`` and favour the largest scores.

    As ``epsilon`` tends to 0 this becomes the 0/1 indicator of ``scores.topk(k)``. A
    row depends on itself only. A deleted entry (masked, or -inf) has membership 0; a
    row with no more than k others gives each of them 1, with zero gradient.

    Args:
        scores: shape (..., n), any floating dtype; the maths is in float32 or float64.
        k: how many to select, 1 <= k <= n.
        epsilon: smoothing in the units of the scores: twice the temperature of the
            sigmoid. A number, or a tensor that broadcasts to shape (...).
        mask: True where valid, broadcastable to ``scores``.
        largest: False selects the smallest.

    Returns:
        memberships, shape (..., n), dtype of ``scores``.

    Raises:
        ValueError: an argument is out of its range.
    """
    memberships, _ = _solve(scores, k, epsilon, mask, largest)
    return memberships.to(scores.dtype)


def soft_topk_logits(
    scores: Tensor,
    k: int,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
) -> Tensor:
    """Return z with ``soft_topk(...) = sigmoid(z)``, for losses on log-memberships.

    ``-logsigmoid(z)`` and its gradient stay finite however hopeless a candidate is.
    Deleted entries have -inf. In a row with no more than k others these have a very
    large finite number (the largest of the maths' dtype). Arguments as in `soft_topk`.

    Returns:
        logits, shape (..., n), dtype of ``scores``.
    """
    _, logits = _solve(scores, k, epsilon, mask, largest)
    return logits.to(scores.dtype)


def _solve(
    scores: Tensor,
    k: int,
    epsilon: float | Tensor,
    mask: Tensor | None,
    largest: bool,
) -> tuple[Tensor, Tensor]:
    values = effective_scores(scores, mask, largest)
    check_k(k, values.size(-1))
    values, epsilon = scale_by_epsilon(values, epsilon)
    rows = values if values.dim() == 2 else values.reshape(-1, values.size(-1))
    memberships, logits = _SoftTopK.apply(rows, k, epsilon / 2)
    if values.dim() == 2:
        return memberships, logits
    return memberships.view(scores.shape), logits.view(scores.shape)


class _SoftTopK(torch.autograd.Function):
    """Memberships and logits of (rows, n) scores; the backward is differentiable."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, k: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature = temperature
        if k < scores.size(-1):
            with full_precision(scores):
                centre, offset = solve_threshold(scores, k, temperature)
            logits = torch.add(-offset, scores - centre, alpha=1 / temperature)
        else:
            lowest = torch.finfo(scores.dtype).min
            offset = torch.full_like(scores[:, :1], lowest)
            logits = scores - offset
        memberships = logits.sigmoid()
        ctx.save_for_backward(logits, memberships, offset)
        return memberships, logits

    @staticmethod
    def backward(
        ctx: Any, grad_memberships: Tensor | None, grad_logits: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        logits, memberships, offset = ctx.saved_tensors
        grad = None
        if grad_memberships is not None:
            grad = _through_memberships(grad_memberships, logits, memberships)
        if grad_logits is not None:
            along = _through_logits(grad_logits, logits, offset)
            grad = along if grad is None else grad + along
        return None if grad is None else grad / ctx.temperature, None, None


def _through_memberships(grad: Tensor, logits: Tensor, memberships: Tensor) -> Tensor:
    density = memberships * (-logits).sigmoid()
    weighted = density * grad
    total = density.sum(-1, keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
    mean = weighted.sum(-1, keepdim=True) / total
    return torch.addcmul(weighted, density, mean, value=-1)


def _through_logits(grad: Tensor, logits: Tensor, offset: Tensor) -> Tensor:
    weights = torch.softmax(logsigmoid(logits) + logsigmoid(-logits), -1)
    along = torch.addcmul(grad, weights, grad.sum(-1, keepdim=True), value=-1)
    # A saturated row has no threshold to move.
    return along.masked_fill(offset == torch.finfo(offset.dtype).min, 0.0)
