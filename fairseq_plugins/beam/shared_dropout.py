"""Dropout that hits competing hypotheses alike.

With a mask of its own each hypothesis of a sentence would win or lose by chance. Here
all hypotheses of a sentence have one mask at a step, as in beam search optimisation
(Wiseman and Rush, 2016), and a second pass over what a search found has the masks of
the search. Attention weights, which belong to one hypothesis, are kept.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator

import torch
from fairseq.models.lstm import LSTMDecoder
from fairseq.modules import MultiheadAttention
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import Tensor, nn

from fairseq_plugins.beam.tree import PrefixTree

__all__ = ["SharedDropout"]


class SharedDropout:
    """The masks of one search: drawn when first needed, and the same ever after.

    A decoder calls a dropout module as often in a pass over many positions as in a
    step of a search, so that a mask has a sentence, a step, a module and the number of
    the module's call.

    Args:
        decoder: whose dropout is meant, whatever its mode.
        batch_size: number of sentences that the search begins with.
    """

    def __init__(self, decoder: nn.Module, *, batch_size: int) -> None:
        self._modules = [part for part in _dropouts(decoder) if part.p > 0]
        self._embedding = getattr(decoder, "dropout_module", None)
        self._batch_first = isinstance(decoder, LSTMDecoder)
        self._batch_size = batch_size
        self._kept: dict[tuple[Any, int, int], Tensor] = {}

    @contextlib.contextmanager
    def at_step(self, position: int, sentences: Tensor | None) -> Iterator[None]:
        """Drop what the decoder computes for the slots at a step.

        Args:
            sentences: that the rows belong to, equally many to each; None for all.
        """

        def kept(module: Any, call: int, rows: Tensor) -> Tensor:
            mask = self._mask(module, call, position, rows)
            mask = mask if sentences is None else mask.index_select(0, sentences)
            return mask.repeat_interleave(rows.size(0) // len(mask), dim=0)

        with self._in_place(kept):
            yield

    @contextlib.contextmanager
    def over_tree(self, tree: PrefixTree) -> Iterator[None]:
        """Drop what a Transformer's decoder computes for all nodes in one pass."""
        depths = tree.depths.unsqueeze(-1)  # (B, N, 1)
        length = tree.node.size(1)

        def kept(module: Any, call: int, rows: Tensor) -> Tensor:
            masks = [self._mask(module, call, at, rows[:, :1]) for at in range(length)]
            where = depths.expand(-1, -1, rows.size(2))
            return torch.cat(masks, dim=1).gather(1, where)

        with self._in_place(kept):
            yield

    def _mask(self, module: Any, call: int, position: int, rows: Tensor) -> Tensor:
        """Return what is kept of all sentences at a step, (B, ...) to rows (R, ...)."""
        key = (module, call, position)
        if key not in self._kept:
            shape = (self._batch_size, *rows.shape[1:])
            mask = torch.empty(shape, dtype=torch.bool, device=rows.device)
            self._kept[key] = mask.bernoulli_(1 - module.p)
        return self._kept[key]

    @contextlib.contextmanager
    def _in_place(self, kept: Callable[..., Tensor]) -> Iterator[None]:
        """Put masks in the place of the modules' ``forward`` while the block runs."""
        for module in self._modules:
            batch_first = self._batch_first or module is self._embedding
            module.forward = _Dropping(module, kept, 0 if batch_first else 1)
        try:
            yield
        finally:
            for module in self._modules:
                del module.forward


class _Dropping:
    """What takes the place of a dropout module's ``forward``, and counts its calls."""

    def __init__(
        self, module: Any, kept: Callable[..., Tensor], batch_dim: int
    ) -> None:
        self._module, self._kept, self._batch_dim = module, kept, batch_dim
        self._calls = 0

    def __call__(self, inputs: Tensor, inplace: bool = False) -> Tensor:
        rows = inputs.movedim(self._batch_dim, 0)
        kept = self._kept(self._module, self._calls, rows)
        self._calls += 1
        dropped = rows * kept / (1 - self._module.p)
        return dropped.movedim(0, self._batch_dim)


def _dropouts(decoder: nn.Module) -> list[Any]:
    of_attention = {
        id(part.dropout_module)
        for part in decoder.modules()
        if isinstance(part, MultiheadAttention)
    }
    found = (part for part in decoder.modules() if isinstance(part, FairseqDropout))
    return [part for part in found if id(part) not in of_attention]
