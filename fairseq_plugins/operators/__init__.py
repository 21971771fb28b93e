"""Differentiable top-k selection: exact, per row, in PyTorch alone."""
from __future__ import annotations

from .candidate_pool import PooledMemberships, pooled_soft_topk
from .knn import (
    knn_predict,
    nearest_neighbours,
    soft_knn_log_votes,
    soft_knn_loss,
    squared_distances,
)
from .memberships import soft_topk, soft_topk_logits
from .nested import nested_soft_topk
from .neuralsort import neuralsort_topk
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
    "knn_predict",
    "nearest_neighbours",
    "nested_soft_topk",
    "neuralsort_topk",
    "pooled_soft_topk",
    "sinkhorn",
    "sinkhorn_topk",
    "soft_knn_log_votes",
    "soft_knn_loss",
    "soft_topk",
    "soft_topk_logits",
    "softsort_topk",
    "sorted_soft_topk",
    "squared_distances",
    "topk_softmax",
]
