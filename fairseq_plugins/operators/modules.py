"""The operators as modules, with an epsilon that can be learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .arguments import check_epsilon
from .baselines import get_sorted_operator
from .soft_topk import soft_topk, soft_topk_logits
from .topk_softmax import topk_softmax

__all__ = ["SoftTopK", "SoftTopKLogits", "SortedSoftTopK", "TopKSoftmax"]


class _TopK(nn.Module):
    """Options of an operator.

    Args:
        k: how many to select, as in the function.
        epsilon: smoothing in the units of the scores, twice a temperature.
        learn_epsilon: train the logarithm of epsilon, ``log_epsilon``, from this start.
        dim: the dimension of the candidates.
    """

    def __init__(
        self, k: float, *, epsilon: float, learn_epsilon: bool = False, dim: int = -1
    ) -> None:
        super().__init__()
        check_epsilon(epsilon)
        self.k, self.dim = k, dim
        self.log_epsilon: nn.Parameter | None = None
        self._epsilon = float(epsilon)
        if learn_epsilon:
            self.log_epsilon = nn.Parameter(torch.tensor(math.log(epsilon)))

    @property
    def epsilon(self) -> float | Tensor:
        """A number, or a tensor with a gradient if it is learned."""
        return self._epsilon if self.log_epsilon is None else self.log_epsilon.exp()

    def extra_repr(self) -> str:
        learned = "" if self.log_epsilon is None else ", learn_epsilon=True"
        return f"k={self.k}, epsilon={float(self.epsilon):g}{learned}, dim={self.dim}"


class _MaskedTopK(_TopK):
    def __init__(
        self,
        k: float,
        *,
        epsilon: float,
        learn_epsilon: bool = False,
        dim: int = -1,
        largest: bool = True,
    ) -> None:
        super().__init__(k, epsilon=epsilon, learn_epsilon=learn_epsilon, dim=dim)
        self.largest = largest


class SoftTopK(_MaskedTopK):
    """`soft_topk` as a module."""

    def forward(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return memberships of the shape of ``scores``."""
        return soft_topk(
            scores,
            self.k,
            epsilon=self.epsilon,
            mask=mask,
            largest=self.largest,
            dim=self.dim,
        )


class SoftTopKLogits(_MaskedTopK):
    """`soft_topk_logits` as a module."""

    def forward(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits of the shape of ``scores``."""
        return soft_topk_logits(
            scores,
            self.k,
            epsilon=self.epsilon,
            mask=mask,
            largest=self.largest,
            dim=self.dim,
        )


class SortedSoftTopK(_MaskedTopK):
    """A sorted operator as a module: `sorted_soft_topk`, or another by its name.

    Args:
        operator: a name in `SORTED_OPERATORS`.
    """

    def __init__(
        self,
        k: int,
        *,
        epsilon: float,
        learn_epsilon: bool = False,
        dim: int = -1,
        largest: bool = True,
        operator: str = "ot",
    ) -> None:
        super().__init__(
            k, epsilon=epsilon, learn_epsilon=learn_epsilon, dim=dim, largest=largest
        )
        self.operator = get_sorted_operator(operator)

    def forward(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the assignment: the shape of ``scores``, then k."""
        return self.operator(
            scores,
            int(self.k),
            epsilon=self.epsilon,
            mask=mask,
            largest=self.largest,
            dim=self.dim,
        )


class TopKSoftmax(_TopK):
    """`topk_softmax` as a module."""

    def forward(self, scores: Tensor) -> Tensor:
        """Return weights of the shape of ``scores``."""
        return topk_softmax(scores, self.k, epsilon=self.epsilon, dim=self.dim)
