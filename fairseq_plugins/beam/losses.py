"""What training for the beam minimises, one value a sentence, from a search's trace.

From a trace to the beam loss of a batch, and to what is logged about the search.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fairseq_plugins.beam.costs import COSTS, Spelling
from fairseq_plugins.beam.rescore import Wanted
from fairseq_plugins.beam.trace import (
    BeamTrace,
    Hypotheses,
    finished_hypotheses,
    prefixes,
)
from fairseq_plugins.operators import soft_topk, soft_topk_logits

__all__ = [
    "FINISHING",
    "LOSSES",
    "ObjectiveSettings",
    "beam_loss",
    "beam_margin",
    "minimum_risk",
    "rivals",
    "search_statistics",
    "slot_ce",
    "soft_risk",
    "survival",
    "what_losses_want",
]

LOSSES = ("slot-ce", "survival", "risk", "mrt", "bso")
FINISHING = ("risk", "mrt")  # need finished hypotheses and their costs


def slot_ce(trace: BeamTrace) -> Tensor:
    """Return the cross entropy of the gold tokens given the first slot, in nats.

    This is the loss of Xie et al. (2020, section 5): the hypothesis of rank 1, which
    may be a mixture, has to predict the gold token of the same position.

    Returns:
        loss, shape (B,).
    """
    return -trace.gold_first.sum(-1)


def survival(trace: BeamTrace, *, epsilon: float) -> Tensor:
    """Return -log of the gold prefix's soft membership in the beam, in nats.

    With memberships A = sigmoid(z) of the SOFT top-k this is softplus(-z_gold): a
    smooth form of the margin between gold and the edge of the beam in beam search
    optimisation (Wiseman and Rush, 2016), with a slope of at most 2 / epsilon.

    Args:
        epsilon: of the memberships, nats.

    Returns:
        loss, shape (B,), a sum over steps up to the one at which gold is pruned.
    """
    scores, gold = _with_ends(trace)
    logits = soft_topk_logits(scores, trace.beam_size, epsilon=epsilon)
    loss = -logsigmoid(logits.gather(-1, gold.clamp_min(0).unsqueeze(-1)).squeeze(-1))
    return torch.where(gold >= 0, loss, 0.0).sum(-1)


def beam_margin(trace: BeamTrace, cost: Tensor, *, margin: float) -> Tensor:
    """Return the loss of beam search optimisation (Wiseman and Rush, 2016), in nats.

    At every step gold has to lead the edge of the beam by a margin, at its end the
    best candidate; what violates it weighs by its cost.

    Args:
        cost: of the candidates at the edge and, at the last step, of the best one,
            between 0 and 1, shape (B, L).
        margin: in nats.

    Returns:
        loss, shape (B,).
    """
    scores, gold = _with_ends(trace)
    rival = scores.gather(-1, rivals(trace).unsqueeze(-1)).squeeze(-1)
    own = scores.gather(-1, gold.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    counts = (gold >= 0) & rival.isfinite()
    lead = torch.where(counts, own - rival.where(counts, own), 0.0)
    return torch.where(counts, cost * (margin - lead).clamp_min(0.0), 0.0).sum(-1)


def rivals(trace: BeamTrace) -> Tensor:
    """Return what gold has to beat at each step, (B, L).

    The K-th best of the others, and where gold ends the best: an index into the pool,
    or M plus the slot of a candidate that ends.
    """
    scores, gold = _with_ends(trace)
    is_gold = gold.unsqueeze(-1).eq(torch.arange(scores.size(-1), device=gold.device))
    others = scores.detach().masked_fill(is_gold, float("-inf"))
    best = others.topk(trace.beam_size, dim=-1).indices
    return torch.where(gold >= trace.pool.size(-1), best[..., 0], best[..., -1])


def _with_ends(trace: BeamTrace) -> tuple[Tensor, Tensor]:
    """Return all that competes with gold, (B, L, M + K), and where gold is, (B, L).

    Candidates that end compete where gold does; elsewhere they leave the beam without
    taking a slot of it.
    """
    pool_size = trace.pool.size(-1)
    at_end = (trace.gold >= pool_size).unsqueeze(-1)
    ends = trace.ends.masked_fill(~at_end, float("-inf"))
    return torch.cat([trace.pool, ends], dim=-1), trace.gold


def soft_risk(
    hypotheses: Hypotheses, costs: Tensor, *, epsilon: float, lenpen: float
) -> Tensor:
    """Return the expected cost of the hypothesis that SOFT top-1 selects.

    Search returns the finished hypothesis with the best
    ``log_probs / length ** lenpen``; here SOFT top-1 takes that choice.

    Args:
        costs: of the hypotheses, between 0 and 1, shape (B, K).
        epsilon: of the choice, in nats a token if ``lenpen`` is 1.

    Returns:
        loss, shape (B,); 1, the largest cost, for a sentence without any hypothesis.
    """
    choice = soft_topk(hypotheses.scores(lenpen), 1, epsilon=epsilon)
    has_none = hypotheses.lengths.sum(-1) == 0
    return (choice * costs).sum(-1).masked_fill(has_none, 1.0)


def minimum_risk(hypotheses: Hypotheses, costs: Tensor, *, alpha: float) -> Tensor:
    """Return the expected cost under the renormalised model (Shen et al., 2016).

    Args:
        costs: of the hypotheses, between 0 and 1, shape (B, K).
        alpha: sharpness, multiplies the sentences' log-probabilities.

    Returns:
        loss, shape (B,).
    """
    # A sentence without any hypothesis would be NaN.
    has_none = hypotheses.lengths.sum(-1, keepdim=True) == 0
    scores = alpha * hypotheses.log_probs.masked_fill(has_none, 0.0)
    return (torch.softmax(scores, -1) * costs).sum(-1)


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
