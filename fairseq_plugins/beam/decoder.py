"""An unmodified fairseq decoder, driven one step at a time with gradients."""
from __future__ import annotations

import contextlib
from typing import Any, Iterator

import torch
from fairseq.models.lstm import LSTMDecoder
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

__all__ = ["IncrementalDecoder", "check_decoder", "without_dropout"]


def check_decoder(decoder: nn.Module) -> None:
    """Raise ``ValueError`` unless the rollout knows how to mix the decoder's state."""
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


class IncrementalDecoder:
    """Steps a decoder for K slots a sentence, fed with embeddings instead of tokens.

    Args:
        model: an encoder-decoder whose decoder passes :func:`check_decoder`.
        encoder_out: what the model's encoder returned for B sentences.
        batch_size: B.
        beam_size: K.
    """

    def __init__(
        self, model: Any, encoder_out: Any, *, batch_size: int, beam_size: int
    ) -> None:
        self._model = model
        self._decoder = model.decoder
        self._shape = (batch_size, beam_size)
        self._state: dict[str, dict[str, Tensor | None]] = {}
        # A Transformer's cross attention takes K queries for one sentence's keys.
        self._encoder_out = encoder_out
        if isinstance(self._decoder, LSTMDecoder):
            rows = torch.arange(batch_size, device=encoder_out[0].device)
            self._encoder_out = model.encoder.reorder_encoder_out(
                encoder_out, rows.repeat_interleave(beam_size)
            )

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the decoder's embeddings of token ids: (...) -> (..., D)."""
        return self._decoder.embed_tokens(tokens)

    def step(self, inputs: Tensor, position: int) -> Tensor:
        """Return the log-probabilities (B, K, V) of the next token, in float32.

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
        hook = self._decoder.embed_tokens.register_forward_hook(lambda *_: rows)
        try:
            output = self._decoder(
                tokens,
                encoder_out=self._encoder_out,
                incremental_state=self._state,
            )
        finally:
            hook.remove()
        log_probs = self._model.get_normalized_probs(output, log_probs=True)
        return log_probs.view(*self._shape, -1)

    def mix(self, from_slots: Tensor) -> None:
        """Replace each slot's state by its mixture of the old slots' states.

        A one-hot mixture is exactly the reordering of a hard beam search.

        Args:
            from_slots: shares, shape (B, K new, K old).
        """
        if isinstance(self._decoder, LSTMDecoder):
            cached = self._decoder.get_incremental_state(self._state, "cached_state")
            for name, value in cached.items():
                batch_dim = 0 if name == "input_feed" else 1
                cached[name] = _mixed(value, from_slots, batch_dim)
            return
        for part in self._decoder.modules():
            if isinstance(part, MultiheadAttention) and part.self_attention:
                cached = part._get_input_buffer(self._state)
                for name in ("prev_key", "prev_value"):
                    cached[name] = _mixed(cached[name], from_slots, 0)


def _mixed(value: Tensor, from_slots: Tensor, batch_dim: int) -> Tensor:
    """Mix the (B * K) rows that lie along ``batch_dim``."""
    slots = value.unflatten(batch_dim, (from_slots.size(0), -1))
    slots = slots.movedim((batch_dim, batch_dim + 1), (0, 1))  # (B, K, ...)
    mixed = torch.bmm(from_slots.to(value.dtype), slots.flatten(2)).view(slots.shape)
    mixed = mixed.movedim((0, 1), (batch_dim, batch_dim + 1))
    return mixed.flatten(batch_dim, batch_dim + 1)
