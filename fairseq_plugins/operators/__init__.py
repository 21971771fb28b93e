"""Differentiable top-k selection: exact, per row, in PyTorch alone."""
from __future__ import annotations

from .transport import SinkhornResult, sinkhorn
from .memberships import soft_topk, soft_topk_logits
from .ranks import sorted_soft_topk

__all__ = [
    "SinkhornResult",
    "sinkhorn",
    "soft_topk",
    "soft_topk_logits",
    "sorted_soft_topk",
]
