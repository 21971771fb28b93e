"""Differentiable k nearest neighbors (Xie et al., 2020, section 4).

Training: with A the soft memberships of the references among the k nearest of a query,
from squared distances, the loss is ``-log(sum of A over the query's class / k)``.
Prediction: the exact vote of the k nearest, in blocks.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from .baselines import neuralsort_topk
from .soft_topk import soft_topk_logits

__all__ = [
    "SELECTIONS",
    "knn_predict",
    "nearest_neighbours",
    "soft_knn_log_votes",
    "soft_knn_loss",
    "squared_distances",
]

BLOCK = 4096  # rows and columns of the distances in memory at once: 64 MiB


class Selection(Protocol):
    """Distances (..., n) to log-memberships (..., n), whose exponentials sum to k."""

    def __call__(
        self, distances: Tensor, k: int, *, epsilon: float | Tensor
    ) -> Tensor: ...


def squared_distances(queries: Tensor, references: Tensor) -> Tensor:
    """Return squared Euclidean distances, (..., q, d) and (..., r, d) to (..., q, r).

    Uses one matrix product. Both sides are first shifted by the references' mean, which
    reduces rounding errors.
    """
    center = references.detach().mean(-2, keepdim=True)
    queries, references = queries - center, references - center
    lengths = queries.square().sum(-1).unsqueeze(-1)
    others = references.square().sum(-1).unsqueeze(-2)
    product = queries @ references.transpose(-1, -2)
    return (lengths + others - 2 * product).clamp_min(0)


def select_soft(distances: Tensor, k: int, *, epsilon: float | Tensor) -> Tensor:
    """Select by SOFT top-k: no membership exceeds 1."""
    return logsigmoid(soft_topk_logits(distances, k, epsilon=epsilon, largest=False))


def select_neuralsort(distances: Tensor, k: int, *, epsilon: float | Tensor) -> Tensor:
    """Select by the first k columns of NeuralSort (Grover et al., 2019)."""
    assignment = neuralsort_topk(distances, k, epsilon=epsilon, largest=False)
    memberships = assignment.sum(-1)
    return memberships.clamp_min(torch.finfo(memberships.dtype).tiny).log()


def select_softmax(distances: Tensor, k: int, *, epsilon: float | Tensor) -> Tensor:
    """Weight all references by distance, as neighborhood components analysis does
    (Goldberger et al., 2004); k only scales the sum."""
    return torch.log_softmax(-2 * distances / _column(epsilon), -1) + math.log(k)


def select_hard(distances: Tensor, k: int, *, epsilon: float | Tensor) -> Tensor:
    """Take the k nearest and weight them by distance; others get no gradient."""
    chosen = distances.topk(k, largest=False).indices
    is_chosen = torch.zeros_like(distances, dtype=torch.bool).scatter(-1, chosen, True)
    logits = (-2 * distances / _column(epsilon)).masked_fill(~is_chosen, -math.inf)
    return torch.log_softmax(logits, -1) + math.log(k)


SELECTIONS: dict[str, Selection] = {
    "soft": select_soft,
    "neuralsort": select_neuralsort,
    "softmax": select_softmax,
    "hard": select_hard,
}


def soft_knn_log_votes(
    queries: Tensor,
    references: Tensor,
    labels: Tensor,
    *,
    k: int,
    epsilon: float | Tensor,
    num_classes: int,
    selection: str = "soft",
) -> Tensor:
    """Return the logarithm of each class's fraction of the vote of the k nearest.

    Args:
        queries: features, shape (q, d).
        references: features, shape (r, d), r >= k.
        labels: classes of the references, integers below ``num_classes``, shape (r).
        k: number of neighbors.
        epsilon: smoothing, in units of squared distance; see `soft_topk`.
        num_classes: C.
        selection: a name in `SELECTIONS`.

    Returns:
        log-fractions, shape (q, C); their exponentials sum to 1 in each row. -inf for a
        class without references (with ``hard``: without any among the k nearest).

    Raises:
        ValueError: the selection is unknown, or shapes do not fit.
    """
    if selection not in SELECTIONS:
        raise ValueError(
            f"`selection` must be one of {', '.join(SELECTIONS)}, but is {selection!r}."
        )
    _check_labels(labels, references, num_classes)
    distances = squared_distances(queries, references)
    log_members = SELECTIONS[selection](distances, k, epsilon=epsilon)
    is_of_class = one_hot(labels, num_classes).bool()  # (r, C)
    return _sum_logs(log_members.unsqueeze(-1), is_of_class) - math.log(k)


def soft_knn_loss(
    queries: Tensor,
    query_labels: Tensor,
    references: Tensor,
    labels: Tensor,
    *,
    k: int,
    epsilon: float | Tensor,
    num_classes: int,
    selection: str = "soft",
) -> Tensor:
    """Return the mean of -log(fraction of the vote for the right class).

    A query whose class gets no vote adds 0. Without queries the loss is 0. Other
    arguments and errors as in `soft_knn_log_votes`.

    Args:
        query_labels: integers, shape (q).

    Returns:
        the loss, a scalar.
    """
    _check_labels(query_labels, queries, num_classes)
    log_votes = soft_knn_log_votes(
        queries,
        references,
        labels,
        k=k,
        epsilon=epsilon,
        num_classes=num_classes,
        selection=selection,
    )
    right = log_votes.gather(-1, query_labels.unsqueeze(-1)).squeeze(-1)
    losses = -torch.where(right == -math.inf, 0.0, right)
    return losses.mean() if len(losses) else losses.sum()


@torch.no_grad()
def nearest_neighbours(
    queries: Tensor, references: Tensor, k: int, *, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Return the exact k nearest references of each query, nearest first.

    Args:
        queries: shape (q, d).
        references: shape (r, d), r >= k.
        k: number of neighbors.
        block: the largest number of queries, and of references, to compare at once;
            this bounds the memory.

    Returns:
        squared distances and indices, each of shape (q, k).

    Raises:
        ValueError: ``k`` or ``block`` is out of its range.
    """
    if not 1 <= k <= len(references):
        raise ValueError(
            f"`k` must be between 1 and {len(references)} (the number of references), "
            f"but is {k}."
        )
    if block < 1:
        raise ValueError(f"`block` must be 1 or more, but is {block}.")
    center = references.mean(0)
    parts = [
        _search_blocks(some - center, references, center, k, block)
        for some in queries.split(block)
    ]
    if not parts:
        empty = queries.new_empty(0, k)
        return empty, empty.long()
    distances, indices = zip(*parts)
    return torch.cat(distances), torch.cat(indices)


def knn_predict(
    queries: Tensor,
    references: Tensor,
    labels: Tensor,
    *,
    k: int,
    num_classes: int,
    block: int = BLOCK,
) -> Tensor:
    """Return the most frequent class among the k nearest references, shape (q).

    In a tie the class of the nearest neighbor wins. Arguments and errors as in
    `nearest_neighbours` and `soft_knn_log_votes`.
    """
    _check_labels(labels, references, num_classes)
    _, indices = nearest_neighbours(queries, references, k, block=block)
    voters = labels[indices]  # (q, k), nearest first
    votes = one_hot(voters, num_classes).sum(1)
    is_winner = votes == votes.amax(1, keepdim=True)
    first = is_winner.gather(1, voters).long().argmax(1, keepdim=True)
    return voters.gather(1, first).squeeze(1)


def _search_blocks(
    queries: Tensor, references: Tensor, center: Tensor, k: int, block: int
) -> tuple[Tensor, Tensor]:
    """Keep the k nearest while searching the references block by block."""
    best: tuple[Tensor, Tensor] | None = None
    lengths = queries.square().sum(-1, keepdim=True)
    for start in range(0, len(references), block):
        some = references[start : start + block] - center
        distances = lengths + some.square().sum(-1) - 2 * queries @ some.t()
        indices = torch.arange(start, start + len(some), device=queries.device)
        indices = indices.expand_as(distances)
        if best is not None:
            distances = torch.cat([best[0], distances], 1)
            indices = torch.cat([best[1], indices], 1)
        nearest = distances.topk(min(k, distances.size(1)), largest=False)
        best = nearest.values, indices.gather(1, nearest.indices)
    assert best is not None
    return best[0].clamp_min(0), best[1]


def _sum_logs(log_values: Tensor, is_member: Tensor) -> Tensor:
    """Return log-sums over dimension -2 of the members; -inf without members."""
    values = log_values.masked_fill(~is_member, -math.inf)
    is_empty = (values == -math.inf).all(-2)
    # A row of -inf would turn the gradient into NaN.
    values = values.masked_fill(is_empty.unsqueeze(-2), 0.0)
    return values.logsumexp(-2).masked_fill(is_empty, -math.inf)


def _column(epsilon: float | Tensor) -> float | Tensor:
    return epsilon.unsqueeze(-1) if isinstance(epsilon, Tensor) else epsilon


def _check_labels(labels: Tensor, features: Tensor, num_classes: int) -> None:
    if labels.is_floating_point() or labels.shape != features.shape[:1]:
        raise ValueError(
            f"`labels` must be integers, one for each of {len(features)} features, but "
            f"has dtype {labels.dtype} and shape {tuple(labels.shape)}."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"`labels` must be from 0 to {num_classes - 1}, but range from "
            f"{int(labels.min())} to {int(labels.max())}."
        )
