"""The two ways to a trace with gradients."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairseq_plugins.beam.decoder import IncrementalDecoder
from fairseq_plugins.beam.projection import OutputLayer
from fairseq_plugins.beam.rollout import rollout
from fairseq_plugins.beam.shared_dropout import SharedDropout
from fairseq_plugins.beam.state import BeamSettings
from fairseq_plugins.beam.trace import BeamTrace
from fairseq_plugins.beam.two_pass import Wanted, scored

__all__ = ["ENGINES", "search", "searched_with_gradients"]

ENGINES = ("auto", "rollout", "two-pass")


def searched_with_gradients(
    engine: str,
    model: Any,
    encoder_out: Any,
    start_tokens: Tensor,
    target: Tensor,
    *,
    settings: BeamSettings,
    what: Wanted,
    max_lens: Tensor | None = None,
    dropout: bool = False,
) -> BeamTrace:
    """Search, and return the trace with gradients in the scores that are wanted.

    Args:
        engine: ``rollout`` keeps the graph of the search itself; ``two-pass`` searches
            without one and then scores what it found, which needs hard mixing.
        encoder_out: what the model's encoder returned for B sentences.
        start_tokens: the token that begins every hypothesis, shape (B,).
        target: gold tokens with their end of sentence, padded right, shape (B, T).
        max_lens: lower limits than ``settings.max_len``, shape (B,).
        dropout: search and score with one mask for all hypotheses of a sentence at a
            step, which both engines draw alike.
    """
    is_rollout = engine == "rollout"
    masks = None
    if dropout:
        masks = SharedDropout(model.decoder, batch_size=len(target))
    with torch.set_grad_enabled(is_rollout and torch.is_grad_enabled()):
        trace = search(
            model, encoder_out, start_tokens, target,
            settings=settings, what=what, max_lens=max_lens, dropout=masks,
        )  # fmt: skip
    if is_rollout:
        return trace
    return scored(
        trace, model, encoder_out, OutputLayer(model.decoder), start_tokens, target,
        eos_id=settings.eos_id, what=what, dropout=masks,
    )  # fmt: skip


def search(
    model: Any,
    encoder_out: Any,
    start_tokens: Tensor,
    target: Tensor,
    *,
    settings: BeamSettings,
    what: Wanted,
    max_lens: Tensor | None = None,
    dropout: SharedDropout | None = None,
) -> BeamTrace:
    """Search as far as the losses need it; arguments as above, dropout by its masks."""
    decoder = IncrementalDecoder(
        model, encoder_out, batch_size=len(target), beam_size=settings.beam_size,
        dropout=dropout,
    )  # fmt: skip
    if what.first_slot:
        follow_gold = "end"
    else:
        follow_gold = "until-lost" if what.gold else "no"
    return rollout(
        decoder, OutputLayer(model.decoder), start_tokens, target,
        settings=settings, finish=what.finished, follow_gold=follow_gold,
        max_lens=max_lens,
    )  # fmt: skip
