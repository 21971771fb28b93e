"""A number of ranks that differs by row."""
from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from .arguments import check_k

__all__ = ["SortedOperator", "for_each_k"]


class SortedOperator(Protocol):
    """What the sorted operators have in common; see `sorted_soft_topk`."""

    def __call__(
        self,
        scores: Tensor,
        k: int | Tensor,
        *,
        epsilon: float | Tensor,
        mask: Tensor | None = None,
        largest: bool = True,
    ) -> Tensor: ...


def for_each_k(
    operator: SortedOperator,
    scores: Tensor,
    k: Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None,
    largest: bool,
) -> Tensor:
    """Apply ``operator`` to the rows of each value of ``k``; other ranks are empty.

    Args:
        k: integers from 0 to n, broadcastable to the leading shape of ``scores``. Its
            values are read, which waits for the device, and checked (``ValueError``).
    """
    leading, num_candidates = scores.shape[:-1], scores.size(-1)
    if k.is_floating_point() or k.dtype == torch.bool:
        raise ValueError(f"`k` must hold integers to count ranks, but is {k.dtype}.")
    ranks = k.expand(leading).reshape(-1)
    values = [int(value) for value in ranks.unique() if value != 0]
    for value in values:
        check_k(value, num_candidates)
    widest = max(values, default=0)
    rows = scores.reshape(-1, num_candidates)
    if mask is not None:
        mask = mask.expand_as(scores).reshape(-1, num_candidates)
    if isinstance(epsilon, Tensor):
        epsilon = epsilon.expand(leading).reshape(-1)
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
