"""Differentiable top-k selection: exact, per row, in PyTorch alone."""
from __future__ import annotations

from .candidate_pool import PooledMemberships, pooled_soft_topk
from .memberships import soft_topk, soft_topk_logits
from .nested import nested_soft_topk
from .per_row import SortedOperator
from .ranks import sorted_soft_topk
from .registry import SORTED_OPERATORS, get_sorted_operator, hard_topk, sinkhorn_topk
from .softsort import softsort_topk
from .topk_softmax import hard_topk_softmax, topk_softmax
from .transport import SinkhornResult, sinkhorn

__all__ = [
    "SORTED_OPERATORS",
    "PooledMemberships",
    "SinkhornResult",
    "SortedOperator",
    "get_sorted_operator",
    "hard_topk",
    "hard_topk_softmax",
    "nested_soft_topk",
    "pooled_soft_topk",
    "sinkhorn",
    "sinkhorn_topk",
    "soft_topk",
    "soft_topk_logits",
    "softsort_topk",
    "sorted_soft_topk",
    "topk_softmax",
]
