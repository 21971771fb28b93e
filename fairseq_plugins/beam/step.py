"""One step of beam search, with SOFT top-k where beam search prunes.

All candidates (slot i, token v) of a sentence compete with their cumulative
log-probabilities, as in fairseq's ``SequenceGenerator``: a candidate that ends its
hypothesis leaves the beam if it is among the K best, and the K best of the others stay.
The M best that do not end are the pool. A sorted SOFT top-k assigns them to the K slots
of the next step (Xie et al., NeurIPS 2020, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from fairseq_plugins.operators import sorted_soft_topk

__all__ = [
    "MIXINGS",
    "BeamSettings",
    "BeamState",
    "Candidates",
    "LossScale",
    "Selection",
    "expand",
    "select",
]

MIXINGS = ("soft", "straight-through", "hard")


class LossScale:
    """The factor of all gradients in a backward pass: not 1 in half precision.

    Attributes:
        value: factor of the current backward pass, known once it has begun.
    """

    def __init__(self) -> None:
        self.value: Tensor | float = 1.0

    def read_from(self, loss: Tensor) -> None:
        """Use the gradient that will arrive at a scalar loss as the factor."""
        if loss.requires_grad:
            loss.register_hook(self._set)

    def _set(self, gradient: Tensor) -> None:
        self.value = gradient.detach().abs()


@dataclass(frozen=True)
class BeamSettings:
    """How the beam selects, mixes and ends.

    Attributes:
        beam_size: number of slots K.
        pool_size: number M of best candidates among which the selection is soft.
        max_len: largest number of tokens before the end of sentence. A sentence of the
            batch may have a lower limit.
        min_len: smallest number of tokens before the end of sentence.
        epsilon: entropy weight of the sorted SOFT top-k that mixes hypotheses, nats.
        mixing: ``soft`` (Xie et al., 2020, section 5), ``straight-through`` (forward
            hard, gradient soft) or ``hard`` (no gradient through the selection).
        selection_clip: largest norm of the gradient that reaches one selection of one
            sentence; 0 does not clip. A selection multiplies gradients by up to
            2 / epsilon, so that they would otherwise explode over many steps.
        loss_scale: the factor that clipping allows for.
        reset_margin: when the gold prefix does not lead the edge of the beam by this
            many nats, the beam is reset to it alone (LaSO; Daume and Marcu, 2005);
            0 resets when it would be pruned, None never.
        pad_id: the padding token, never a candidate.
        eos_id: the end of sentence. A hypothesis that takes it leaves the beam.
    """

    beam_size: int
    pool_size: int
    max_len: int
    pad_id: int
    eos_id: int
    min_len: int = 1
    epsilon: float = 1.0
    mixing: str = "hard"
    selection_clip: float = 0.0
    loss_scale: LossScale = field(default_factory=LossScale, compare=False)
    reset_margin: float | None = None


@dataclass(frozen=True)
class BeamState:
    """The K slots of each sentence.

    Attributes:
        log_probs: cumulative log-probabilities, shape (B, K); ``-inf`` marks an empty
            slot.
        holds_gold: whether the slot holds the gold prefix, shape (B, K); true for at
            most one slot of a sentence.
        same: whether two slots hold the same token sequence, shape (B, K, K).
        num_finished: number of hypotheses that have left the beam, at most K, (B,).
        max_lens: the limit of each sentence, at most `BeamSettings.max_len`, (B,).
    """

    log_probs: Tensor
    holds_gold: Tensor
    same: Tensor
    num_finished: Tensor
    max_lens: Tensor

    @classmethod
    def start(cls, max_lens: Tensor, beam_size: int) -> BeamState:
        """Return the state before the first step: one empty prefix, in slot 0.

        If all K slots were alike, the first selection would be K copies of one token.
        """
        batch_size, device = len(max_lens), max_lens.device
        log_probs = torch.full((batch_size, beam_size), float("-inf"), device=device)
        log_probs[:, 0] = 0.0
        same = torch.eye(beam_size, dtype=torch.bool, device=device)
        return cls(
            log_probs=log_probs,
            holds_gold=log_probs.eq(0.0),
            same=same.expand(batch_size, -1, -1),
            num_finished=torch.zeros_like(max_lens),
            max_lens=max_lens,
        )

    def keep(self, sentences: Tensor) -> BeamState:
        """Return the state of some sentences, given by their indices."""
        values = (getattr(self, field.name) for field in fields(self))
        return BeamState(*(value.index_select(0, sentences) for value in values))


@dataclass(frozen=True)
class Candidates:
    """The pool, best candidate first, and the K candidates that end a hypothesis.

    Attributes:
        origins: the slot that a candidate of the pool extends, shape (B, M).
        tokens: the token that it appends, shape (B, M).
        gold: index of the gold prefix in the pool, or M plus the slot in which gold
            ends, or -1 once gold has been pruned or has ended. Shape (B,).
        gold_rank: number of candidates that score higher, including those that end
            where gold ends; M where ``gold`` is -1. Shape (B,).
        finishes: whether the slot's hypothesis ends here and leaves, shape (B, K).
    """

    origins: Tensor
    tokens: Tensor
    gold: Tensor
    gold_rank: Tensor
    finishes: Tensor


@dataclass(frozen=True)
class Selection:
    """Which candidates of the pool go into which slots.

    Attributes:
        held: the candidate with the largest weight in a slot, shape (B, K).
        weights: weight of each candidate in each slot, shape (B, M, K). Every column
            sums to 1. None if every slot is exactly its ``held``.
        resets: whether the beam is reset to gold alone, shape (B,).
        state: the slots after the selection.
    """

    held: Tensor
    weights: Tensor | None
    resets: Tensor
    state: BeamState


@torch.no_grad()
def expand(
    state: BeamState,
    log_probs: Tensor,
    gold: Tensor,
    position: int,
    settings: BeamSettings,
    *,
    follows_gold: bool = True,
    forced: Tensor | None = None,
) -> Candidates:
    """Return the M best candidates.

    Args:
        state: the slots before the step.
        log_probs: log-probabilities of the next token, shape (B, K, V).
        gold: the gold token of this step, padding after its end, shape (B,).
        position: number of tokens that the hypotheses have.
        follows_gold: the gold prefix in the beam is a candidate even if it is not
            among the M best: it then replaces the last of them.
        forced: the only token that is allowed, shape (B,).
    """
    vocabulary = log_probs.size(-1)
    scores = state.log_probs.unsqueeze(-1) + log_probs  # (B, K, V)
    scores[..., settings.pad_id] = float("-inf")
    ends = scores[..., settings.eos_id].clone()
    scores[..., settings.eos_id] = float("-inf")
    if position < settings.min_len:
        ends.fill_(float("-inf"))
    may_continue = position < state.max_lens
    if forced is not None:
        is_other = torch.arange(vocabulary, device=gold.device) != forced.unsqueeze(-1)
        scores.masked_fill_(is_other.unsqueeze(1), float("-inf"))
        ends.masked_fill_(may_continue.unsqueeze(-1), float("-inf"))
    scores.masked_fill_(~may_continue[:, None, None], float("-inf"))
    best = scores.flatten(1).topk(settings.pool_size, dim=-1)
    finishes = _find_finished(state, best.values[:, : settings.beam_size], ends)
    slot = state.holds_gold.int().argmax(-1)
    at_end = gold.eq(settings.eos_id)
    # Gold may be shorter or longer than any hypothesis is allowed to be.
    is_allowed = torch.where(at_end, position >= settings.min_len, may_continue)
    is_followed = state.holds_gold.any(-1) & gold.ne(settings.pad_id) & is_allowed
    index, gold_index = best.indices, slot * vocabulary + gold
    if follows_gold:
        index = _include_gold(index, gold_index, is_followed & ~at_end)
    in_pool = index.eq(gold_index.unsqueeze(-1))
    is_followed &= at_end | in_pool.any(-1)
    ends_score = ends.gather(1, slot.unsqueeze(-1))
    end_rank = (best.values > ends_score).sum(-1) + (ends > ends_score).sum(-1)
    where = torch.where(at_end, settings.pool_size + slot, in_pool.int().argmax(-1))
    rank = torch.where(at_end, end_rank, where)
    return Candidates(
        origins=index.div(vocabulary, rounding_mode="floor"),
        tokens=index % vocabulary,
        gold=where.masked_fill(~is_followed, -1),
        gold_rank=rank.masked_fill(~is_followed, settings.pool_size),
        finishes=finishes,
    )


def _find_finished(state: BeamState, best: Tensor, ends: Tensor) -> Tensor:
    """Return which of the K ends are among the K best candidates, (B, K).

    No sentence finishes more than K hypotheses. The best ones of a step come first.
    """
    beam_size = ends.size(-1)
    behind = (ends.unsqueeze(1) > ends.unsqueeze(2)).sum(-1)
    rank = (best.unsqueeze(1) > ends.unsqueeze(2)).sum(-1) + behind
    is_free = state.num_finished.unsqueeze(-1) + behind < beam_size
    return (rank < beam_size) & is_free & (ends > float("-inf"))


def _include_gold(best: Tensor, gold: Tensor, is_followed: Tensor) -> Tensor:
    """Put a missing gold candidate in the last place: the pool stays sorted."""
    missing = is_followed & best.ne(gold.unsqueeze(-1)).all(-1)
    last = torch.where(missing, gold, best[:, -1])
    return torch.cat([best[:, :-1], last.unsqueeze(-1)], dim=-1)


def select(
    state: BeamState, candidates: Candidates, scores: Tensor, settings: BeamSettings
) -> Selection:
    """Assign the pool to the K slots and return their new content.

    A candidate without a slot is pruned.

    Args:
        scores: cumulative log-probabilities of the pool, shape (B, M). Gradients of a
            slot's score and of its mixture arrive here.
    """
    weights = _assign(scores, settings)
    if weights is None:
        held = torch.arange(settings.beam_size, device=scores.device)
        held = held.expand(len(scores), -1)
    else:
        held = weights.detach().argmax(1)
    # After a reset only slot 0 holds a hypothesis, as before the first step.
    resets = _find_resets(candidates, scores, settings)
    is_empty = torch.zeros_like(held, dtype=torch.bool)
    is_empty[:, 1:] = resets.unsqueeze(-1)
    gold = candidates.gold.clamp(0, scores.size(-1) - 1).unsqueeze(-1)
    held = torch.where(resets.unsqueeze(-1), gold, held)
    if weights is None:
        log_probs = scores.gather(1, held)
    else:
        if settings.reset_margin is not None:
            one_hot = torch.nn.functional.one_hot(held, scores.size(-1)).mT
            weights = torch.where(
                resets[:, None, None], one_hot.to(weights.dtype), weights
            )
        # The weighted score is, up to the entropy, the optimum that the weights
        # attain. By the envelope theorem no gradient flows through the weights. A
        # sum, since 0 * -inf is NaN and autocast would round a matrix product.
        fixed = weights.detach()
        log_probs = (fixed * scores.clamp_min(-1e9).unsqueeze(-1)).sum(1)
    holds_gold = held.eq(candidates.gold.unsqueeze(-1)) & ~is_empty
    # Two soft slots may have the same largest candidate: the first one counts.
    holds_gold &= holds_gold.int().cumsum(-1).eq(1)
    new_state = BeamState(
        log_probs.masked_fill(is_empty, float("-inf")),
        holds_gold,
        _same(state, candidates, held) & ~(is_empty[:, None] | is_empty[:, :, None]),
        state.num_finished + candidates.finishes.sum(-1),
        state.max_lens,
    )
    return Selection(held, weights, resets, new_state)


def _find_resets(
    candidates: Candidates, scores: Tensor, settings: BeamSettings
) -> Tensor:
    """Return which sentences are reset to gold alone, (B,)."""
    if settings.reset_margin is None:
        return torch.zeros_like(candidates.gold, dtype=torch.bool)
    pool_size, scores = scores.size(-1), scores.detach()
    in_pool = (candidates.gold >= 0) & (candidates.gold < pool_size)
    gold = candidates.gold.clamp(0, pool_size - 1).unsqueeze(-1)
    # The edge is the last of the K, or the next one if gold itself is among them.
    in_beam = candidates.gold_rank < settings.beam_size
    edge = torch.where(
        in_beam, scores[:, settings.beam_size], scores[:, settings.beam_size - 1]
    )
    lead = scores.gather(1, gold).squeeze(-1) - edge
    return in_pool & (~in_beam | (lead < settings.reset_margin))


def _same(state: BeamState, candidates: Candidates, held: Tensor) -> Tensor:
    """Return whether two slots hold the same hypothesis: (B, K, K)."""
    origins = candidates.origins.gather(1, held)
    tokens = candidates.tokens.gather(1, held)
    rows = origins.unsqueeze(-1).expand_as(state.same)
    columns = origins.unsqueeze(1).expand_as(state.same)
    same_origin = state.same.gather(1, rows).gather(2, columns)
    return same_origin & tokens.unsqueeze(-1).eq(tokens.unsqueeze(1))


def _assign(scores: Tensor, settings: BeamSettings) -> Tensor | None:
    """Return the (B, M, K) weights of the pool, which is sorted best first."""
    if settings.mixing == "hard":
        return None
    weights = sorted_soft_topk(scores, settings.beam_size, epsilon=settings.epsilon)
    if settings.mixing == "straight-through":  # hard value, soft gradient
        hard = torch.eye(*weights.shape[1:], dtype=weights.dtype, device=weights.device)
        weights = hard + (weights - weights.detach())
    if settings.selection_clip and weights.requires_grad:
        weights.register_hook(lambda grad: _clip(grad, settings))
    return weights


def _clip(gradient: Tensor, settings: BeamSettings) -> Tensor:
    """Scale each sentence's gradient down to the largest Euclidean norm allowed."""
    norms = gradient.flatten(1).norm(dim=-1)[:, None, None]
    # All gradients of a batch with loss scale 0 are 0.
    tiny = torch.finfo(norms.dtype).tiny
    largest = norms.new_full((), settings.selection_clip) * settings.loss_scale.value
    return gradient * (largest / torch.maximum(norms, largest).clamp_min(tiny))
