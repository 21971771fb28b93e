"""From a trace to the beam loss of a batch, and to what is logged about the search."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_plugins.beam.costs import COSTS
from fairseq_plugins.beam.losses import (
    FINISHING,
    beam_margin,
    minimum_risk,
    rivals,
    slot_ce,
    soft_risk,
    survival,
)
from fairseq_plugins.beam.spelling import Spelling
from fairseq_plugins.beam.trace import (
    BeamTrace,
    Hypotheses,
    finished_hypotheses,
    prefixes,
)
from fairseq_plugins.beam.two_pass import Wanted

__all__ = ["ObjectiveSettings", "beam_loss", "search_statistics", "what_losses_want"]


@dataclass(frozen=True)
class ObjectiveSettings:
    """The losses, their weights and what they are computed with.

    Attributes:
        weights: of the losses, by name; see :data:`fairseq_plugins.beam.losses.LOSSES`.
        survival_epsilon, risk_epsilon, mrt_alpha, bso_margin: see the losses.
        lenpen: exponent of the length that a finished hypothesis' score is divided by.
        cost: one of :data:`fairseq_plugins.beam.costs.COSTS`.
        spelling: of the target's subwords, for ``chrf`` and for costs over words;
            None for costs over subwords.
    """

    weights: dict[str, float]
    pad_id: int
    eos_id: int
    survival_epsilon: float
    risk_epsilon: float
    mrt_alpha: float
    bso_margin: float
    lenpen: float
    cost: str
    spelling: Spelling | None


def what_losses_want(weights: dict[str, float]) -> Wanted:
    """Return which scores of a search the losses use."""
    return Wanted(
        gold=bool({"survival", "bso"} & weights.keys()),
        finished=bool(set(FINISHING) & weights.keys()),
        first_slot="slot-ce" in weights,
    )


def beam_loss(
    trace: BeamTrace, target: Tensor, settings: ObjectiveSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted loss, summed over the batch, and what it is worth to log.

    Losses a sentence (``risk``, ``mrt``) are multiplied by the number of gold tokens:
    summed like cross entropy, a long sentence counts as much as it does in BLEU.

    Args:
        trace: with gradients.
        target: gold tokens with their end of sentence, padded right, shape (B, T).
    """
    num_tokens = target.ne(settings.pad_id).sum(-1)
    logged: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    if "slot-ce" in settings.weights:
        parts["slot-ce"] = slot_ce(trace)
    if "survival" in settings.weights:
        parts["survival"] = survival(trace, epsilon=settings.survival_epsilon)
    if "bso" in settings.weights:
        cost = _cost_of_rivals(trace, target, settings)
        parts["bso"] = beam_margin(trace, cost, margin=settings.bso_margin)
    if set(FINISHING) & settings.weights.keys():
        found = finished_hypotheses(
            trace, pad_id=settings.pad_id, eos_id=settings.eos_id
        )
        costs = _costs(found.tokens, target, settings)
        logged.update(_quality(found, costs, num_tokens, settings))
        if "risk" in settings.weights:
            parts["risk"] = num_tokens * soft_risk(
                found, costs, epsilon=settings.risk_epsilon, lenpen=settings.lenpen
            )
        if "mrt" in settings.weights:
            parts["mrt"] = num_tokens * minimum_risk(
                found, costs, alpha=settings.mrt_alpha
            )
    weighted = [settings.weights[name] * part.sum() for name, part in parts.items()]
    return torch.stack(weighted).sum(), logged


def search_statistics(trace: BeamTrace) -> dict[str, Tensor]:
    """Return sums over the batch of what the search did: docs/beam_training.md."""
    steps = trace.is_alive.any(-1)
    return {
        "gold_in_beam": trace.gold_in_beam.sum(),
        "distinct": trace.distinct.sum(),
        "selections": steps.sum(),
        "resets": trace.resets.sum(),
    }


def _costs(hypotheses: Tensor, target: Tensor, settings: ObjectiveSettings) -> Tensor:
    """Return the cost of F hypotheses a sentence: (B, F, L), (B, T) -> (B, F)."""
    batch_size, count, _ = hypotheses.shape
    pad = settings.pad_id
    ours = hypotheses.masked_fill(hypotheses.eq(settings.eos_id), pad).flatten(0, 1)
    gold = target.masked_fill(target.eq(settings.eos_id), pad)
    if settings.spelling is not None:
        spelling, is_chrf = settings.spelling, settings.cost == "chrf"
        spelled = spelling.characters if is_chrf else spelling.words
        ours, gold = map(spelled, (ours, gold))
        pad = 0
    cost = COSTS[settings.cost](ours, gold.repeat_interleave(count, 0), pad)
    return cost.view(batch_size, count)


def _quality(
    found: Hypotheses, costs: Tensor, num_tokens: Tensor, settings: ObjectiveSettings
) -> dict[str, Tensor]:
    """Return the cost of what search returns and of the best that it had to offer."""
    is_there = found.lengths > 0
    best = found.scores(settings.lenpen).detach().argmax(-1, keepdim=True)
    oracle = costs.masked_fill(~is_there, 1.0).amin(-1)
    return {
        "cost": (costs.gather(1, best).squeeze(1) * num_tokens).sum(),
        "oracle_cost": (oracle * num_tokens).sum(),
    }


def _cost_of_rivals(
    trace: BeamTrace, target: Tensor, settings: ObjectiveSettings
) -> Tensor:
    """Return 1 - similarity of gold's prefix and its rival: (B, L)."""
    batch_size, length, pool_size = trace.pool.shape
    steps = torch.arange(length, device=target.device).expand(batch_size, -1)
    rival = rivals(trace)
    in_pool = rival.clamp_max(pool_size - 1).unsqueeze(-1)
    ends = rival >= pool_size
    slots = trace.origins.gather(2, in_pool).squeeze(-1)
    slots = torch.where(ends, rival - pool_size, slots)
    last = trace.tokens.gather(2, in_pool).squeeze(-1)
    last = last.masked_fill(ends, settings.eos_id)
    theirs = prefixes(trace, steps, slots, last, settings.pad_id)  # (B, L, L)
    covered = torch.nn.functional.pad(
        target, (0, max(0, length - target.size(1))), value=settings.pad_id
    )[:, :length]
    is_later = steps.unsqueeze(1) > steps.unsqueeze(2)
    gold = covered.unsqueeze(1).masked_fill(is_later, settings.pad_id)
    flat = theirs.flatten(0, 1)
    cost = _costs(flat.unsqueeze(1), gold.flatten(0, 1), settings)
    return cost.view(batch_size, length)
