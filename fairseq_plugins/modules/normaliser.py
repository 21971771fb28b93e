"""From attention scores to attention weights."""
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_plugins.beam.schedule import geometric
from fairseq_plugins.modules.settings import TopkSettings
from fairseq_plugins.operators import hard_topk_softmax, topk_softmax

__all__ = ["AttentionNormaliser"]


class AttentionNormaliser(nn.Module):
    """What stands in the place of softmax.

    With a fixed k and epsilon it adds nothing to a checkpoint, which then fits an
    ordinary model too. A schedule adds the number of updates, so that translating uses
    the values that training had reached, and learning adds a number for each head.
    What a checkpoint lacks, such as that of an ordinary model, begins as the options
    say.
    """

    updates: Tensor

    def __init__(self, settings: TopkSettings, num_heads: int) -> None:
        super().__init__()
        self.settings, self.num_heads = settings, num_heads
        self._num_updates = 0
        if settings.is_scheduled:
            # Whole numbers stay exact under --fp16.
            self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        if settings.learns_epsilon:
            start = math.log(settings.epsilon)
            self.log_epsilon = nn.Parameter(torch.full((num_heads,), start))
        if settings.learns_k:
            start = math.log(settings.k - 1)
            self.log_k_above_1 = nn.Parameter(torch.full((num_heads,), start))

    def set_num_updates(self, num_updates: int) -> None:
        """Go on to the schedule's values at this update; fairseq calls this."""
        if self.settings.is_scheduled:
            self._num_updates = num_updates
            self.updates.fill_(num_updates)

    @property
    def epsilon(self) -> float | Tensor:
        """The present epsilon: a number, or one for each head, shape (H,)."""
        if self.settings.learns_epsilon:
            return self.log_epsilon.float().exp()
        start, end = self.settings.epsilon, self.settings.epsilon_end
        return geometric(start, end, self.settings.updates, self._num_updates)

    @property
    def k(self) -> float | Tensor:
        """The present k: a number, or one for each head, shape (H,)."""
        if self.settings.learns_k:
            return 1 + self.log_k_above_1.float().exp()
        start, end = self.settings.k, self.settings.k_end
        k = geometric(start, end, self.settings.updates, self._num_updates)
        return max(1, round(k)) if self.settings.operator == "hard" else k

    def is_softmax(self, length: int) -> bool:
        """Tell whether rows of this length get an ordinary softmax."""
        if self.settings.operator == "entmax15" or self.settings.learn != "none":
            return False  # what is learnt must get a gradient in every update
        return float(self.k) >= length

    def forward(self, scores: Tensor) -> Tensor:
        """Return the weights of (B * H, T, S) scores, heads of a sentence together."""
        if self.settings.operator == "entmax15":
            from entmax import entmax15

            weights: Tensor = entmax15(scores.float(), dim=-1)
            return weights
        k, epsilon = self.k, self.epsilon
        if self.settings.operator == "hard":
            return hard_topk_softmax(scores, int(k))
        by_head = scores.unflatten(0, (-1, self.num_heads))
        weights = topk_softmax(by_head, _column(k), epsilon=_column(epsilon))
        return weights.view(scores.shape)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, value in self.state_dict().items():
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self.settings.is_scheduled:
            self._num_updates = int(self.updates)


def _column(value: float | Tensor) -> float | Tensor:
    return value.unsqueeze(-1) if isinstance(value, Tensor) else value
