"""SoftSort, restricted to the k best (Prillo & Eisenschlos, 2020, arXiv:2006.16038)."""
from __future__ import annotations

import torch
from torch import Tensor

from .arguments import check_k, effective_scores, scale_by_epsilon
from .per_row import for_each_k

__all__ = ["softsort_topk"]


def softsort_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
) -> Tensor:
    """Return ``softmax_i(-|l-th best - s_i| / T)`` with T = epsilon / 2, (..., n, k).

    Closed form and cheap. Columns sum to 1, but a candidate may fill several ranks at
    once: unlike with `sorted_soft_topk` its row is not bounded by 1, and the gradient
    has kinks where scores cross. Arguments, deleted entries and short rows as there.
    """
    if isinstance(k, Tensor):
        return for_each_k(
            softsort_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest
        )
    values = effective_scores(scores, mask, largest)
    check_k(k, values.size(-1))
    values, epsilon = scale_by_epsilon(values, epsilon)
    best = values.topk(k).values.unsqueeze(-2)  # (..., 1, k)
    values = values.unsqueeze(-1)
    is_filled, is_valid = best != -torch.inf, values != -torch.inf
    # Differences of infinities would make NaN of the gradient.
    distance = best.masked_fill(~is_filled, 0.0) - values.masked_fill(~is_valid, 0.0)
    logits = distance.abs() * (-2 / epsilon)
    logits = logits.masked_fill(~is_valid, torch.finfo(logits.dtype).min)
    assignment = torch.softmax(logits, -2) * (is_valid & is_filled)
    return assignment.to(scores.dtype)
