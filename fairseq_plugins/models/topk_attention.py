"""From attention scores to attention weights.

fairseq's attentions with another normalisation of their scores.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from fairseq.models.lstm import AttentionLayer
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_plugins.models.topk_options import TopkSettings
from fairseq_plugins.operators import hard_topk_softmax, topk_softmax
from fairseq_plugins.utils.schedule import geometric

__all__ = ["AttentionNormaliser", "TopkAttentionLayer", "TopkMultiheadAttention"]


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


class TopkMultiheadAttention(MultiheadAttention):
    """A Transformer's attention with top-k weights.

    Scores, masks and cached states are fairseq's own. It is made from an attention that
    is there already, by :meth:`take_over`, so that a model has the same weights, and
    draws the same random numbers, with top-k attention and without.
    """

    topk: AttentionNormaliser

    @classmethod
    def take_over(cls, attention: nn.Module, settings: TopkSettings) -> None:
        """Turn fairseq's attention into this one.

        Raises:
            ValueError: it is of another class or has an additional key.
        """
        if type(attention) is not MultiheadAttention or attention.use_xformers:
            raise ValueError(
                "top-k attention must replace fairseq's MultiheadAttention without "
                f"xformers, but this model has {type(attention).__name__}."
            )
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError("top-k attention must not have an additional key.")
        attention.__class__ = cls
        attention.topk = AttentionNormaliser(settings, attention.num_heads)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: Any = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments and results as in fairseq, a mask may be one a sentence.

        Raises:
            ValueError: ``before_softmax`` is asked for.
        """
        if before_softmax:
            raise ValueError("`before_softmax` must be false in top-k attention.")
        length = len(query if self.self_attention or key is None else key)
        if incremental_state is None and self.topk.is_softmax(length):
            return super().forward(
                query, key, value, key_padding_mask, incremental_state, need_weights,
                static_kv, attn_mask, need_head_weights=need_head_weights,
            )  # fmt: skip
        scores, values = self._scores(
            query, key, value, key_padding_mask, incremental_state, static_kv
        )
        if attn_mask is not None:
            scores.add_(attn_mask)  # also (B * H, T, S), which fairseq refuses here
        weights = self.topk(scores)
        probs = self.dropout_module(weights.type_as(scores))
        output = self.out_proj(self._context(probs, values, query.size(1)))
        if not (need_weights or need_head_weights):
            return output, None
        by_head = weights.unflatten(0, (-1, self.num_heads)).transpose(1, 0)
        return output, by_head if need_head_weights else by_head.mean(dim=0)

    def _scores(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None,
        incremental_state: Any,
        static_kv: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return (B * H, T, S) scores with padding at -inf, and the values."""
        self.skip_embed_dim_check = True  # torch's fused attention shows no scores
        try:
            return super().forward(
                query, key, value, key_padding_mask, incremental_state,
                need_weights=False, static_kv=static_kv, before_softmax=True,
            )  # fmt: skip
        finally:
            self.skip_embed_dim_check = False

    def _context(self, probs: Tensor, values: Tensor, batch_size: int) -> Tensor:
        """Return the mixed values, (T, B, D); several rows may share one's values."""
        num_keys = len(values) // self.num_heads
        if num_keys == batch_size:
            mixed = torch.bmm(probs, values)
        else:
            mixed = torch.einsum(
                "bxhts,bhsd->bxhtd",
                probs.unflatten(0, (num_keys, -1, self.num_heads)),
                values.unflatten(0, (num_keys, self.num_heads)),
            ).flatten(0, 2)
        mixed = mixed.transpose(0, 1).contiguous()
        return mixed.view(len(mixed), batch_size, self.embed_dim)


class TopkAttentionLayer(AttentionLayer):
    """An LSTM's attention (Bahdanau et al., 2015) with top-k weights."""

    topk: AttentionNormaliser

    @classmethod
    def take_over(cls, attention: nn.Module, settings: TopkSettings) -> None:
        """Turn fairseq's attention into this one.

        Raises:
            ValueError: the decoder has none.
        """
        if type(attention) is not AttentionLayer:
            raise ValueError("`--decoder-attention` must be on for top-k attention.")
        attention.__class__ = cls
        attention.topk = AttentionNormaliser(settings, num_heads=1)

    def forward(
        self, input: Tensor, source_hids: Tensor, encoder_padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attend from (B, D) to (S, B, H): (B, D) and the weights (S, B)."""
        if self.topk.is_softmax(len(source_hids)):
            return super().forward(input, source_hids, encoder_padding_mask)
        queries = self.input_proj(input)
        scores = (source_hids * queries).sum(dim=2)
        if encoder_padding_mask is not None:
            scores = scores.masked_fill(encoder_padding_mask, float("-inf"))
        weights = self.topk(scores.t().unsqueeze(1)).squeeze(1).t()
        weights = weights.type_as(source_hids)
        context = (weights.unsqueeze(2) * source_hids).sum(dim=0)
        output = torch.tanh(self.output_proj(torch.cat((context, input), dim=1)))
        return output, weights
