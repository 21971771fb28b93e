"""Sinkhorn's iteration in the log domain: the published algorithm, kept as the oracle.

Xie et al. (2020) transport scores to fixed anchors (0 and 1 for SOFT top-k; 0..k for
the sorted one) at squared cost. This runs the same iteration on the same problem until
the row sums are met, so that it can say how exact it is. It is slow when epsilon is
small, and only tests and benchmarks use it.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import check_epsilon

__all__ = ["SinkhornResult", "sinkhorn"]

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
