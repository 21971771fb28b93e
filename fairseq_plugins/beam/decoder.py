"""An unmodified fairseq decoder, driven one step at a time with gradients."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

import torch
from fairseq.models.lstm import LSTMDecoder
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_plugins.beam.shared_dropout import SharedDropout
from fairseq_plugins.beam.slot_attention import attention_of_slots, is_shareable

__all__ = [
    "IncrementalDecoder",
    "check_model",
    "without_checkpointing",
    "without_dropout",
]


def check_model(model: Any) -> None:
    """Raise ``ValueError`` unless the beam can be searched with this model."""
    if getattr(model, "encoder", None) is None:
        raise ValueError(
            f"the model must have an encoder and a decoder, but {type(model).__name__} "
            "has no encoder: soft_beam_search is for `--task translation`."
        )
    decoder = model.decoder
    if getattr(decoder, "adaptive_softmax", None) is not None:
        raise ValueError("`--adaptive-softmax-cutoff` must not be given here.")
    if isinstance(decoder, LSTMDecoder):
        return
    if not isinstance(decoder, TransformerDecoderBase):
        raise ValueError(
            "the model's decoder must be fairseq's LSTMDecoder or TransformerDecoder "
            f"(or a subclass), but is {type(decoder).__name__}."
        )
    if getattr(decoder, "cross_self_attention", False):
        raise ValueError("`--cross-self-attention` must be off for soft_beam_search.")


@contextlib.contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and each part back to what it was after it.

    Hypotheses that compete must be scored by one network: with a mask of its own
    each of them would win or lose by chance.
    """
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@contextlib.contextmanager
def without_checkpointing(module: nn.Module) -> Iterator[None]:
    """Let layers keep their activations in spite of ``--checkpoint-activations``.

    The backward pass would compute them anew when the decoder's mode, its masks and
    the state of the search are others than they were.
    """
    parts: Iterator[Any] = module.modules()
    wrapped = [(p, p.forward) for p in parts if hasattr(p, "precheckpoint_forward")]
    for part, _ in wrapped:
        part.forward = part.precheckpoint_forward
    try:
        yield
    finally:
        for part, forward in wrapped:
            part.forward = forward


class IncrementalDecoder:
    """Steps a decoder for K slots a sentence, fed with embeddings instead of tokens.

    Args:
        model: what passes :func:`check_model`.
        encoder_out: what the model's encoder returned for B sentences.
        batch_size: B.
        beam_size: K.
        dropout: of the B sentences; None for none.
    """

    def __init__(
        self,
        model: Any,
        encoder_out: Any,
        *,
        batch_size: int,
        beam_size: int,
        dropout: SharedDropout | None = None,
    ) -> None:
        self._model = model
        self._decoder = model.decoder
        self._shape = (batch_size, beam_size)
        self._dropout = dropout
        self._sentences: Tensor | None = None  # None: all of them
        self._state: dict[str, dict[str, Tensor | None]] = {}
        # A Transformer's cross attention takes K queries for one sentence's keys, and
        # so does an LSTM's in `attention_of_slots`.
        self._encoder_out = encoder_out
        self._is_lstm = isinstance(self._decoder, LSTMDecoder)
        if self._is_lstm:
            self._encoder_out = _repeat_start(model, encoder_out, beam_size)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the decoder's embeddings of token ids: (...) -> (..., D)."""
        return self._decoder.embed_tokens(tokens)

    def step(self, inputs: Tensor, position: int) -> Tensor:
        """Return the features (B, K, D) that predict the next token.

        Args:
            inputs: embeddings of the slots' last tokens, shape (B, K, D).
            position: number of steps done before, which the position embedding needs.
        """
        rows = inputs.flatten(0, 1).unsqueeze(1)  # (B * K, 1, D)
        # Their number says where we are; what they are does not matter, except that
        # padding would switch masks on.
        tokens = torch.full(
            (rows.size(0), position + 1),
            self._decoder.dictionary.unk(),
            device=rows.device,
        )
        with contextlib.ExitStack() as during:
            hook = self._decoder.embed_tokens.register_forward_hook(lambda *_: rows)
            during.callback(hook.remove)
            during.enter_context(
                attention_of_slots(self._decoder, self._encoder_out, self._shape)
            )
            if self._dropout is not None:
                during.enter_context(self._dropout.at_step(position, self._sentences))
            features, _ = self._decoder.extract_features(
                tokens, encoder_out=self._encoder_out, incremental_state=self._state
            )
        return features.view(*self._shape, -1)

    def log_probs(self, features: Tensor) -> Tensor:
        """Return float32 log-probabilities of the next token, shape (B, K, V)."""
        output = self._decoder.output_layer(features)
        return self._model.get_normalized_probs((output, None), log_probs=True)

    def mix(self, from_slots: Tensor) -> None:
        """Replace each slot's state by its mixture of the old slots' states.

        A one-hot mixture is exactly :meth:`reorder`.

        Args:
            from_slots: shares, shape (B, K new, K old).
        """
        for cached, name, batch_dim in self._cached():
            cached[name] = _mixed(cached[name], from_slots, batch_dim)

    def reorder(self, origins: Tensor) -> None:
        """Replace each slot's state by that of the slot it comes from: (B, K)."""
        first = self._shape[1] * torch.arange(self._shape[0], device=origins.device)
        rows = (origins + first.unsqueeze(-1)).flatten()
        for cached, name, batch_dim in self._cached():
            cached[name] = cached[name].index_select(batch_dim, rows)

    def keep(self, sentences: Tensor) -> None:
        """Go on with some of the sentences only, by their indices."""
        beam_size = self._shape[1]
        slots = torch.arange(beam_size, device=sentences.device)
        rows = (beam_size * sentences.unsqueeze(-1) + slots).flatten()
        for cached, name, batch_dim in self._cached():
            cached[name] = cached[name].index_select(batch_dim, rows)
        if self._is_lstm:
            shared = is_shareable(self._decoder)
            self._encoder_out = tuple(
                value.index_select(1, sentences if shared and i in (0, 3) else rows)
                for i, value in enumerate(self._encoder_out)
            )
        else:
            self._encoder_out = self._model.encoder.reorder_encoder_out(
                self._encoder_out, sentences
            )
            for cached in self._attention_buffers(self_attention=False):
                for name, value in cached.items():
                    if value is not None:
                        cached[name] = value.index_select(0, sentences)
        before = self._sentences
        self._sentences = sentences if before is None else before[sentences]
        self._shape = (sentences.numel(), beam_size)

    def _cached(self) -> Iterator[tuple[dict[str, Any], str, int]]:
        """Yield where the state of the (B * K) rows is kept: dict, key, dimension."""
        if self._is_lstm:
            cached = self._decoder.get_incremental_state(self._state, "cached_state")
            for name in cached or ():
                yield cached, name, 0 if name == "input_feed" else 1
            return
        for cached in self._attention_buffers(self_attention=True):
            yield cached, "prev_key", 0
            yield cached, "prev_value", 0

    def _attention_buffers(self, *, self_attention: bool) -> Iterator[dict[str, Any]]:
        for part in self._decoder.modules():
            if isinstance(part, MultiheadAttention):
                if part.self_attention == self_attention:
                    cached = part._get_input_buffer(self._state)
                    if cached:
                        yield cached


def _repeat_start(model: Any, encoder_out: Any, beam_size: int) -> Any:
    """Repeat what the LSTM's first step begins from, and its keys if they must be."""
    batch_size = encoder_out[0].size(1)
    rows = torch.arange(batch_size, device=encoder_out[0].device)
    repeated = model.encoder.reorder_encoder_out(
        encoder_out if not is_shareable(model.decoder) else _without_keys(encoder_out),
        rows.repeat_interleave(beam_size),
    )
    if not is_shareable(model.decoder):
        return repeated
    return encoder_out[0], repeated[1], repeated[2], encoder_out[3]


def _without_keys(encoder_out: Any) -> Any:
    """Leave one position of keys and mask, so that repeating them costs nothing."""
    return (encoder_out[0][:1], encoder_out[1], encoder_out[2], encoder_out[3][:1])


def _mixed(value: Tensor, from_slots: Tensor, batch_dim: int) -> Tensor:
    """Mix the (B * K) rows that lie along ``batch_dim``."""
    slots = value.unflatten(batch_dim, (from_slots.size(0), -1))
    slots = slots.movedim((batch_dim, batch_dim + 1), (0, 1))  # (B, K, ...)
    mixed = torch.bmm(from_slots.to(value.dtype), slots.flatten(2)).view(slots.shape)
    mixed = mixed.movedim((0, 1), (batch_dim, batch_dim + 1))
    return mixed.flatten(batch_dim, batch_dim + 1)
