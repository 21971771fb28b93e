"""The threshold of SOFT top-k for very many short rows, without sorting them.

An attention has a row for each head and query. There `torch.topk` costs as much as
thirty sigmoids, so that a start from the k-th score, as in `threshold`, would be most
of the work. This starts from mean and variance and keeps a bracket instead.

Attention weights restricted softly to the k best positions.

Xie et al. (2020, arXiv:2002.06504), section 6: ``w = softmax(f + log A)`` with A the
SOFT top-k memberships of the scores f. Memberships and weights are one function here,
with h = w (g - sum w g) for an incoming gradient g, D = A (1 - A), T = epsilon / 2,

    df = h + (c - D sum(c) / sum(D)) / T,    c = h (1 - A),

so that nothing but scores, weights and one threshold a row is kept for the backward
pass. Rows are done in blocks that fit a processor's cache.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .arguments import check_epsilon

__all__ = ["hard_topk_softmax", "topk_softmax", "unsorted_threshold"]

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


BLOCK = 1 << 17  # entries of a block on a CPU: half a megabyte of float32


def topk_softmax(
    scores: Tensor, k: float | Tensor, *, epsilon: float | Tensor
) -> Tensor:
    """Return ``softmax(scores + log A)``, A = SOFT top-k memberships of the scores.

    A row depends on itself only. A position at -inf has weight 0 and no gradient. A row
    with no more than k others is an ordinary softmax, and so is all of it, bit for bit,
    if k is a number and no row is longer. For k -> n or epsilon -> infinity it tends
    to the ordinary softmax, for epsilon -> 0 to that of the k largest alone.

    Args:
        scores: attention scores f in nats, shape (..., n), any floating dtype; -inf
            where masked.
        k: positive number of positions, not necessarily whole, or a tensor that
            broadcasts to shape (...) and may be learnt.
        epsilon: smoothing in nats, twice the temperature of the memberships: a number,
            or a tensor that broadcasts to shape (...) and may be learnt.

    Returns:
        weights that sum to 1, shape (..., n), float32 (float64 for such scores). NaN in
        a row with nothing but -inf, as softmax has it.

    Raises:
        ValueError: k or epsilon is a number and not positive.
    """
    if not isinstance(epsilon, Tensor):
        check_epsilon(epsilon)
    if not isinstance(k, Tensor):
        _check_k(k)
        if k >= scores.size(-1):
            return _softmax(scores)
    rows = scores.reshape(-1, scores.size(-1))
    weights = _TopkSoftmax.apply(rows, _column(k, scores), _column(epsilon, scores) / 2)
    return weights.view(scores.shape)


def hard_topk_softmax(scores: Tensor, k: int) -> Tensor:
    """Return the softmax of the k largest scores; other positions have weight 0.

    Arguments and result as in `topk_softmax`; of equal scores any are taken.
    """
    _check_k(k)
    if k >= scores.size(-1):
        return _softmax(scores)
    values, index = scores.topk(k)
    weights = _softmax(values)
    return torch.zeros_like(scores, dtype=weights.dtype).scatter(-1, index, weights)


def _check_k(k: float) -> None:
    if not (k > 0 and math.isfinite(k)):
        raise ValueError(f"`k` must be a positive number, but is {k}.")


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, -1, dtype=_wide(scores.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _column(value: float | Tensor, scores: Tensor) -> Tensor:
    """Return one value a row, (rows, 1), in the dtype of the maths."""
    dtype = _wide(scores.dtype)
    if isinstance(value, Tensor):
        return value.to(dtype).expand(scores.shape[:-1]).reshape(-1, 1)
    column = torch.full((1, 1), value, dtype=dtype, device=scores.device)
    return column.expand(scores.shape[:-1].numel(), 1)


class _TopkSoftmax(torch.autograd.Function):
    """The weights of (rows, n) scores; k and the temperature are (rows, 1)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
        weights = torch.empty_like(scores, dtype=_wide(scores.dtype))
        thresholds = torch.empty_like(weights[:, :1])
        for block in _blocks(scores):
            logits = _logits(scores[block], temperature[block])
            threshold = unsorted_threshold(logits, k[block])
            thresholds[block] = threshold
            membership = logits.sub_(threshold).sigmoid_()
            part = torch.softmax(scores[block], -1, dtype=weights.dtype)
            part.mul_(membership)
            # Saturated rows sum to 1 already: dividing would only add rounding.
            total = part.sum(-1, keepdim=True)
            total.masked_fill_(threshold == torch.finfo(total.dtype).min, 1.0)
            torch.div(part, total, out=weights[block])
        ctx.save_for_backward(scores, weights, thresholds, temperature)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, weights, thresholds, temperature = ctx.saved_tensors
        result = torch.empty_like(scores)
        wants_k, wants_temperature = ctx.needs_input_grad[1:]
        grad_k = torch.empty_like(thresholds) if wants_k else None
        grad_temperature = torch.empty_like(thresholds) if wants_temperature else None
        tiny = torch.finfo(thresholds.dtype).tiny
        for block in _blocks(scores):
            logits = _logits(scores[block], temperature[block])
            logits.sub_(thresholds[block])
            direct = weights[block] * grad[block]
            direct.addcmul_(weights[block], direct.sum(-1, keepdim=True), value=-1)
            membership = logits.sigmoid()
            rest = 1 - membership
            density = membership.mul_(rest)
            through = rest.mul_(direct)
            total = density.sum(-1, keepdim=True).clamp_min_(tiny)
            slope = through.sum(-1, keepdim=True).div_(total)
            if grad_k is not None:
                grad_k[block] = slope
            through.addcmul_(density, slope, value=-1)
            if grad_temperature is not None:
                # Positions at -inf have no part in it.
                finite = logits.masked_fill_(through == 0, 0.0)
                moved = finite.mul_(through).sum(-1, keepdim=True)
                grad_temperature[block] = moved / -temperature[block]
            result[block] = direct.add_(through.div_(temperature[block]))
        return result, grad_k, grad_temperature


def _logits(scores: Tensor, temperature: Tensor) -> Tensor:
    """Return the scores in temperatures, beneath the row's best."""
    values = scores.to(temperature.dtype)
    return (values - values.amax(-1, keepdim=True)).div_(temperature)


def _blocks(scores: Tensor) -> list[slice]:
    num_rows, length = scores.shape
    size = num_rows if scores.is_cuda else max(1, BLOCK // length)
    return [slice(i, i + size) for i in range(0, num_rows, max(1, size))]
