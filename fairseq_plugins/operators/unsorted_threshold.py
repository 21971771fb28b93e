"""The threshold of SOFT top-k for very many short rows, without sorting them.

An attention has a row for each head and query. There `torch.topk` costs as much as
thirty sigmoids, so that a start from the k-th score, as in `threshold`, would be most
of the work. This starts from mean and variance and keeps a bracket instead.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["unsorted_threshold"]

MAX_STEPS = 100  # bisection alone needs as many from the widest bracket
GPU_CHECKS = (8, 16, 32)  # steps after which a GPU is asked; nearly all rows need 6
LOGISTIC = 3 / math.pi**2  # a logistic distribution of scale 1 has variance 1 / this


def unsorted_threshold(scores: Tensor, k: Tensor) -> Tensor:
    """Solve ``sum sigmoid(scores - threshold) = k`` row by row.

    A Newton iteration on ``logit(mean of sigmoids) - logit(k / n)``, which is linear
    where all scores are equal; a step that leaves the bracket is a bisection.

    Args:
        scores: in temperatures, float32 or float64, (rows, n); -inf where deleted.
        k: positive, not necessarily whole, (rows, 1), of the same dtype.

    Returns:
        thresholds, (rows, 1): the most negative finite number in a row with no more
        than k entries, NaN in a row that has NaN or nothing but -inf.
    """
    is_valid = scores > -math.inf
    count = is_valid.sum(-1, keepdim=True).to(scores.dtype)
    saturated = count <= k
    k = torch.where(saturated, count / 2, k)
    target = (count / k - 1).log()
    threshold, low, high = _start(scores, is_valid, count, target)
    work = torch.empty_like(scores)
    limits = torch.finfo(scores.dtype)
    exact, small = 8 * limits.eps * k, math.sqrt(limits.eps)
    for step in range(MAX_STEPS):
        torch.sub(scores, threshold, out=work).sigmoid_()
        total = work.sum(-1, keepdim=True)
        spread = total - torch.linalg.vector_norm(work, dim=-1, keepdim=True).square()
        others = count - total
        excess = (total / others).log() + target
        low = torch.where(excess > 0, threshold, low)
        high = torch.where(excess < 0, threshold, high)
        move = excess * total * others / (spread * count)
        moved = threshold + move
        is_newton = (moved > low) & (moved < high)
        moved = torch.where(is_newton, moved, (low + high) / 2)
        is_exact = (total - k).abs() <= exact
        threshold = torch.where(is_exact, threshold, moved)
        # Newton's error is about the square of its last step. And where a threshold of
        # this size is too coarse for an exact sum, its neighbours end the search.
        is_narrow = high - low <= 2 * limits.eps * low.abs()
        going_on = ~(is_exact | is_narrow | (is_newton & (move.abs() <= small)))
        if _is_over(going_on, excess, step):
            break
    return threshold.masked_fill(saturated & (count > 0), limits.min)


def _start(
    scores: Tensor, is_valid: Tensor, count: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a first threshold and the bracket that it lies in.

    Scores with logistic noise are taken for a logistic distribution of the same mean
    and variance, whose quantile is known.
    """
    deleted = ~is_valid
    known = scores.masked_fill(deleted, 0.0)
    mean = known.sum(-1, keepdim=True) / count
    norm = torch.linalg.vector_norm(known, dim=-1, keepdim=True)
    variance = (norm.square() / count - mean.square()).clamp_min(0.0)
    start = mean + target * (1 + LOGISTIC * variance).sqrt()
    low = scores.masked_fill(deleted, math.inf).amin(-1, keepdim=True) + target
    high = scores.amax(-1, keepdim=True) + target
    return torch.minimum(torch.maximum(start, low), high), low, high


def _is_over(going_on: Tensor, excess: Tensor, step: int) -> bool:
    if torch.compiler.is_compiling() or (excess.is_cuda and step not in GPU_CHECKS):
        return False
    # A row of NaN never settles and must not keep the others.
    return not bool((going_on & ~excess.isnan()).any())
