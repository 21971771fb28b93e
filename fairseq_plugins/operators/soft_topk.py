"""SOFT top-k memberships, exactly (Xie et al., 2020, arXiv:2002.06504, section 2).

The entropic optimal-transport plan between n scores and the two targets "selected" and
"not selected" has memberships ``A_i = sigmoid((s_i - tau) / T)`` with T = epsilon / 2
and tau such that the row sums to k. `threshold` solves for tau by Newton's method
instead of Sinkhorn's iteration. The gradient has a closed form:

    dA / ds = (diag(D) - D D' / sum(D)) / T,    D_i = A_i (1 - A_i).
"""

from __future__ import annotations

from torch import Tensor

from .arguments import (
    apply_along,
    check_k,
    expand_k,
    is_transformed,
    orient_scores,
    scale_by_epsilon,
)
from .large_n import compute_long_memberships
from .threshold import SHORT_ROW, compute_memberships, compute_memberships_and_logits

__all__ = ["soft_topk", "soft_topk_logits"]


def soft_topk(
    scores: Tensor,
    k: float | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
    dim: int = -1,
) -> Tensor:
    """Return memberships in [0, 1] that sum to ``k`` and favour the largest scores.

    As ``epsilon`` tends to 0 this becomes the 0/1 indicator of ``scores.topk(k)``. Rows
    are independent. A deleted entry (masked, or -inf) has membership 0. In a row with
    at most k other entries each of these has membership 1 and zero gradient.

    Args:
        scores: shape (..., n), any floating dtype; computed in float32 or float64.
        k: how many to select: an integer from 1 to n, or a float above 0 that need not
            be whole; or a tensor that broadcasts to shape (...), with a gradient if
            floating point. In a tensor, k <= 0 selects nothing and k >= n all.
        epsilon: smoothing in the units of the scores: twice the temperature of the
            sigmoid. A number, or a tensor that broadcasts to shape (...).
        mask: True where valid, broadcastable to ``scores``.
        largest: False selects the smallest.
        dim: the dimension of the candidates; "..." is the shape without it.

    Returns:
        memberships, shape (..., n), dtype of ``scores``.

    Raises:
        ValueError: an argument is out of its range.
    """
    if dim != -1:
        return apply_along(
            soft_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest, dim=dim
        )
    rows, k, epsilon = _prepare(scores, k, epsilon, mask, largest)
    is_short = rows.size(-1) < SHORT_ROW or is_transformed(rows)
    if is_short or isinstance(k, Tensor):
        memberships = compute_memberships(rows, k, epsilon / 2)
    else:
        memberships = compute_long_memberships(rows, k, epsilon / 2)
    return _restore(scores, memberships)


def soft_topk_logits(
    scores: Tensor,
    k: float | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
    dim: int = -1,
) -> Tensor:
    """Return z with ``soft_topk(...) = sigmoid(z)``, for losses on log-memberships.

    ``-logsigmoid(z)`` and its gradient stay finite however low a score is. Deleted
    entries have -inf. In a row with at most k other entries these have the largest
    finite number. Arguments and errors as in `soft_topk`.

    Returns:
        logits, shape (..., n), dtype of ``scores``.
    """
    if dim != -1:
        return apply_along(
            soft_topk_logits,
            scores,
            k,
            epsilon=epsilon,
            mask=mask,
            largest=largest,
            dim=dim,
        )
    rows, k, epsilon = _prepare(scores, k, epsilon, mask, largest)
    _, logits = compute_memberships_and_logits(rows, k, epsilon / 2)
    return _restore(scores, logits)


def _prepare(
    scores: Tensor,
    k: float | Tensor,
    epsilon: float | Tensor,
    mask: Tensor | None,
    largest: bool,
) -> tuple[Tensor, int | Tensor, float]:
    """Check the arguments; return scores to maximize, (rows, n), k and epsilon."""
    values = orient_scores(scores, mask, largest)
    if isinstance(k, float):
        k = _convert_float(k, values)
    k = expand_k(k, values) if isinstance(k, Tensor) else check_k(k, values.size(-1))
    values, epsilon = scale_by_epsilon(values, epsilon)
    if values.dim() != 2:
        values = values.reshape(-1, values.size(-1))
    return values, k, epsilon


def _convert_float(k: float, values: Tensor) -> int | Tensor:
    num_candidates = values.size(-1)
    if not 0 < k <= num_candidates:
        raise ValueError(
            f"`k` must be above 0 and at most {num_candidates} (the number of "
            f"candidates), but is {k}."
        )
    return int(k) if k.is_integer() else values.new_full((), k)


def _restore(scores: Tensor, rows: Tensor) -> Tensor:
    # A view, even of the same shape, would add a step to the backward pass.
    if scores.dim() != 2:
        rows = rows.view(scores.shape)
    return rows if rows.dtype == scores.dtype else rows.to(scores.dtype)
