"""One step of beam search with the SOFT top-k operator where beam search prunes.

All candidates (slot i, token v) of a sentence compete with their cumulative
log-probabilities. The M best are kept as the pool, and a sorted SOFT top-k assigns
them to the K slots of the next step (Xie et al., NeurIPS 2020, section 5).
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_plugins.beam.state import BeamSettings, BeamState
from fairseq_plugins.operators import sorted_soft_topk

__all__ = ["Candidates", "Selection", "pool_candidates", "select"]


@dataclass(frozen=True)
class Candidates:
    """The pool, best candidate first.

    Attributes:
        scores: cumulative log-probabilities with gradient, shape (B, M).
        origins: the slot that a candidate extends, shape (B, M).
        tokens: the token that it appends, shape (B, M).
        is_gold: whether the candidate is the gold prefix, shape (B, M); false
            everywhere once gold has been pruned.
    """

    scores: Tensor
    origins: Tensor
    tokens: Tensor
    is_gold: Tensor


@dataclass(frozen=True)
class Selection:
    """Which candidates go into which slots.

    Attributes:
        weights: share of each candidate in each slot, shape (B, M, K); every column
            sums to 1.
        from_slots: the same, summed over the candidates of one old slot, shape
            (B, K new, K old): what mixes the decoder's state.
        state: the slots after the selection.
    """

    weights: Tensor
    from_slots: Tensor
    state: BeamState


def pool_candidates(
    state: BeamState, log_probs: Tensor, gold: Tensor, settings: BeamSettings
) -> Candidates:
    """Return the M best candidates; the gold prefix, while it lives, is one of them.

    As in fairseq's search, padding is never a candidate, and an ended hypothesis
    leaves the beam: the end of sentence competes only at the step where gold ends.

    Args:
        state: the slots before the step.
        log_probs: log-probabilities of the next token, shape (B, K, V).
        gold: the gold token of this step, padding after its end, shape (B,).
    """
    vocabulary = log_probs.size(-1)
    with torch.no_grad():
        scores = state.log_probs.unsqueeze(-1) + log_probs  # (B, K, V)
        scores[..., settings.pad_id] = float("-inf")
        not_at_end = gold.ne(settings.eos_id)
        scores[..., settings.eos_id].masked_fill_(not_at_end.unsqueeze(-1), -torch.inf)
        best = scores.flatten(1).topk(settings.pool_size, dim=-1).indices  # (B, M)
        best, is_gold = _with_gold(best, state, gold, vocabulary, settings.pad_id)
    origins = best.div(vocabulary, rounding_mode="floor")
    pooled = log_probs.flatten(1).gather(1, best) + state.log_probs.gather(1, origins)
    return Candidates(pooled, origins, best % vocabulary, is_gold)


def _with_gold(
    best: Tensor, state: BeamState, gold: Tensor, vocabulary: int, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Put the gold candidate in the last place where it is missing; say where it is.

    It scores below all others there, so that the pool stays sorted.
    """
    lives = state.holds_gold.any(-1) & gold.ne(pad_id)  # (B,)
    slot = state.holds_gold.int().argmax(-1)
    candidate = (slot * vocabulary + gold).unsqueeze(-1)  # (B, 1)
    missing = lives & best.ne(candidate).all(-1)
    last = torch.where(missing.unsqueeze(-1), candidate, best[:, -1:])
    best = torch.cat([best[:, :-1], last], dim=-1)
    return best, best.eq(candidate) & lives.unsqueeze(-1)


def select(
    state: BeamState, candidates: Candidates, settings: BeamSettings
) -> Selection:
    """Assign the pool to the K slots and return what the slots hold then."""
    weights = _assignment(candidates.scores, settings)  # (B, M, K)
    if settings.selection_clip and weights.requires_grad:
        weights.register_hook(lambda grad: _clipped(grad, settings.selection_clip))
    held = weights.detach().argmax(1)  # (B, K): what a slot mostly consists of
    is_gold = candidates.is_gold
    pruned = is_gold.any(-1) & ~is_gold.gather(1, held).any(-1)  # (B,)
    resets = pruned & settings.reset_to_gold
    weights = torch.where(
        resets[:, None, None], is_gold.unsqueeze(-1).to(weights.dtype), weights
    )
    held = torch.where(resets[:, None], is_gold.int().argmax(-1, True), held)
    tokens = candidates.tokens.gather(1, held)
    origins = candidates.origins.gather(1, held)
    holds_gold = is_gold.gather(1, held)
    # Two soft slots may mostly consist of one candidate: the first one counts.
    holds_gold &= holds_gold.int().cumsum(-1).eq(1)
    slots = torch.arange(settings.beam_size, device=origins.device)
    # The share-weighted score is (up to the entropy) the optimum that the shares reach,
    # so by the envelope theorem its gradient is the shares: none flows through them.
    log_probs = torch.einsum("bmk,bm->bk", weights.detach(), candidates.scores)
    # After a reset only slot 0 holds something, as before the first step.
    empty = resets[:, None] & slots.gt(0)
    is_from = candidates.origins.unsqueeze(-1).eq(slots).to(weights.dtype)
    from_slots = torch.einsum("bmk,bmo->bko", weights, is_from)
    state = BeamState(
        log_probs.masked_fill(empty, -torch.inf),
        holds_gold,
        _same(state, origins, tokens) & ~(empty[:, None] | empty[:, :, None]),
    )
    return Selection(weights, from_slots, state)


def _same(state: BeamState, origins: Tensor, tokens: Tensor) -> Tensor:
    """Return whether two slots hold the same hypothesis: (B, K, K)."""
    rows = origins.unsqueeze(-1).expand_as(state.same)
    columns = origins.unsqueeze(1).expand_as(state.same)
    same_origin = state.same.gather(1, rows).gather(2, columns)
    return same_origin & tokens.unsqueeze(-1).eq(tokens.unsqueeze(1))


def _assignment(scores: Tensor, settings: BeamSettings) -> Tensor:
    """Return the (B, M, K) shares of the pool, which is sorted best first."""
    hard = torch.eye(
        scores.size(-1), settings.beam_size, dtype=scores.dtype, device=scores.device
    ).expand(scores.size(0), -1, -1)
    if settings.mixing == "hard":
        return hard
    soft = sorted_soft_topk(scores, settings.beam_size, epsilon=settings.epsilon)
    if settings.mixing == "soft":
        return soft
    # Straight-through: the value is exactly hard, the gradient is that of soft.
    return hard + (soft - soft.detach())


def _clipped(gradient: Tensor, norm: float) -> Tensor:
    """Scale each sentence's gradient down to a Euclidean norm of ``norm`` at most."""
    norms = gradient.flatten(1).norm(dim=-1)[:, None, None]
    return gradient * (norm / norms.clamp_min(norm))
