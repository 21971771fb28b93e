"""What a differentiable beam search carries from one step to the next.

Shapes use B for sentences, K for the beam size, V for the vocabulary, M for the
candidate pool, L for the steps of a search and D for the embedding.
"""
from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

__all__ = ["MIXINGS", "BeamSettings", "BeamState", "LossScale"]

MIXINGS = ("soft", "straight-through", "hard")


class LossScale:
    """What a backward pass multiplies all gradients by: not 1 in half precision.

    Attributes:
        value: of the present backward pass, as soon as the loss has been reached.
    """

    def __init__(self) -> None:
        self.value: Tensor | float = 1.0

    def learn_from(self, loss: Tensor) -> None:
        """Take the gradient that will arrive at a scalar loss as the scale."""
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
        max_len: no hypothesis has more tokens than this before its end of sentence;
            a sentence of the batch may have a lower limit.
        min_len: and none has fewer.
        epsilon: entropy weight of the sorted SOFT top-k that mixes hypotheses, nats.
        mixing: ``soft`` (Xie et al., 2020, section 5), ``straight-through`` (forward
            hard, gradient soft) or ``hard`` (no gradient through the selection).
        selection_clip: largest norm of the gradient that reaches one selection of one
            sentence; 0 does not clip. A selection multiplies it by up to 2 / epsilon
            on its way to the step before, so that it explodes over many steps.
        loss_scale: of the backward pass that ``selection_clip`` is meant without.
        reset_margin: when the gold prefix does not lead the edge of the beam by this
            many nats, go on from it alone (LaSO; Daume and Marcu, 2005), instead of
            without it; 0 resets when it would be pruned, None never.
        pad_id: the padding token, never a candidate.
        eos_id: the end of sentence; a hypothesis that takes it leaves the beam.
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
        log_probs: cumulative log-probabilities, shape (B, K); ``-inf`` marks a slot
            that holds nothing.
        holds_gold: whether the slot's hypothesis is the gold prefix, shape (B, K);
            true for at most one slot of a sentence.
        same: whether two slots hold the same token sequence, shape (B, K, K).
        num_finished: hypotheses that have left the beam, K at most, shape (B,).
        max_lens: what `BeamSettings.max_len` is for each sentence, shape (B,).
    """

    log_probs: Tensor
    holds_gold: Tensor
    same: Tensor
    num_finished: Tensor
    max_lens: Tensor

    @classmethod
    def start(cls, max_lens: Tensor, beam_size: int) -> BeamState:
        """Return the state before the first step: one empty prefix, in slot 0.

        With all K slots alike the first selection would take K copies of one token.
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
        """Return the state of some of the sentences, by their indices."""
        values = (getattr(self, field.name) for field in fields(self))
        return BeamState(*(value.index_select(0, sentences) for value in values))
