"""fairseq's LSTM decoder."""

from __future__ import annotations

import contextlib
from typing import Any, ContextManager, Iterator

import torch
from fairseq.models.lstm import AttentionLayer, LSTMDecoder
from torch import Tensor

from fairseq_plugins.beam.adapters.base import DecoderAdapter, register_adapter
from fairseq_plugins.beam.adapters.hooks import replace_method
from fairseq_plugins.beam.projection import OutputLayer
from fairseq_plugins.models.topk_attention import TopkAttentionLayer

__all__ = ["LSTMAdapter"]


@register_adapter(LSTMDecoder)
class LSTMAdapter(DecoderAdapter):
    """An LSTM decoder. With a known attention layer its slots share the keys.

    fairseq repeats the encoder's output K times and multiplies element by element. Two
    matrix products give the same sums with a K-th of the memory and in less time.
    """

    @property
    def output_layer(self) -> OutputLayer:
        decoder = self.decoder
        if decoder.share_input_output_embed:
            parameters = [decoder.embed_tokens.weight]
        else:
            parameters = decoder.fc_out.parameters()
        return OutputLayer(decoder.output_layer, parameters)

    def cached_states(self) -> Iterator[tuple[dict[str, Any], str, int]]:
        cached = self.decoder.get_incremental_state(self.state, "cached_state")
        for name in cached or ():
            yield cached, name, 0 if name == "input_feed" else 1

    def repeat_encoder_out(self, encoder_out: Any) -> Any:
        if not self._shares_keys:
            return super().repeat_encoder_out(encoder_out)
        keys, hiddens, cells, padding = encoder_out
        # With one position of keys and mask, repeating these costs nothing.
        repeated = super().repeat_encoder_out((keys[:1], hiddens, cells, padding[:1]))
        return keys, repeated[1], repeated[2], padding

    def keep_encoder_out(self, sentences: Tensor, rows: Tensor) -> None:
        shared = sentences if self._shares_keys else rows
        indices = (shared, rows, rows, shared)
        self.encoder_out = tuple(
            value.index_select(1, index)
            for value, index in zip(self.encoder_out, indices)
        )

    def step(self, inputs: Tensor, position: int) -> Tensor:
        with self._attend_from_slots():
            return super().step(inputs, position)

    @property
    def _shares_keys(self) -> bool:
        known = (AttentionLayer, TopkAttentionLayer)
        return type(self.decoder.attention) in known

    def _attend_from_slots(self) -> ContextManager[None]:
        """Let the decoder attend from B * K rows to the keys of B sentences."""
        if not self._shares_keys:
            return contextlib.nullcontext()
        layer: Any = self.decoder.attention
        keys = self.encoder_out[0].transpose(0, 1)  # (B, S, H)
        padding = self.encoder_out[3].t().unsqueeze(1)  # (B, 1, S)

        def attend(rows: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
            queries = layer.input_proj(rows).view(*self.shape, -1)
            scores = torch.bmm(queries, keys.transpose(1, 2))  # (B, K, S)
            scores = scores.masked_fill(padding, float("-inf"))
            if isinstance(layer, TopkAttentionLayer):
                weights = layer.topk(scores)
            else:
                weights = torch.softmax(scores.float(), -1)
            weights = weights.type_as(keys)
            context = torch.bmm(weights, keys).flatten(0, 1)
            output = torch.tanh(layer.output_proj(torch.cat((context, rows), dim=1)))
            return output, weights.flatten(0, 1).t()

        return replace_method(layer, "forward", attend)
