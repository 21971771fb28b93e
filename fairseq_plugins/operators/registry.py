"""The sorted operators by name, so that experiments can swap them."""
from __future__ import annotations

import torch
from torch import Tensor

from .arguments import check_epsilon, check_k, effective_scores
from .nested import nested_soft_topk
from .neuralsort import neuralsort_topk
from .per_row import SortedOperator, for_each_k
from .ranks import sorted_soft_topk
from .softsort import softsort_topk
from .transport import sinkhorn

__all__ = ["SORTED_OPERATORS", "get_sorted_operator", "hard_topk", "sinkhorn_topk"]

PUBLISHED_ITERATIONS = 200


def hard_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor = 0.0,
    mask: Tensor | None = None,
    largest: bool = True,
) -> Tensor:
    """Return the one-hot assignment of ``scores.topk(k)``, without gradient.

    ``epsilon`` is accepted and ignored. Arguments as in `sorted_soft_topk`.
    """
    if isinstance(k, Tensor):
        return for_each_k(
            hard_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest
        )
    values = effective_scores(scores, mask, largest)
    check_k(k, values.size(-1))
    best = values.topk(k)
    chosen = best.indices.unsqueeze(-2)  # (..., 1, k)
    filled = (best.values != -torch.inf).unsqueeze(-2).to(scores.dtype)
    return scores.new_zeros(*scores.shape, k).scatter(-2, chosen, filled)


def sinkhorn_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
) -> Tensor:
    """Return `sorted_soft_topk` as published: 200 Sinkhorn iterations, by autograd.

    For comparison only. It is far from converged when ``epsilon`` is small, and takes
    one number for it. Arguments as in `sorted_soft_topk`; deleted entries need a mask.
    """
    if isinstance(k, Tensor):
        return for_each_k(
            sinkhorn_topk, scores, k, epsilon=epsilon, mask=mask, largest=largest
        )
    if isinstance(epsilon, Tensor):
        raise ValueError("`epsilon` must be a number for the operator `sinkhorn`.")
    check_epsilon(epsilon)
    values = effective_scores(scores, None, largest)
    num_candidates = values.size(-1)
    check_k(k, num_candidates)
    num_anchors = k + (k < num_candidates)
    anchors = torch.arange(num_anchors, dtype=values.dtype, device=values.device)
    capacities = torch.ones_like(anchors)
    capacities[-1] += num_candidates - num_anchors
    result = sinkhorn(
        -values,
        anchors,
        capacities,
        epsilon=epsilon,
        mask=None if mask is None else mask.expand_as(scores),
        max_iterations=PUBLISHED_ITERATIONS,
    )
    return result.plan[..., :k].to(scores.dtype)


SORTED_OPERATORS: dict[str, SortedOperator] = {
    "ot": sorted_soft_topk,
    "nested": nested_soft_topk,
    "softsort": softsort_topk,
    "neuralsort": neuralsort_topk,
    "sinkhorn": sinkhorn_topk,
    "hard": hard_topk,
}


def get_sorted_operator(name: str) -> SortedOperator:
    """Return the sorted operator called ``name``.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SORTED_OPERATORS:
        raise ValueError(
            f"`operator` must be one of {', '.join(SORTED_OPERATORS)}, but is {name!r}."
        )
    return SORTED_OPERATORS[name]
