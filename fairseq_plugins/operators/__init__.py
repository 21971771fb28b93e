"""Differentiable top-k selection: exact, per row, in PyTorch alone."""

from __future__ import annotations

from .arguments import SortedOperator
from .baselines import (
    SORTED_OPERATORS,
    SinkhornResult,
    get_sorted_operator,
    hard_topk,
    nested_soft_topk,
    neuralsort_topk,
    sinkhorn,
    sinkhorn_topk,
    softsort_topk,
)
from .knn import (
    knn_predict,
    nearest_neighbours,
    soft_knn_log_votes,
    soft_knn_loss,
    squared_distances,
)
from .large_n import PooledMemberships, pooled_soft_topk
from .modules import SoftTopK, SoftTopKLogits, SortedSoftTopK, TopKSoftmax
from .soft_topk import soft_topk, soft_topk_logits
from .sorted_soft_topk import sorted_soft_topk
from .topk_softmax import hard_topk_softmax, topk_softmax

__all__ = [
    "SORTED_OPERATORS",
    "PooledMemberships",
    "SinkhornResult",
    "SoftTopK",
    "SoftTopKLogits",
    "SortedOperator",
    "SortedSoftTopK",
    "TopKSoftmax",
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
