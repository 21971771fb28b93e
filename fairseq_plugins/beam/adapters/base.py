"""The interface between a beam search and a fairseq decoder."""

from __future__ import annotations

import abc
import contextlib
from typing import Any, Callable, ClassVar, Iterator, TypeVar

import torch
from fairseq.models.nat import FairseqNATDecoder
from fairseq.modules import MultiheadAttention
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import Tensor, nn

from fairseq_plugins.beam.adapters.hooks import SharedDropout, replace_method
from fairseq_plugins.beam.projection import OutputLayer
from fairseq_plugins.beam.trace import PrefixTree

__all__ = ["ADAPTERS", "DecoderAdapter", "find_adapter", "register_adapter"]


class DecoderAdapter(abc.ABC):
    """Drives an unmodified fairseq decoder for K slots per sentence, with gradients.

    The decoder is fed with embeddings, since a slot may hold a mixture of hypotheses.
    The defaults fit a decoder that has `embed_tokens`, `extract_features`,
    `output_layer` and `output_projection`, and expects one row of the encoder's output
    per hypothesis. A family has to say only where it keeps its state.

    Args:
        model: an encoder-decoder model that :func:`find_adapter` accepts.
        encoder_out: the output of the model's encoder for B sentences.
        batch_size: B.
        beam_size: K.
        dropout: masks of this search; None for no dropout.

    Attributes:
        scores_trees_in_parallel: whether :meth:`score_tree` is one pass, so that the
            two-pass engine is faster than keeping the graph of the search.
    """

    scores_trees_in_parallel: ClassVar[bool] = False

    def __init__(
        self,
        model: Any,
        encoder_out: Any,
        *,
        batch_size: int,
        beam_size: int,
        dropout: SharedDropout | None = None,
    ) -> None:
        self.model, self.decoder = model, model.decoder
        self.shape = (batch_size, beam_size)
        self.dropout = dropout
        self.state: dict[str, dict[str, Tensor | None]] = {}
        self.encoder_out = self.repeat_encoder_out(encoder_out)
        self._sentences: Tensor | None = None  # None: all of them

    @abc.abstractmethod
    def cached_states(self) -> Iterator[tuple[dict[str, Any], str, int]]:
        """Yield each state of the B * K rows as dictionary, key, batch dimension."""

    @classmethod
    def check(cls, decoder: Any) -> None:
        """Raise ``ValueError`` for an option of the decoder that is not supported."""

    @classmethod
    def dropout_batch_dims(cls, decoder: nn.Module) -> dict[Any, int]:
        """Return the dropout modules, each with the batch dimension of its input.

        Dropout of attention weights is left out: it belongs to one hypothesis.
        """
        modules = list(decoder.modules())
        attentions = [m for m in modules if isinstance(m, MultiheadAttention)]
        left_out = {attention.dropout_module for attention in attentions}
        return {
            module: 0
            for module in modules
            if isinstance(module, FairseqDropout) and module not in left_out
        }

    @property
    def output_layer(self) -> OutputLayer:
        """The layer from features to logits."""
        projection = self.decoder.output_projection
        return OutputLayer(self.decoder.output_layer, projection.parameters())

    def repeat_encoder_out(self, encoder_out: Any) -> Any:
        """Return the encoder's output in the form that the decoder expects."""
        batch_size, beam_size = self.shape
        rows = torch.arange(batch_size, device=self.decoder.embed_tokens.weight.device)
        return self.model.encoder.reorder_encoder_out(
            encoder_out, rows.repeat_interleave(beam_size)
        )

    def keep_encoder_out(self, sentences: Tensor, rows: Tensor) -> None:
        """Keep the encoder's output of some sentences, or of their slots' rows."""
        self.encoder_out = self.model.encoder.reorder_encoder_out(
            self.encoder_out, rows
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the decoder's embeddings of token ids: (...) -> (..., D)."""
        return self.decoder.embed_tokens(tokens)

    def step(self, inputs: Tensor, position: int) -> Tensor:
        """Return the features (B, K, D) that predict the next token.

        Args:
            inputs: embeddings of the slots' last tokens, shape (B, K, D).
            position: number of previous steps, for the position embedding.
        """
        rows = inputs.flatten(0, 1).unsqueeze(1)  # (B * K, 1, D)
        # The decoder needs the number of tokens only. Padding would switch masks on.
        unknown = self.decoder.dictionary.unk()
        tokens = torch.full((len(rows), position + 1), unknown, device=rows.device)
        with contextlib.ExitStack() as changes:
            embed_tokens = self.decoder.embed_tokens
            changes.enter_context(
                replace_method(embed_tokens, "forward", lambda *_: rows)
            )
            if self.dropout is not None:
                changes.enter_context(
                    self.dropout.apply_at_step(position, self._sentences)
                )
            features, _ = self.decoder.extract_features(
                tokens, encoder_out=self.encoder_out, incremental_state=self.state
            )
        return features.view(*self.shape, -1)

    def log_probs(self, features: Tensor) -> Tensor:
        """Return float32 log-probabilities of the next token, shape (B, K, V)."""
        output = self.decoder.output_layer(features)
        return self.model.get_normalized_probs((output, None), log_probs=True)

    def mix(self, from_slots: Tensor) -> None:
        """Replace each slot's state by a mixture of the old slots' states.

        A one-hot mixture is exactly :meth:`reorder`.

        Args:
            from_slots: weights, shape (B, K new, K old).
        """
        for cached, name, batch_dim in self.cached_states():
            cached[name] = _mix(cached[name], from_slots, batch_dim)

    def reorder(self, origins: Tensor) -> None:
        """Replace each slot's state by that of another slot, shape (B, K)."""
        self._select_rows(self._rows(torch.arange(self.shape[0]).to(origins), origins))

    def keep(self, sentences: Tensor) -> None:
        """Continue with some of the sentences only, given by their indices."""
        beam_size = self.shape[1]
        slots = torch.arange(beam_size, device=sentences.device)
        rows = self._rows(sentences, slots)
        self._select_rows(rows)
        self.keep_encoder_out(sentences, rows)
        before = self._sentences
        self._sentences = sentences if before is None else before[sentences]
        self.shape = (len(sentences), beam_size)

    def score_tree(self, tree: PrefixTree) -> Tensor:
        """Return the features after each node of a tree, shape (B, N, D).

        This goes through the depths and drops sentences that have no deeper nodes. The
        adapter must not have done a step before.
        """
        has_nodes = (tree.node >= 0).any(-1)  # (B, L)
        num_depths = has_nodes.sum(1).cpu()
        sentences = torch.arange(len(num_depths))
        node, parents, tokens = tree.node, tree.parents, tree.tokens
        parts, ids = [], []
        for depth in range(int(num_depths.max())):
            here = node[:, depth]
            index = here.clamp_min(0)
            if depth:
                parent = parents.gather(1, index).unsqueeze(-1)
                before = node[:, depth - 1].unsqueeze(1)
                self.reorder((before.eq(parent) & before.ge(0)).int().argmax(-1))
            features = self.step(self.embed(tokens.gather(1, index)), depth)
            first = tree.tokens.size(1) * sentences.to(here.device)
            parts.append(features[here >= 0])
            ids.append((here + first.unsqueeze(-1))[here >= 0])
            kept = (num_depths[sentences] > depth + 1).nonzero().squeeze(-1)
            if 0 < len(kept) < len(sentences):
                sentences, kept = sentences[kept], kept.to(here.device)
                self.keep(kept)
                node, parents, tokens = node[kept], parents[kept], tokens[kept]
        rows = torch.cat(parts)
        flat = rows.new_zeros(tree.tokens.numel(), rows.size(-1))
        return flat.index_copy(0, torch.cat(ids), rows).view(*tree.tokens.shape, -1)

    def _rows(self, sentences: Tensor, slots: Tensor) -> Tensor:
        return (self.shape[1] * sentences.unsqueeze(-1) + slots).flatten()

    def _select_rows(self, rows: Tensor) -> None:
        for cached, name, batch_dim in self.cached_states():
            cached[name] = cached[name].index_select(batch_dim, rows)


def _mix(value: Tensor, from_slots: Tensor, batch_dim: int) -> Tensor:
    """Mix the B * K rows that lie along ``batch_dim``."""
    slots = value.unflatten(batch_dim, (from_slots.size(0), -1))
    slots = slots.movedim((batch_dim, batch_dim + 1), (0, 1))  # (B, K, ...)
    mixed = torch.bmm(from_slots.to(value.dtype), slots.flatten(2)).view(slots.shape)
    mixed = mixed.movedim((0, 1), (batch_dim, batch_dim + 1))
    return mixed.flatten(batch_dim, batch_dim + 1)


ADAPTERS: dict[type, type[DecoderAdapter]] = {}
_Adapter = TypeVar("_Adapter", bound=type[DecoderAdapter])


def register_adapter(decoder_class: type) -> Callable[[_Adapter], _Adapter]:
    """Use the decorated adapter for a class of decoders and its subclasses."""

    def register(adapter: _Adapter) -> _Adapter:
        ADAPTERS[decoder_class] = adapter
        return adapter

    return register


def find_adapter(model: Any) -> type[DecoderAdapter]:
    """Return the adapter class for the decoder of a model.

    Raises:
        ValueError: beam search with this model is not supported.
    """
    if getattr(model, "encoder", None) is None:
        raise ValueError(
            f"the model must have an encoder and a decoder, but {type(model).__name__} "
            "has no encoder: soft_beam_search is for `--task translation`."
        )
    decoder = model.decoder
    if isinstance(decoder, FairseqNATDecoder):
        raise ValueError(
            "the model must generate token by token, but "
            f"{type(model).__name__} is non-autoregressive."
        )
    classes = [cls for cls in type(decoder).__mro__ if cls in ADAPTERS]
    if not classes:
        known = " or ".join(cls.__name__ for cls in ADAPTERS)
        raise ValueError(
            f"the model's decoder must be a {known} (or a subclass), but is "
            f"{type(decoder).__name__}."
        )
    if getattr(decoder, "adaptive_softmax", None) is not None:
        raise ValueError("`--adaptive-softmax-cutoff` must not be given here.")
    adapter = ADAPTERS[classes[0]]
    adapter.check(decoder)
    return adapter
