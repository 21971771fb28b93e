"""A differentiable beam search along the gold length: losses and what happened."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_plugins.beam.decoder import IncrementalDecoder
from fairseq_plugins.beam.losses import slot_ce, survival
from fairseq_plugins.beam.state import BeamSettings, BeamState
from fairseq_plugins.beam.step import Candidates, pool_candidates, select

__all__ = ["Rollout", "rollout"]


@dataclass(frozen=True)
class Rollout:
    """Sums over the steps of a sentence, each of shape (B,).

    Attributes:
        losses: nats by name of the loss; only those asked for.
        gold_in_beam: number of steps after which the gold prefix was in the beam.
        distinct: number of steps at which all K slots held different hypotheses.
        selections: number of steps that ``distinct`` is out of.
    """

    losses: dict[str, Tensor]
    gold_in_beam: Tensor
    distinct: Tensor
    selections: Tensor


def rollout(
    decoder: IncrementalDecoder,
    start_tokens: Tensor,
    target: Tensor,
    *,
    settings: BeamSettings,
    losses: tuple[str, ...],
) -> Rollout:
    """Search with gradients for as many steps as gold has tokens.

    Args:
        decoder: a fresh decoder for B sentences and K slots.
        start_tokens: the token that begins every hypothesis, shape (B,).
        target: gold tokens with their end of sentence, padded right, shape (B, T).
        settings: how the beam selects and mixes.
        losses: names out of :data:`fairseq_plugins.beam.losses.LOSSES`.
    """
    batch_size, length = target.shape
    state = BeamState.start(batch_size, settings.beam_size, target.device)
    inputs = decoder.embed(start_tokens).unsqueeze(1).expand(-1, settings.beam_size, -1)
    sums = {name: torch.zeros(batch_size, device=target.device) for name in losses}
    in_beam, distinct = (torch.zeros_like(start_tokens) for _ in range(2))
    for position in range(length):
        gold = target[:, position]
        log_probs = decoder.step(inputs, position)  # (B, K, V)
        candidates = pool_candidates(state, log_probs, gold, settings)
        if "slot-ce" in sums:
            sums["slot-ce"] = sums["slot-ce"] + slot_ce(
                log_probs, gold, settings.pad_id
            )
        if "survival" in sums:
            sums["survival"] = sums["survival"] + survival(candidates, settings)
        in_beam += candidates.is_gold[:, : settings.beam_size].any(-1)
        if position + 1 == length:
            break
        selection = select(state, candidates, settings)
        state = selection.state
        goes_on = target[:, position + 1].ne(settings.pad_id)
        distinct += _all_differ(state.same) & goes_on
        inputs = _mixed_embeddings(decoder, candidates, selection.weights)
        decoder.mix(selection.from_slots)
    selections = target[:, 1:].ne(settings.pad_id).sum(-1)
    return Rollout(sums, in_beam, distinct, selections)


def _all_differ(same: Tensor) -> Tensor:
    """Return whether no two slots are the same: (B, K, K) -> (B,)."""
    return ~same.triu(1).flatten(1).any(-1)


def _mixed_embeddings(
    decoder: IncrementalDecoder, candidates: Candidates, weights: Tensor
) -> Tensor:
    """Return the slots' next inputs, shape (B, K, D)."""
    embedded = decoder.embed(candidates.tokens)  # (B, M, D)
    return torch.einsum("bmk,bmd->bkd", weights.to(embedded.dtype), embedded)
