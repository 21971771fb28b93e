"""Arguments of the operators: checks, masks, dtypes, direction, and k per row."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any, Callable, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn.functional import pad

__all__ = [
    "SortedOperator",
    "apply_along",
    "apply_to_rows",
    "check_epsilon",
    "check_k",
    "check_scores",
    "expand_epsilon",
    "expand_k",
    "expand_per_row",
    "full_precision",
    "has_values",
    "is_transformed",
    "orient_scores",
    "prepare_scores",
    "scale_by_epsilon",
]


# Beyond these bounds scores / epsilon leaves the range of float32.
MIN_EPSILON, MAX_EPSILON = 1e-30, 1e30


def check_k(k: int, num_candidates: int) -> int:
    """Return ``k`` as an int, or raise ``ValueError`` unless 1 <= k <= n."""
    if isinstance(k, bool) or not isinstance(k, int):  # NumPy's integers are no int
        if isinstance(k, bool) or not isinstance(k, Integral):
            raise ValueError(f"`k` must be an integer or a tensor, but is {k!r}.")
        k = int(k)
    if not 1 <= k <= num_candidates:
        raise ValueError(
            f"`k` must be between 1 and {num_candidates} (the number of candidates), "
            f"but is {k}."
        )
    return k


def expand_k(k: Tensor, values: Tensor) -> Tensor:
    """Return ``k`` as (rows, 1), in the dtype of ``values`` of shape (..., n)."""
    leading = values.shape[:-1]
    return expand_per_row("k", k, leading).to(values.dtype).reshape(-1, 1)


def check_epsilon(epsilon: float) -> None:
    """Raise ``ValueError`` unless ``epsilon`` is a positive number in range."""
    if not epsilon > 0:
        raise ValueError(f"`epsilon` must be a positive number, but is {epsilon}.")
    if not MIN_EPSILON <= epsilon <= MAX_EPSILON:
        raise ValueError(
            f"`epsilon` must be between {MIN_EPSILON:g} and {MAX_EPSILON:g}, "
            f"but is {epsilon}."
        )


def expand_epsilon(epsilon: Tensor, values: Tensor) -> Tensor:
    """Return one epsilon per row of ``values``, (...); NaN where it is out of range.

    Raising an error instead would wait for the device.
    """
    per_row = expand_per_row("epsilon", epsilon, values.shape[:-1]).to(values.dtype)
    is_in_range = (per_row >= MIN_EPSILON) & (per_row <= MAX_EPSILON)
    return torch.where(is_in_range, per_row, math.nan)


def check_scores(scores: Tensor) -> None:
    """Raise ``ValueError`` unless ``scores`` are floating point, (..., n), n >= 1."""
    if not scores.is_floating_point():
        raise ValueError(f"`scores` must be floating point, but is {scores.dtype}.")
    if scores.dim() == 0 or scores.size(-1) == 0:
        raise ValueError(
            "`scores` must have at least one candidate in its last dimension, "
            f"but has shape {tuple(scores.shape)}."
        )


def orient_scores(scores: Tensor, mask: Tensor | None, largest: bool) -> Tensor:
    """Return scores to maximize, in float32 or float64, with -inf where deleted.

    Args:
        scores: floating point, shape (..., n), n >= 1.
        mask: True where valid, broadcastable to ``scores``; None keeps every entry.
        largest: False negates the scores.

    Raises:
        ValueError: ``scores`` or ``mask`` has the wrong dtype or shape.
    """
    check_scores(scores)
    values = scores if scores.dtype == torch.float64 else scores.float()
    if not largest:
        values = -values
    if mask is None:
        return values
    return values.masked_fill(~_expand_mask(mask, scores), -math.inf)


def _expand_mask(mask: Tensor, scores: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise ValueError(f"`mask` must be boolean (True = valid), but is {mask.dtype}.")
    try:
        return mask.expand_as(scores)
    except RuntimeError:
        raise ValueError(
            f"`mask` must broadcast to the shape of `scores`, {tuple(scores.shape)}, "
            f"but has shape {tuple(mask.shape)}."
        ) from None


def scale_by_epsilon(values: Tensor, epsilon: float | Tensor) -> tuple[Tensor, float]:
    """Return scores and a number ``epsilon`` that give the same memberships.

    The operators depend only on scores / epsilon, so scores are divided by a tensor of
    epsilons here and autograd gives its gradient. They are first shifted by their row
    maximum, which changes no membership and keeps small differences exact.

    Args:
        values: from `orient_scores`, shape (..., n).
        epsilon: a number, or a tensor that broadcasts to shape (...); rows whose
            epsilon is out of range become NaN.
    """
    if not isinstance(epsilon, Tensor):
        check_epsilon(epsilon)
        return values, float(epsilon)
    per_row = expand_epsilon(epsilon, values).unsqueeze(-1)
    center = values.detach().amax(-1, keepdim=True)
    center = torch.where(center.isfinite(), center, 0)
    # -inf / epsilon would turn the gradient of epsilon into NaN.
    deleted = values == -math.inf
    scaled = (values - center).masked_fill(deleted, 0.0) / per_row
    return scaled.masked_fill(deleted, -math.inf), 1.0


def prepare_scores(
    scores: Tensor,
    k: int,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None,
    largest: bool,
) -> tuple[Tensor, int, float]:
    """Check the arguments of an operator; return scores to maximize, k and epsilon."""
    values = orient_scores(scores, mask, largest)
    k = check_k(k, values.size(-1))
    values, epsilon = scale_by_epsilon(values, epsilon)
    return values, k, epsilon


def expand_per_row(name: str, value: Tensor, leading: torch.Size) -> Tensor:
    """Return ``value`` expanded to ``leading``, the shape of the rows."""
    if value.is_complex():
        raise ValueError(f"`{name}` must be real, but is {value.dtype}.")
    try:
        return value.expand(leading)
    except RuntimeError:
        raise ValueError(
            f"`{name}` must be a number or broadcast to the leading shape of "
            f"`scores`, {tuple(leading)}, but has shape {tuple(value.shape)}."
        ) from None


def full_precision(values: Tensor) -> AbstractContextManager[None]:
    """Return a context in which autocast leaves matrix products in their own dtype."""
    device_type = values.device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def has_values(values: Tensor) -> bool:
    """Return whether ``values`` can be read: meta and fake tensors only have shapes."""
    return not values.is_meta and type(values) in (Tensor, Parameter)


def is_transformed(values: Tensor) -> bool:
    """Return whether a compiler, `torch.func` or forward-mode AD traces the operator.

    The fast paths read values, write into buffers and only have a backward pass.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or not has_values(values)
    )


class SortedOperator(Protocol):
    """The interface of the sorted operators; see `sorted_soft_topk`."""

    def __call__(
        self,
        scores: Tensor,
        k: int | Tensor,
        *,
        epsilon: float | Tensor,
        mask: Tensor | None = None,
        largest: bool = True,
        dim: int = -1,
    ) -> Tensor: ...


def apply_along(
    operator: Callable[..., Tensor],
    scores: Tensor,
    k: float | Tensor,
    *,
    mask: Tensor | None,
    dim: int,
    **options: Any,
) -> Tensor:
    """Apply ``operator`` to the candidates in ``dim``, which keep their place."""
    if mask is not None:
        mask = _expand_mask(mask, scores).movedim(dim, -1)
    result = operator(scores.movedim(dim, -1), k, mask=mask, **options)
    num_new = result.dim() - scores.dim()
    return result.movedim(-1 - num_new, dim if dim >= 0 else dim - num_new)


def apply_to_rows(
    operator: SortedOperator,
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None,
    largest: bool,
    dim: int,
) -> Tensor:
    """Apply a sorted ``operator`` along ``dim``, with an int or a tensor of ``k``."""
    options: dict[str, Any] = {"epsilon": epsilon, "mask": mask, "largest": largest}
    if dim != -1:
        return apply_along(operator, scores, k, dim=dim, **options)
    assert isinstance(k, Tensor)
    return _for_each_k(operator, scores, k, **options)


def _for_each_k(
    operator: SortedOperator,
    scores: Tensor,
    k: Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None,
    largest: bool,
) -> Tensor:
    """Apply ``operator`` once per value of ``k``, to the rows that have this value.

    Args:
        k: integers from 0 to n, broadcastable to the leading shape of ``scores``. Its
            values are read, which waits for the device.

    Returns:
        assignment, (..., n, largest k); zero in the ranks after a row's k.

    Raises:
        ValueError: ``k`` does not hold integers, or one is out of its range.
    """
    check_scores(scores)
    leading, num_candidates = scores.shape[:-1], scores.size(-1)
    if k.is_floating_point() or k.dtype == torch.bool:
        raise ValueError(f"`k` must hold integers to count ranks, but is {k.dtype}.")
    ranks = expand_per_row("k", k, leading).reshape(-1)
    values = [int(value) for value in ranks.unique() if value != 0]
    for value in values:
        check_k(value, num_candidates)
    widest = max(values, default=0)
    rows = scores.reshape(-1, num_candidates)
    if mask is not None:
        mask = _expand_mask(mask, scores).reshape(-1, num_candidates)
    if isinstance(epsilon, Tensor):
        epsilon = expand_per_row("epsilon", epsilon, leading).reshape(-1)
    result = rows.new_zeros(*rows.shape, widest)
    for value in values:
        at = (ranks == value).nonzero().squeeze(-1)
        part = operator(
            rows[at],
            value,
            epsilon=epsilon[at] if isinstance(epsilon, Tensor) else epsilon,
            mask=None if mask is None else mask[at],
            largest=largest,
        )
        result = result.index_copy(0, at, pad(part, (0, widest - value)))
    return result.view(*scores.shape, widest)
