"""fairseq's Transformer decoder."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, ContextManager, Iterator

import torch
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules import LearnedPositionalEmbedding, MultiheadAttention
from torch import Tensor, nn

from fairseq_plugins.beam.adapters.base import DecoderAdapter, register_adapter
from fairseq_plugins.beam.adapters.hooks import replace_method
from fairseq_plugins.beam.trace import PrefixTree

__all__ = ["TransformerAdapter"]


@register_adapter(TransformerDecoderBase)
class TransformerAdapter(DecoderAdapter):
    """A Transformer decoder. It scores all nodes of a tree in one pass.

    Each node attends to its ancestors and has the position of its depth.
    """

    scores_trees_in_parallel = True

    @classmethod
    def check(cls, decoder: Any) -> None:
        if getattr(decoder, "cross_self_attention", False):
            raise ValueError(
                "`--cross-self-attention` must be off for soft_beam_search."
            )

    @classmethod
    def dropout_batch_dims(cls, decoder: nn.Module) -> dict[Any, int]:
        # The embeddings have the batch first, the layers have the time first.
        dims = super().dropout_batch_dims(decoder)
        return {module: int(module is not decoder.dropout_module) for module in dims}

    def cached_states(self) -> Iterator[tuple[dict[str, Any], str, int]]:
        for cached in self._attention_buffers(is_self_attention=True):
            yield cached, "prev_key", 0
            yield cached, "prev_value", 0

    def repeat_encoder_out(self, encoder_out: Any) -> Any:
        return encoder_out  # the cross attention takes K queries for one row of keys

    def keep_encoder_out(self, sentences: Tensor, rows: Tensor) -> None:
        super().keep_encoder_out(sentences, sentences)
        for cached in self._attention_buffers(is_self_attention=False):
            for name, value in cached.items():
                if value is not None:
                    cached[name] = value.index_select(0, sentences)

    def score_tree(self, tree: PrefixTree) -> Tensor:
        # Empty places must not be padding, which would switch another mask on.
        tokens = tree.tokens.masked_fill(~tree.is_node, self.decoder.dictionary.unk())
        with contextlib.ExitStack() as changes:
            if self.dropout is not None:
                changes.enter_context(self.dropout.apply_to_tree(tree))
            changes.enter_context(_attend_to_ancestors(self.decoder, tree))
            changes.enter_context(_embed_depths(self.decoder, tree))
            features, _ = self.decoder.extract_features(
                tokens, encoder_out=self.encoder_out
            )
        return features

    def _attention_buffers(
        self, *, is_self_attention: bool
    ) -> Iterator[dict[str, Any]]:
        for part in self.decoder.modules():
            if isinstance(part, MultiheadAttention):
                if part.self_attention == is_self_attention:
                    cached = part._get_input_buffer(self.state)
                    if cached:
                        yield cached


def _attend_to_ancestors(decoder: Any, tree: PrefixTree) -> ContextManager[None]:
    """Put the tree's ancestors in place of the mask of the future."""
    ancestors = tree.ancestors()
    num_heads = decoder.layers[0].self_attn.num_heads

    @functools.cache  # every layer asks, and keeps its mask for the backward pass
    def mask_of(dtype: torch.dtype) -> Tensor:
        mask = torch.zeros(ancestors.shape, dtype=dtype, device=ancestors.device)
        mask = mask.masked_fill_(~ancestors, float("-inf"))
        return mask.repeat_interleave(num_heads, dim=0)

    return replace_method(
        decoder, "buffered_future_mask", lambda inputs: mask_of(inputs.dtype)
    )


def _embed_depths(decoder: Any, tree: PrefixTree) -> ContextManager[None]:
    """Give every node the position embedding of its depth."""
    embedding = decoder.embed_positions
    if embedding is None:
        return contextlib.nullcontext()
    positions = tree.depths + embedding.padding_idx + 1
    is_learned = isinstance(embedding, LearnedPositionalEmbedding)

    def embed(*_: Any, **__: Any) -> Tensor:
        # The search has computed weights for all of these positions.
        weights = embedding.weight if is_learned else embedding.weights
        return torch.nn.functional.embedding(positions, weights)

    return replace_method(embedding, "forward", embed)
