"""What training for the beam minimises, one value a sentence, from a search's trace."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fairseq_plugins.beam.trace import BeamTrace, Hypotheses
from fairseq_plugins.operators import soft_topk, soft_topk_logits

__all__ = [
    "FINISHING",
    "LOSSES",
    "beam_margin",
    "minimum_risk",
    "rivals",
    "slot_ce",
    "soft_risk",
    "survival",
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
