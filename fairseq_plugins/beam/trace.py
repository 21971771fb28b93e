"""What a beam search did, step by step, and the hypotheses that it found."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "BeamTrace",
    "Hypotheses",
    "TraceRecorder",
    "finished_hypotheses",
    "prefixes",
]

# What a sentence has at the steps after its search is over; elsewhere zero.
_NOTHING = {"pool": -torch.inf, "ends": -torch.inf, "gold": -1, "gold_rank": 1 << 30}


@dataclass(frozen=True)
class BeamTrace:
    """The L steps of B searches; all but the first three are without gradient.

    At step t the hypotheses have t tokens. A sentence whose search is over has pools
    of ``-inf``, no gold and nothing that finishes.

    Attributes:
        pool: cumulative log-probabilities of the pool, best first, shape (B, L, M).
        ends: the same for the K candidates that end a hypothesis, shape (B, L, K).
        gold_first: log-probability of the gold token after the first slot, zero where
            gold has ended, shape (B, L).
        pool_steps, ends_steps: log-probabilities of the last tokens alone.
        origins, tokens: the slot and the token of a candidate of the pool, (B, L, M).
        held: the candidate that the slot of step t + 1 holds, shape (B, L, K).
        gold, gold_rank, finishes: see :class:`fairseq_plugins.beam.step.Candidates`.
        is_alive: whether the slot held something before the step, shape (B, L, K).
        distinct: whether all slots that hold something differ after it, (B, L).
        resets: whether the beam went on from gold alone after it, shape (B, L).
    """

    pool: Tensor
    ends: Tensor
    gold_first: Tensor
    pool_steps: Tensor
    ends_steps: Tensor
    origins: Tensor
    tokens: Tensor
    held: Tensor
    gold: Tensor
    gold_rank: Tensor
    finishes: Tensor
    is_alive: Tensor
    distinct: Tensor
    resets: Tensor

    @property
    def beam_size(self) -> int:
        return self.ends.size(-1)

    @property
    def gold_in_beam(self) -> Tensor:
        """Whether the gold prefix is among the K best after the step, (B, L)."""
        return self.gold_rank < self.beam_size


class TraceRecorder:
    """Collects the steps of a search that may drop sentences on its way.

    Args:
        batch_size: number of sentences at the first step.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._columns: dict[str, list[Tensor]] = {f.name: [] for f in fields(BeamTrace)}

    def add(self, sentences: Tensor | None, **values: Tensor) -> None:
        """Add a step: a tensor for each field of :class:`BeamTrace`, without its L.

        Args:
            sentences: which of them the rows are, None for all.
        """
        for name, value in values.items():
            if sentences is not None:
                shape = (self._batch_size, *value.shape[1:])
                whole = value.new_full(shape, _NOTHING.get(name, 0))
                value = whole.index_copy_(0, sentences, value)
            self._columns[name].append(value)

    def trace(self) -> BeamTrace:
        """Return what was added, stacked."""
        columns = {name: torch.stack(c, dim=1) for name, c in self._columns.items()}
        return BeamTrace(**columns)


class Hypotheses(NamedTuple):
    """Up to K finished hypotheses of each sentence, in the order in which they ended.

    Attributes:
        tokens: with their end of sentence, padded right, shape (B, K, L).
        lengths: number of tokens, the end of sentence included; 0 where there is none.
        log_probs: sum over the tokens, ``-inf`` where there is none, shape (B, K).
        steps, slots: where they ended, shape (B, K).
    """

    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor
    steps: Tensor
    slots: Tensor

    def scores(self, lenpen: float) -> Tensor:
        """Return ``log_probs / length ** lenpen``, fairseq's order of hypotheses."""
        return self.log_probs / self.lengths.clamp_min(1) ** lenpen


def finished_hypotheses(trace: BeamTrace, *, pad_id: int, eos_id: int) -> Hypotheses:
    """Follow every finished hypothesis back to its beginning."""
    beam_size = trace.beam_size
    is_end = trace.finishes.flatten(1)
    # Ends first, in their order: a stable sort of zeros and ones.
    order = is_end.int().argsort(dim=1, descending=True, stable=True)
    where = order[:, :beam_size]
    is_there = is_end.gather(1, where)
    steps, slots = where // beam_size, where % beam_size
    tokens = prefixes(trace, steps, slots, torch.full_like(slots, eos_id), pad_id)
    log_probs = trace.ends.flatten(1).gather(1, where)
    return Hypotheses(
        tokens.masked_fill(~is_there.unsqueeze(-1), pad_id),
        (steps + 1).masked_fill(~is_there, 0),
        log_probs.masked_fill(~is_there, float("-inf")),
        steps,
        slots,
    )


def prefixes(
    trace: BeamTrace, steps: Tensor, slots: Tensor, last: Tensor, pad_id: int
) -> Tensor:
    """Return the tokens of F candidates, padded right, shape (B, F, L).

    Args:
        steps: at which each of them is a candidate, shape (B, F).
        slots: that it extends, shape (B, F).
        last: the token that it appends, shape (B, F).
    """
    length = trace.ends.size(1)
    tokens = torch.full((*steps.shape, length), pad_id, device=steps.device)
    tokens.scatter_(2, steps.unsqueeze(-1), last.unsqueeze(-1))
    current = slots
    for step in range(length - 1, 0, -1):
        goes_on = step <= steps
        held = trace.held[:, step - 1].gather(1, current)
        before = trace.origins[:, step - 1].gather(1, held)
        token = trace.tokens[:, step - 1].gather(1, held)
        tokens[..., step - 1] = torch.where(goes_on, token, tokens[..., step - 1])
        current = torch.where(goes_on, before, current)
    return tokens
