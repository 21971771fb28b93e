"""Nested SOFT top-k: ranks as differences of successive memberships.

Column l is ``soft_topk(l) - soft_topk(l - 1)``. Memberships grow with k, so entries are
never negative; columns sum to 1 and rows to 1 at most. It takes k independent unknowns
where the transport plan couples them, and is a little blurrier at the same epsilon.
"""
from __future__ import annotations

import torch
from torch import Tensor

from .arguments import check_k, effective_scores, scale_by_epsilon
from .per_row import for_each_k
from .short_rows import memberships_and_logits

__all__ = ["nested_soft_topk"]


def nested_soft_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
) -> Tensor:
    """Return the assignment of candidates to ranks 1..k, (..., n, k), best first.

    Arguments, deleted entries and short rows as in `sorted_soft_topk`.
    """
    if isinstance(k, Tensor):
        return for_each_k(
            nested_soft_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest
        )
    values = effective_scores(scores, mask, largest)
    num_candidates = values.size(-1)
    check_k(k, num_candidates)
    values, epsilon = scale_by_epsilon(values, epsilon)
    rows = values.reshape(-1, 1, num_candidates).expand(-1, k, -1)
    sizes = torch.arange(1, k + 1, dtype=values.dtype, device=values.device)
    sizes = sizes.expand(rows.size(0), -1).reshape(-1, 1)
    memberships, _ = memberships_and_logits(
        rows.reshape(-1, num_candidates), sizes, epsilon / 2
    )
    upto = memberships.view(-1, k, num_candidates)
    assignment = torch.cat([upto[:, :1], upto[:, 1:] - upto[:, :-1]], 1)
    return assignment.transpose(1, 2).to(scores.dtype).reshape(*scores.shape, k)
