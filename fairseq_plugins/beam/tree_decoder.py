"""An unmodified fairseq decoder over a tree of prefixes, with gradients.

A Transformer decodes all nodes of a sentence in one pass: each of them attends to its
ancestors and has the position of its depth. An LSTM goes through the depths and takes
each node's state from its parent.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Iterator

import torch
from fairseq.models.lstm import LSTMDecoder
from fairseq.modules import LearnedPositionalEmbedding
from torch import Tensor

from fairseq_plugins.beam.decoder import IncrementalDecoder
from fairseq_plugins.beam.shared_dropout import SharedDropout
from fairseq_plugins.beam.tree import PrefixTree

__all__ = ["tree_features"]


def tree_features(
    model: Any,
    encoder_out: Any,
    tree: PrefixTree,
    *,
    dropout: SharedDropout | None = None,
) -> Tensor:
    """Return what predicts the token after each node, shape (B, N, D).

    Args:
        model: what passes :func:`fairseq_plugins.beam.decoder.check_model`.
        encoder_out: what the model's encoder returned for B sentences.
        dropout: of the search that found the tree; None for none.
    """
    if isinstance(model.decoder, LSTMDecoder):
        return _by_depth(model, encoder_out, tree, dropout)
    with dropout.over_tree(tree) if dropout else contextlib.nullcontext():
        return _in_parallel(model.decoder, encoder_out, tree)


def _in_parallel(decoder: Any, encoder_out: Any, tree: PrefixTree) -> Tensor:
    # Empty places must not be padding, which would switch another mask on.
    tokens = tree.tokens.masked_fill(~tree.is_node, decoder.dictionary.unk())
    with _attending_to(decoder, tree), _at_depths(decoder, tree):
        features, _ = decoder.extract_features(tokens, encoder_out=encoder_out)
    return features


@contextlib.contextmanager
def _attending_to(decoder: Any, tree: PrefixTree) -> Iterator[None]:
    """Put the tree's ancestors in place of the mask of the future."""

    @functools.cache  # every layer asks, and keeps what it gets for the backward pass
    def mask_of(dtype: torch.dtype) -> Tensor:
        mask = torch.zeros(ancestors.shape, dtype=dtype, device=ancestors.device)
        mask = mask.masked_fill_(~ancestors, float("-inf"))
        return mask.repeat_interleave(num_heads, dim=0)

    def ancestor_mask(inputs: Tensor) -> Tensor:
        return mask_of(inputs.dtype)

    ancestors = tree.ancestors()
    num_heads = decoder.layers[0].self_attn.num_heads
    decoder.buffered_future_mask = ancestor_mask
    try:
        yield
    finally:
        del decoder.buffered_future_mask


@contextlib.contextmanager
def _at_depths(decoder: Any, tree: PrefixTree) -> Iterator[None]:
    """Give every node the position embedding of its depth."""
    embedding = decoder.embed_positions
    if embedding is None:
        yield
        return
    positions = tree.depths + embedding.padding_idx + 1
    is_learned = isinstance(embedding, LearnedPositionalEmbedding)

    def at_depths(*_: Any, **__: Any) -> Tensor:
        # The search was at these positions, so that there are weights for them.
        weights = embedding.weight if is_learned else embedding.weights
        return torch.nn.functional.embedding(positions, weights)

    embedding.forward = at_depths
    try:
        yield
    finally:
        del embedding.forward


def _by_depth(
    model: Any, encoder_out: Any, tree: PrefixTree, dropout: SharedDropout | None
) -> Tensor:
    """Go through the depths, dropping sentences that have no deeper nodes."""
    batch_size, _, beam_size = tree.node.shape
    decoder = IncrementalDecoder(
        model, encoder_out, batch_size=batch_size, beam_size=beam_size, dropout=dropout
    )
    has_nodes = (tree.node >= 0).any(-1)  # (B, L)
    num_depths = has_nodes.sum(1).cpu()
    sentences = torch.arange(batch_size)
    node, parents, tokens = tree.node, tree.parents, tree.tokens
    parts, ids = [], []
    for depth in range(int(num_depths.max())):
        here = node[:, depth]
        at = here.clamp_min(0)
        if depth:
            parent = parents.gather(1, at).unsqueeze(-1)
            before = node[:, depth - 1].unsqueeze(1)
            decoder.reorder((before.eq(parent) & before.ge(0)).int().argmax(-1))
        features = decoder.step(decoder.embed(tokens.gather(1, at)), depth)
        first = tree.tokens.size(1) * sentences.to(here.device)
        parts.append(features[here >= 0])
        ids.append((here + first.unsqueeze(-1))[here >= 0])
        kept = (num_depths[sentences] > depth + 1).nonzero().squeeze(-1)
        if 0 < len(kept) < len(sentences):
            sentences, kept = sentences[kept], kept.to(here.device)
            decoder.keep(kept)
            node, parents, tokens = node[kept], parents[kept], tokens[kept]
    rows = torch.cat(parts)
    flat = rows.new_zeros(tree.tokens.numel(), rows.size(-1))
    return flat.index_copy(0, torch.cat(ids), rows).view(*tree.tokens.shape, -1)
