"""Dropout that hits competing hypotheses alike.

With a mask of its own each hypothesis of a sentence would win or lose by chance. Here
all hypotheses of a sentence have one mask at a step, as in beam search optimisation
(Wiseman and Rush, 2016). Attention weights, which belong to one hypothesis, are kept.
"""
from __future__ import annotations

import contextlib
from typing import Any, Iterator

from fairseq.models.lstm import LSTMDecoder
from fairseq.modules import MultiheadAttention
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import Tensor, nn

from fairseq_plugins.beam.tree import PrefixTree

__all__ = ["shared_dropout"]


@contextlib.contextmanager
def shared_dropout(
    decoder: nn.Module, *, beam_size: int, tree: PrefixTree | None = None
) -> Iterator[None]:
    """Switch the decoder's dropout on, whatever its mode, one mask a sentence and step.

    Args:
        beam_size: rows of activations that belong to one sentence.
        tree: if a Transformer decodes its nodes in parallel.
    """
    changed = [part for part in _dropouts(decoder) if part.p > 0]
    for part in changed:
        batch_first = isinstance(decoder, LSTMDecoder)
        batch_first |= part is getattr(decoder, "dropout_module", None)
        part.forward = _Shared(part.p, beam_size, tree, 0 if batch_first else 1)
    try:
        yield
    finally:
        for part in changed:
            del part.forward


def _dropouts(decoder: nn.Module) -> list[Any]:
    of_attention = {
        id(part.dropout_module)
        for part in decoder.modules()
        if isinstance(part, MultiheadAttention)
    }
    found = (part for part in decoder.modules() if isinstance(part, FairseqDropout))
    return [part for part in found if id(part) not in of_attention]


class _Shared:
    """What takes the place of a dropout module's ``forward``."""

    def __init__(
        self, p: float, beam_size: int, tree: PrefixTree | None, batch_dim: int
    ) -> None:
        self._p, self._beam_size = p, beam_size
        self._tree, self._batch_dim = tree, batch_dim

    def __call__(self, inputs: Tensor, inplace: bool = False) -> Tensor:
        rows = inputs.movedim(self._batch_dim, 0)
        return (rows * self._mask(rows)).movedim(0, self._batch_dim)

    def _mask(self, rows: Tensor) -> Tensor:
        if self._tree is None:  # (B * K, ...)
            kept = self._draw(rows, rows.size(0) // self._beam_size, *rows.shape[1:])
            return kept.repeat_interleave(self._beam_size, dim=0)
        depths = self._tree.depths.unsqueeze(-1)  # (B, N, 1)
        length = self._tree.node.size(1)
        kept = self._draw(rows, rows.size(0), length, rows.size(2))
        return kept.gather(1, depths.expand(-1, -1, rows.size(2)))

    def _draw(self, like: Tensor, *shape: int) -> Tensor:
        kept = like.new_empty(shape).bernoulli_(1 - self._p)
        return kept / (1 - self._p)
