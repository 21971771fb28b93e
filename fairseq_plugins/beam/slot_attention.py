"""An LSTM's attention for K slots that share one sentence's keys.

fairseq repeats the encoder's output K times and multiplies element by element. The
same sums as two matrix products need K times less memory and a fraction of the time.
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

import torch
from fairseq.models.lstm import AttentionLayer
from torch import Tensor, nn

from fairseq_plugins.models.topk_attention import TopkAttentionLayer

__all__ = ["attention_of_slots", "is_shareable"]


def is_shareable(decoder: nn.Module) -> bool:
    """Whether the decoder's attention is one that this module knows."""
    known = (AttentionLayer, TopkAttentionLayer)
    return type(getattr(decoder, "attention", None)) in known


@contextlib.contextmanager
def attention_of_slots(
    decoder: nn.Module, encoder_out: Any, shape: tuple[int, int]
) -> Iterator[None]:
    """Let the decoder attend from (B * K) rows to the keys of B sentences.

    Args:
        decoder: left alone unless :func:`is_shareable`.
        encoder_out: keys and padding mask of B sentences at 0 and 3, (S, B, ...).
        shape: B and K.
    """
    if not is_shareable(decoder):
        yield
        return
    layer: Any = decoder.attention
    keys = encoder_out[0].transpose(0, 1)  # (B, S, H)
    padding = encoder_out[3]

    def attend(rows: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        queries = layer.input_proj(rows).view(*shape, -1)
        scores = torch.bmm(queries, keys.transpose(1, 2))  # (B, K, S)
        if padding is not None:
            scores = scores.masked_fill(padding.t().unsqueeze(1), float("-inf"))
        weights = _normalised(layer, scores).type_as(keys)
        context = torch.bmm(weights, keys).flatten(0, 1)
        output = torch.tanh(layer.output_proj(torch.cat((context, rows), dim=1)))
        return output, weights.flatten(0, 1).t()

    layer.forward = attend
    try:
        yield
    finally:
        del layer.forward


def _normalised(layer: nn.Module, scores: Tensor) -> Tensor:
    if isinstance(layer, TopkAttentionLayer):
        weights: Tensor = layer.topk(scores)
        return weights
    return torch.softmax(scores.float(), -1)
