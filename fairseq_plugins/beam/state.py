"""What a differentiable beam search carries from one step to the next.

Shapes use B for sentences, K for the beam size, V for the vocabulary, M for the
candidate pool and D for the embedding.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MIXINGS", "BeamSettings", "BeamState"]

MIXINGS = ("soft", "straight-through", "hard")


@dataclass(frozen=True)
class BeamSettings:
    """How the beam selects and mixes.

    Attributes:
        beam_size: number of slots K.
        pool_size: number M of best candidates among which the selection is soft.
        epsilon: entropy weight of the sorted SOFT top-k that mixes hypotheses, nats.
        survival_epsilon: the same for the membership in the survival loss.
        mixing: ``soft`` (Xie et al., 2020, section 5), ``straight-through`` (forward
            hard, gradient soft) or ``hard`` (no gradient through the selection).
        selection_clip: largest norm of the gradient that reaches one selection of one
            sentence; 0 does not clip. A selection multiplies it by up to 2 / epsilon
            on its way to the step before, so that it explodes over many steps.
        reset_to_gold: when the gold prefix would be pruned, go on from it alone
            (LaSO; Daume and Marcu, 2005), instead of without it.
        pad_id: the padding token, never a candidate.
        eos_id: the end of sentence, a candidate only where gold ends.
    """

    beam_size: int
    pool_size: int
    epsilon: float
    survival_epsilon: float
    mixing: str
    selection_clip: float
    reset_to_gold: bool
    pad_id: int
    eos_id: int


@dataclass(frozen=True)
class BeamState:
    """The K slots of each sentence.

    Attributes:
        log_probs: cumulative log-probabilities, shape (B, K); ``-inf`` marks a slot
            that holds nothing yet.
        holds_gold: whether the slot's hypothesis is the gold prefix, shape (B, K);
            true for at most one slot of a sentence.
        same: whether two slots hold the same token sequence, shape (B, K, K).
    """

    log_probs: Tensor
    holds_gold: Tensor
    same: Tensor

    @classmethod
    def start(cls, batch_size: int, beam_size: int, device: torch.device) -> BeamState:
        """Return the state before the first step: one empty prefix, in slot 0.

        With all K slots alike the first selection would take K copies of one token.
        """
        log_probs = torch.full((batch_size, beam_size), float("-inf"), device=device)
        log_probs[:, 0] = 0.0
        holds_gold = log_probs.eq(0.0)
        same = torch.eye(beam_size, dtype=torch.bool, device=device)
        return cls(log_probs, holds_gold, same.expand(batch_size, -1, -1))
