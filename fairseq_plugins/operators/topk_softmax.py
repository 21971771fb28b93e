"""Attention weights restricted softly to the k best positions.

Xie et al. (2020, arXiv:2002.06504), section 6: ``w = softmax(f + log A)`` with A the
SOFT top-k memberships of the scores f. With g the incoming gradient, h = w (g - sum
w g), D = A (1 - A) and T = epsilon / 2, the gradient is

    df = h + (c - D sum(c) / sum(D)) / T,    c = h (1 - A).

Memberships and weights are one function here, so the backward pass only needs scores,
weights and one threshold per row. Rows are processed in blocks that fit the cache.

An attention has a row for each head and query. On rows this short `torch.topk` costs
as much as thirty sigmoids, so the threshold is not solved from the k-th score as in
`threshold`. It starts from mean and variance and keeps a bracket instead.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .arguments import (
    check_epsilon,
    check_k,
    check_scores,
    expand_epsilon,
    expand_per_row,
    full_precision,
    is_transformed,
)
from .soft_topk import soft_topk_logits

__all__ = ["hard_topk_softmax", "topk_softmax"]

MAX_STEPS = 100  # bisection alone needs as many from the widest bracket
GPU_CHECKS = (8, 16, 32)  # steps after which a GPU is queried; most rows need 6
LOGISTIC = 3 / math.pi**2  # a logistic distribution of scale 1 has variance 1 / this
MIN_K = 1e-30  # memberships that sum to less are not in the range of float32
BLOCK = 1 << 17  # entries of a block on a CPU: half a megabyte of float32


def _solve_threshold(scores: Tensor, k: Tensor) -> Tensor:
    """Solve ``sum sigmoid(scores - threshold) = k`` row by row.

    A Newton iteration on ``logit(mean of sigmoids) - logit(k / n)``, which is linear
    where all scores are equal; a step that leaves the bracket is a bisection.

    Args:
        scores: in temperatures, float32 or float64, (rows, n); -inf where deleted.
        k: positive, need not be whole, (rows, 1), of the same dtype.

    Returns:
        thresholds, (rows, 1): the most negative finite number in a row with at most k
        entries, NaN in a row with NaN or without entries.
    """
    is_valid = scores > -math.inf
    count = is_valid.sum(-1, keepdim=True).to(scores.dtype)
    saturated = count <= k
    k = torch.where(saturated, count / 2, k)
    target = (count / k - 1).log()
    threshold, low, high = _choose_start(scores, is_valid, count, target)
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
        # Newton's error is about the square of its last step. The search also ends
        # when the bracket is as narrow as the rounding of the threshold.
        is_narrow = high - low <= 2 * limits.eps * low.abs()
        is_open = ~(is_exact | is_narrow | (is_newton & (move.abs() <= small)))
        if _is_over(is_open, excess, step):
            break
    return threshold.masked_fill(saturated & (count > 0), limits.min)


def _choose_start(
    scores: Tensor, is_valid: Tensor, count: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a first threshold and its bracket.

    The start is the quantile of a logistic distribution with the mean and the variance
    of the scores plus logistic noise.
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


def _is_over(is_open: Tensor, excess: Tensor, step: int) -> bool:
    if torch.compiler.is_compiling() or (excess.is_cuda and step not in GPU_CHECKS):
        return False
    # A row with NaN never converges and must not delay the others.
    return not bool((is_open & ~excess.isnan()).any())


def topk_softmax(
    scores: Tensor, k: float | Tensor, *, epsilon: float | Tensor, dim: int = -1
) -> Tensor:
    """Return ``softmax(scores + log A)``, A = SOFT top-k memberships of the scores.

    Rows are independent. A position at -inf has weight 0 and no gradient. A row with at
    most k other positions is an ordinary softmax, bit for bit. The limit is the
    ordinary softmax for k -> n and for epsilon -> infinity, and the softmax of the k
    largest scores for epsilon -> 0.

    Args:
        scores: attention scores f in nats, shape (..., n), any floating dtype; -inf
            where masked.
        k: positive number of positions, need not be whole; or a tensor that broadcasts
            to shape (...), differentiable. A row whose k is not positive becomes NaN.
        epsilon: smoothing in nats, twice the temperature of the memberships: a number,
            or a tensor that broadcasts to shape (...), differentiable.
        dim: the dimension of the positions; "..." is the shape without it.

    Returns:
        weights that sum to 1, shape (..., n), float32 (float64 for float64 scores). NaN
        in a row without positions, as in softmax.

    Raises:
        ValueError: k or epsilon is a number out of its range, or scores are not
            floating point or empty.
    """
    if dim != -1:
        return topk_softmax(scores.movedim(dim, -1), k, epsilon=epsilon).movedim(
            -1, dim
        )
    check_scores(scores)
    if not isinstance(epsilon, Tensor):
        check_epsilon(epsilon)
    if not isinstance(k, Tensor):
        _check_positive(k)
        if k >= scores.size(-1):
            return _softmax(scores)
    rows = scores.reshape(-1, scores.size(-1))
    arguments = rows, _expand_k(k, scores), _expand_temperature(epsilon, scores)
    if is_transformed(rows) and not torch.compiler.is_compiling():
        return _compose(*arguments).view(scores.shape)
    weights = _TopkSoftmax.apply(*arguments)
    return weights.view(scores.shape)


def hard_topk_softmax(scores: Tensor, k: int, *, dim: int = -1) -> Tensor:
    """Return the softmax of the k largest scores; other positions have weight 0.

    ``k`` must be an integer. Other arguments, result and errors as in `topk_softmax`;
    ties are broken arbitrarily.
    """
    if dim != -1:
        return hard_topk_softmax(scores.movedim(dim, -1), k).movedim(-1, dim)
    check_scores(scores)
    if isinstance(k, Tensor):
        raise ValueError("`k` must be an integer here, but is a tensor.")
    k = check_k(k, sys.maxsize)
    if k >= scores.size(-1):
        return _softmax(scores)
    values, index = scores.topk(k)
    weights = _softmax(values)
    return torch.zeros_like(scores, dtype=weights.dtype).scatter(-1, index, weights)


def _check_positive(k: float) -> None:
    if not (k > 0 and math.isfinite(k)):
        raise ValueError(f"`k` must be a positive number, but is {k}.")
    if k < MIN_K:
        raise ValueError(f"`k` must be at least {MIN_K:g}, but is {k}.")


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, -1, dtype=_widen(scores.dtype))


def _widen(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _expand_k(k: float | Tensor, scores: Tensor) -> Tensor:
    """Return k as (rows, 1), in the dtype of the computation; NaN if not positive."""
    if not isinstance(k, Tensor):
        return _fill_column(k, scores)
    per_row = expand_per_row("k", k, scores.shape[:-1]).to(_widen(scores.dtype))
    return torch.where(per_row >= MIN_K, per_row, math.nan).reshape(-1, 1)


def _expand_temperature(epsilon: float | Tensor, scores: Tensor) -> Tensor:
    """Return T as (rows, 1), in the dtype of the computation; NaN if out of range."""
    if not isinstance(epsilon, Tensor):
        return _fill_column(epsilon, scores) / 2
    values = scores if scores.dtype == torch.float64 else scores.float()
    return expand_epsilon(epsilon, values).reshape(-1, 1) / 2


def _fill_column(value: float, scores: Tensor) -> Tensor:
    dtype = _widen(scores.dtype)
    column = torch.full((1, 1), value, dtype=dtype, device=scores.device)
    return column.expand(scores.shape[:-1].numel(), 1)


def _compose(scores: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    """Return the weights by operators that can be differentiated any number of times.

    They sort the scores and are slower than `_TopkSoftmax`, whose arguments they have.
    """
    values = scores.to(temperature.dtype)
    with full_precision(values):
        logits = soft_topk_logits(
            values, k.squeeze(-1), epsilon=2 * temperature.squeeze(-1)
        )
        # The gradient of the logarithm at -inf would make second derivatives NaN.
        is_deleted = values == -math.inf
        log_memberships = logsigmoid(logits.masked_fill(is_deleted, 0.0))
        return torch.softmax(values + log_memberships, -1)


class _TopkSoftmax(torch.autograd.Function):
    """The weights of (rows, n) scores; k and the temperature are (rows, 1)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
        weights = torch.empty_like(scores, dtype=_widen(scores.dtype))
        thresholds = torch.empty_like(weights[:, :1])
        for block in _split(scores):
            logits = _scale_scores(scores[block], temperature[block])
            threshold = _solve_threshold(logits, k[block])
            thresholds[block] = threshold
            membership = logits.sub_(threshold).sigmoid_()
            part = torch.softmax(scores[block], -1, dtype=weights.dtype)
            part.mul_(membership)
            # Rows with at most k entries sum to 1 already; dividing adds rounding.
            total = part.sum(-1, keepdim=True)
            total.masked_fill_(threshold == torch.finfo(total.dtype).min, 1.0)
            torch.div(part, total, out=weights[block])
        ctx.save_for_backward(scores, weights, thresholds, k, temperature)
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, weights, thresholds, k, temperature = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiate_again(
                (scores, k, temperature), ctx.needs_input_grad, grad
            )
        result = torch.empty_like(scores)
        wants_k, wants_temperature = ctx.needs_input_grad[1:]
        grad_k = torch.empty_like(thresholds) if wants_k else None
        grad_temperature = torch.empty_like(thresholds) if wants_temperature else None
        tiny = torch.finfo(thresholds.dtype).tiny
        for block in _split(scores):
            logits = _scale_scores(scores[block], temperature[block])
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
                # At -inf, 0 times infinity must not occur.
                finite = logits.masked_fill_(through == 0, 0.0)
                moved = finite.mul_(through).sum(-1, keepdim=True)
                grad_temperature[block] = moved / -temperature[block]
            result[block] = direct.add_(through.div_(temperature[block]))
        return result, grad_k, grad_temperature


def _differentiate_again(
    inputs: tuple[Tensor, ...], is_needed: tuple[bool, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the weights as differentiable functions."""
    needed = [tensor for tensor, wanted in zip(inputs, is_needed) if wanted]
    found = iter(
        torch.autograd.grad(_compose(*inputs), needed, grad, create_graph=True)
    )
    return tuple(next(found) if wanted else None for wanted in is_needed)


def _scale_scores(scores: Tensor, temperature: Tensor) -> Tensor:
    """Return the scores in temperatures, relative to the row maximum."""
    values = scores.to(temperature.dtype)
    return (values - values.amax(-1, keepdim=True)).div_(temperature)


def _split(scores: Tensor) -> list[slice]:
    num_rows, length = scores.shape
    size = num_rows if scores.is_cuda else max(1, BLOCK // length)
    return [slice(i, i + size) for i in range(0, num_rows, max(1, size))]
