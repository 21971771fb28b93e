"""NeuralSort, restricted to the k best (Grover et al., 2019, arXiv:1903.08850)."""
from __future__ import annotations

import torch
from torch import Tensor

from .arguments import check_k, effective_scores, scale_by_epsilon
from .per_row import for_each_k

__all__ = ["neuralsort_topk"]


def neuralsort_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
) -> Tensor:
    """Return ``softmax_i(((n + 1 - 2 l) s_i - sum_j |s_i - s_j|) / T)``, (..., n, k).

    T = epsilon / 2 and l = 1..k is the rank (theorem 4 of the paper). Columns sum to 1,
    but a candidate may fill several ranks, and every score moves every rank. The sum of
    distances comes from one sort, O(n log n), instead of n^2 differences. Arguments,
    deleted entries and short rows as in `sorted_soft_topk`.
    """
    if isinstance(k, Tensor):
        return for_each_k(
            neuralsort_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest
        )
    values = effective_scores(scores, mask, largest)
    check_k(k, values.size(-1))
    values, epsilon = scale_by_epsilon(values, epsilon)
    is_valid = values != -torch.inf
    values = _centred(values, is_valid)
    count = is_valid.sum(-1, keepdim=True).unsqueeze(-1)  # (..., 1, 1)
    ranks = torch.arange(1, k + 1, device=values.device)
    slopes = (count + 1 - 2 * ranks).to(values.dtype)  # (..., 1, k)
    distances = _sum_of_distances(values, is_valid).unsqueeze(-1)
    logits = (slopes * values.unsqueeze(-1) - distances) * (2 / epsilon)
    is_valid = is_valid.unsqueeze(-1)
    logits = logits.masked_fill(~is_valid, torch.finfo(logits.dtype).min)
    assignment = torch.softmax(logits, -2) * (is_valid & (ranks <= count))
    return assignment.to(scores.dtype)


def _centred(values: Tensor, is_valid: Tensor) -> Tensor:
    """Shift each row, which changes no rank, so that sums do not round more than need
    be, and put 0 where deleted."""
    kept = values.masked_fill(~is_valid, 0.0)
    count = is_valid.sum(-1, keepdim=True).clamp_min(1)
    return (kept - kept.detach().sum(-1, keepdim=True) / count) * is_valid


def _sum_of_distances(values: Tensor, is_valid: Tensor) -> Tensor:
    """Return ``sum_j |s_i - s_j|`` over the valid j, for the valid i, (..., n)."""
    order = values.masked_fill(~is_valid, -torch.inf).argsort(-1, descending=True)
    ranked = values.gather(-1, order)  # the deleted are last, and 0
    upto = ranked.cumsum(-1)
    total = upto[..., -1:]
    place = torch.arange(1, values.size(-1) + 1, device=values.device)
    count = is_valid.sum(-1, keepdim=True)
    # `place` scores are no lower, the others no higher; each pair in one of the sums.
    distances = (2 * place - count) * -ranked + 2 * upto - total
    return torch.zeros_like(values).scatter(-1, order, distances)
