"""Losses on the trace of a beam search.

To add a loss, write a function from :class:`SearchedBatch` to one value per sentence
under :func:`register_loss`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Callable, Mapping, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from fairseq_plugins.beam.costs import CHARACTER_COSTS, COSTS, Detokenizer
from fairseq_plugins.beam.search import RequiredScores
from fairseq_plugins.beam.trace import (
    BeamTrace,
    Hypotheses,
    collect_hypotheses,
    follow_back,
)
from fairseq_plugins.operators import soft_topk, soft_topk_logits

__all__ = [
    "LOSSES",
    "Loss",
    "SearchedBatch",
    "beam_loss",
    "beam_margin",
    "find_competitors",
    "find_required_scores",
    "minimum_risk",
    "register_loss",
    "search_statistics",
    "slot_ce",
    "soft_risk",
    "survival",
]


@dataclass(frozen=True)
class SearchedBatch:
    """A batch and its search: the input of all losses.

    Attributes:
        trace: with gradients in the required scores.
        target: gold tokens with their end of sentence, padded right, shape (B, T).
        options: of the criterion, see docs/options.md.
        pad_id, eos_id: of the target dictionary.
        detokenizer: of the target dictionary, for costs over words or characters.
        prefix_size: number of first tokens that are forced and not part of the text.
    """

    trace: BeamTrace
    target: Tensor
    options: Any
    pad_id: int
    eos_id: int
    detokenizer: Detokenizer
    prefix_size: int = 0

    @functools.cached_property
    def num_tokens(self) -> Tensor:
        """Number of gold tokens, shape (B,)."""
        return self.target.ne(self.pad_id).sum(-1)

    @functools.cached_property
    def hypotheses(self) -> Hypotheses:
        return collect_hypotheses(self.trace, pad_id=self.pad_id, eos_id=self.eos_id)

    @functools.cached_property
    def costs(self) -> Tensor:
        """Costs of the finished hypotheses, between 0 and 1, shape (B, K)."""
        tokens = self.hypotheses.tokens
        return self.cost(tokens.flatten(0, 1), self.target).view(tokens.shape[:2])

    def cost(self, hypotheses: Tensor, references: Tensor) -> Tensor:
        """Return ``--beam-cost`` of rows of tokens: (F * B, L), (B, R) -> (F * B,)."""
        name = str(self.options.beam_cost)
        symbols, padding = [hypotheses, references], self.pad_id
        symbols = [rows[:, self.prefix_size :] for rows in symbols]
        symbols = [rows.masked_fill(rows.eq(self.eos_id), padding) for rows in symbols]
        if name in CHARACTER_COSTS:
            symbols, padding = [*map(self.detokenizer.characters, symbols)], 0
        elif str(self.options.beam_cost_unit) == "word":
            symbols, padding = [*map(self.detokenizer.words, symbols)], 0
        hypotheses, references = symbols
        references = references.repeat_interleave(len(hypotheses) // len(references), 0)
        return COSTS[name](hypotheses, references, padding)


class Loss(NamedTuple):
    """A loss in the registry.

    Attributes:
        function: from a batch to nats per sentence, shape (B,).
        required: the scores that get gradients.
        resets_to_gold: the beam is reset below ``--bso-margin``.
    """

    function: Callable[[SearchedBatch], Tensor]
    required: RequiredScores
    resets_to_gold: bool = False


LOSSES: dict[str, Loss] = {}


def register_loss(
    name: str, required: RequiredScores, *, resets_to_gold: bool = False
) -> Callable[[Callable[[SearchedBatch], Tensor]], Callable[[SearchedBatch], Tensor]]:
    """Offer the decorated function as ``--beam-loss NAME``; see :class:`Loss`."""

    def register(
        function: Callable[[SearchedBatch], Tensor],
    ) -> Callable[[SearchedBatch], Tensor]:
        LOSSES[name] = Loss(function, required, resets_to_gold)
        return function

    return register


@register_loss("slot-ce", RequiredScores(gold_first=True))
def slot_ce(batch: SearchedBatch) -> Tensor:
    """Return the cross entropy of the gold tokens given the first slot, in nats.

    This is the loss of Xie et al. (2020, section 5): the hypothesis of rank 1, which
    may be a mixture, has to predict the gold token of the same position.
    """
    return -batch.trace.gold_first.sum(-1)


@register_loss("survival", RequiredScores(gold=True))
def survival(batch: SearchedBatch) -> Tensor:
    """Return -log of the gold prefix's soft membership in the beam, in nats.

    With memberships A = sigmoid(z) of the SOFT top-k this is softplus(-z_gold): a
    smooth form of the margin between gold and the edge of the beam in beam search
    optimization (Wiseman and Rush, 2016), with a slope of at most 2 / epsilon. It is a
    sum over the steps until gold is pruned.
    """
    trace = batch.trace
    logits = soft_topk_logits(
        _competing_scores(trace),
        trace.beam_size,
        epsilon=batch.options.survival_epsilon,
    )
    gold = logits.gather(-1, trace.gold.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(trace.gold >= 0, -logsigmoid(gold), 0.0).sum(-1)


@register_loss("risk", RequiredScores(finished=True))
def soft_risk(batch: SearchedBatch) -> Tensor:
    """Return the expected cost of the hypothesis that SOFT top-1 selects.

    Search returns the finished hypothesis with the best ``log_probs / length **
    lenpen``. Here SOFT top-1 makes that choice. The cost is 1 for a sentence without
    any hypothesis. It is multiplied by the number of gold tokens: when summed like
    cross entropy, a long sentence counts as much as it does in BLEU.
    """
    scores = batch.hypotheses.scores(batch.options.beam_lenpen)
    choice = soft_topk(scores, 1, epsilon=batch.options.risk_epsilon)
    has_none = batch.hypotheses.lengths.sum(-1) == 0
    cost = (choice * batch.costs).sum(-1).masked_fill(has_none, 1.0)
    return batch.num_tokens * cost


@register_loss("mrt", RequiredScores(finished=True))
def minimum_risk(batch: SearchedBatch) -> Tensor:
    """Return the expected cost under the renormalized model (Shen et al., 2016).

    It is multiplied by the number of gold tokens, as in :func:`soft_risk`.
    """
    # A sentence without any hypothesis would be NaN.
    has_none = batch.hypotheses.lengths.sum(-1, keepdim=True) == 0
    log_probs = batch.hypotheses.log_probs.masked_fill(has_none, 0.0)
    weights = torch.softmax(batch.options.mrt_alpha * log_probs, -1)
    return batch.num_tokens * (weights * batch.costs).sum(-1)


@register_loss("bso", RequiredScores(gold=True), resets_to_gold=True)
def beam_margin(batch: SearchedBatch) -> Tensor:
    """Return the loss of beam search optimization (Wiseman and Rush, 2016), in nats.

    Gold has to lead the edge of the beam by a margin at every step, and the best
    candidate at its end. A violation is weighted by the cost of the competitor.
    """
    trace = batch.trace
    scores = _competing_scores(trace)
    competitors = find_competitors(trace)
    cost = _competitor_costs(batch, competitors)
    theirs = scores.gather(-1, competitors.unsqueeze(-1)).squeeze(-1)
    own = scores.gather(-1, trace.gold.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    counts = (trace.gold >= 0) & theirs.isfinite()
    lead = torch.where(counts, own - theirs.where(counts, own), 0.0)
    violation = (batch.options.bso_margin - lead).clamp_min(0.0)
    return torch.where(counts, cost * violation, 0.0).sum(-1)


def find_competitors(trace: BeamTrace) -> Tensor:
    """Return the candidate that gold has to beat at each step, (B, L).

    This is the K-th best of the others, and the best one where gold ends: an index
    into the pool, or M plus the slot of a candidate that ends.
    """
    scores, gold = _competing_scores(trace).detach(), trace.gold
    is_gold = gold.unsqueeze(-1).eq(torch.arange(scores.size(-1), device=gold.device))
    others = scores.masked_fill(is_gold, float("-inf"))
    best = others.topk(trace.beam_size, dim=-1).indices
    return torch.where(gold >= trace.pool.size(-1), best[..., 0], best[..., -1])


def _competing_scores(trace: BeamTrace) -> Tensor:
    """Return the scores of all candidates that compete with gold, (B, L, M + K).

    Candidates that end their hypothesis take no slot of the beam. They compete only
    where gold ends, too.
    """
    gold_ends = (trace.gold >= trace.pool.size(-1)).unsqueeze(-1)
    ends = trace.ends.masked_fill(~gold_ends, float("-inf"))
    return torch.cat([trace.pool, ends], dim=-1)


def _competitor_costs(batch: SearchedBatch, competitors: Tensor) -> Tensor:
    """Return the costs of the competitors against the prefix of gold, (B, L)."""
    trace = batch.trace
    batch_size, length, pool_size = trace.pool.shape
    steps = torch.arange(length, device=competitors.device).expand(batch_size, -1)
    in_pool = competitors.clamp_max(pool_size - 1).unsqueeze(-1)
    is_end = competitors >= pool_size
    slots = trace.origins.gather(2, in_pool).squeeze(-1)
    slots = torch.where(is_end, competitors - pool_size, slots)
    last = trace.tokens.gather(2, in_pool).squeeze(-1)
    last = last.masked_fill(is_end, batch.eos_id)
    theirs = follow_back(trace, steps, slots, last, batch.pad_id)  # (B, L, L)
    missing = max(0, length - batch.target.size(1))
    gold = pad(batch.target, (0, missing), value=batch.pad_id)[:, :length]
    is_later = steps.unsqueeze(1) > steps.unsqueeze(2)
    prefixes = gold.unsqueeze(1).masked_fill(is_later, batch.pad_id)
    costs = batch.cost(theirs.flatten(0, 1), prefixes.flatten(0, 1))
    return costs.view(batch_size, length)


def find_required_scores(weights: Mapping[str, float]) -> RequiredScores:
    """Return the scores that any of the weighted losses needs."""
    result = RequiredScores()
    for name in weights:
        result |= LOSSES[name].required
    return result


def beam_loss(batch: SearchedBatch, weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of the losses, summed over the batch, in nats."""
    parts = [
        weights[name] * loss.function(batch).sum()
        for name, loss in LOSSES.items()
        if name in weights
    ]
    return torch.stack(parts).sum()


def search_statistics(
    batch: SearchedBatch, weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """Return sums over the batch that describe the search: docs/method.md."""
    trace = batch.trace
    sums = {
        "gold_in_beam": trace.gold_in_beam.sum(),
        "distinct": trace.distinct.sum(),
        "selections": trace.is_alive.any(-1).sum(),
        "resets": trace.resets.sum(),
    }
    if find_required_scores(weights).finished:
        found, costs = batch.hypotheses, batch.costs
        scores = found.scores(batch.options.beam_lenpen).detach()
        returned = costs.gather(1, scores.argmax(-1, keepdim=True)).squeeze(1)
        oracle = costs.masked_fill(found.lengths == 0, 1.0).amin(-1)
        sums["cost"] = (returned * batch.num_tokens).sum()
        sums["oracle_cost"] = (oracle * batch.num_tokens).sum()
    return sums
