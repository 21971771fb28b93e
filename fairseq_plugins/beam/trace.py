"""The record of a beam search: its steps, its hypotheses and the tree of prefixes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "BeamTrace",
    "Hypotheses",
    "PrefixTree",
    "TraceRecorder",
    "build_prefix_tree",
    "collect_hypotheses",
    "follow_back",
]

# Values at the steps after a sentence's search has ended; zero for other fields.
_AFTER_END = {"pool": -torch.inf, "ends": -torch.inf, "gold": -1, "gold_rank": 1 << 30}


@dataclass(frozen=True)
class BeamTrace:
    """The L steps of B searches; only the first three tensors may have gradients.

    At step t the hypotheses have t tokens. A sentence whose search has ended has pools
    of ``-inf``, no gold and no finished hypotheses.

    Attributes:
        pool: cumulative log-probabilities of the pool, best first, shape (B, L, M).
        ends: the same for the K candidates that end a hypothesis, shape (B, L, K).
        gold_first: log-probability of the gold token after the first slot, zero where
            gold has ended, shape (B, L).
        pool_steps, ends_steps: log-probabilities of the last tokens alone.
        origins, tokens: the slot and the token of a candidate of the pool, (B, L, M).
        held: the candidate that the slot of step t + 1 holds, shape (B, L, K).
        gold, gold_rank, finishes: see :class:`fairseq_plugins.beam.step.Candidates`.
        is_alive: whether the slot held a hypothesis before the step, shape (B, L, K).
        distinct: whether the hypotheses of all slots differ after the step, (B, L).
        resets: whether the beam was reset to gold alone after the step, shape (B, L).
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
    """Collects the steps of a search that drops sentences whose search has ended.

    Args:
        batch_size: number of sentences at the first step.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._columns: dict[str, list[Tensor]] = {f.name: [] for f in fields(BeamTrace)}

    def add(self, sentences: Tensor | None, **values: Tensor) -> None:
        """Add a step: a tensor for each field of :class:`BeamTrace`, without its L.

        Args:
            sentences: indices of the sentences in the rows, None for all.
        """
        for name, value in values.items():
            if sentences is not None:
                shape = (self._batch_size, *value.shape[1:])
                whole = value.new_full(shape, _AFTER_END.get(name, 0))
                value = whole.index_copy_(0, sentences, value)
            self._columns[name].append(value)

    def trace(self) -> BeamTrace:
        """Return the recorded steps."""
        columns = {name: torch.stack(c, dim=1) for name, c in self._columns.items()}
        return BeamTrace(**columns)


class Hypotheses(NamedTuple):
    """Up to K finished hypotheses of each sentence, in the order in which they ended.

    Attributes:
        tokens: with their end of sentence, padded right, shape (B, K, L).
        lengths: number of tokens with the end of sentence, 0 for an empty place.
        log_probs: sum over the tokens, ``-inf`` for an empty place, shape (B, K).
        steps, slots: where they ended, shape (B, K).
    """

    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor
    steps: Tensor
    slots: Tensor

    def scores(self, lenpen: float) -> Tensor:
        """Return ``log_probs / length ** lenpen``, by which fairseq ranks them."""
        return self.log_probs / self.lengths.clamp_min(1) ** lenpen


def collect_hypotheses(trace: BeamTrace, *, pad_id: int, eos_id: int) -> Hypotheses:
    """Return the finished hypotheses with their tokens."""
    beam_size = trace.beam_size
    is_end = trace.finishes.flatten(1)
    # Ends first, in their order: a stable sort of zeros and ones.
    order = is_end.int().argsort(dim=1, descending=True, stable=True)
    where = order[:, :beam_size]
    is_empty = ~is_end.gather(1, where)
    steps, slots = where // beam_size, where % beam_size
    tokens = follow_back(trace, steps, slots, torch.full_like(slots, eos_id), pad_id)
    log_probs = trace.ends.flatten(1).gather(1, where)
    return Hypotheses(
        tokens.masked_fill(is_empty.unsqueeze(-1), pad_id),
        (steps + 1).masked_fill(is_empty, 0),
        log_probs.masked_fill(is_empty, float("-inf")),
        steps,
        slots,
    )


def follow_back(
    trace: BeamTrace, steps: Tensor, slots: Tensor, last: Tensor, pad_id: int
) -> Tensor:
    """Return the tokens of F candidates, padded right, shape (B, F, L).

    Args:
        steps: the step of each candidate, shape (B, F).
        slots: the slot that it extends, shape (B, F).
        last: the token that it appends, shape (B, F).
    """
    length = trace.ends.size(1)
    tokens = torch.full((*steps.shape, length), pad_id, device=steps.device)
    tokens.scatter_(2, steps.unsqueeze(-1), last.unsqueeze(-1))
    current = slots
    for step in range(length - 1, 0, -1):
        has_begun = step <= steps
        held = trace.held[:, step - 1].gather(1, current)
        before = trace.origins[:, step - 1].gather(1, held)
        token = trace.tokens[:, step - 1].gather(1, held)
        tokens[..., step - 1] = torch.where(has_begun, token, tokens[..., step - 1])
        current = torch.where(has_begun, before, current)
    return tokens


@dataclass(frozen=True)
class PrefixTree:
    """The prefixes of each sentence: parents before children, packed to the left.

    Attributes:
        node: the node of a slot before a step, -1 if it is not in the tree, (B, L, K).
        tokens: the last token of a node's prefix, shape (B, N).
        parents: the node without that token; the root is its own parent, shape (B, N).
        depths: number of tokens after the start token, shape (B, N).
        is_node: whether a place holds a node, shape (B, N).
    """

    node: Tensor
    tokens: Tensor
    parents: Tensor
    depths: Tensor
    is_node: Tensor

    def ancestors(self) -> Tensor:
        """Return whether the second node is the first or a prefix of it: (B, N, N)."""
        size = self.tokens.size(1)
        mask = torch.eye(size, dtype=torch.bool, device=self.tokens.device)
        mask = mask.expand(len(self.tokens), -1, -1)
        # Parents of distance 1, 2, 4, ...: the depth doubles with every product.
        hop = torch.zeros_like(mask, dtype=torch.float32)
        hop.scatter_(2, self.parents.unsqueeze(-1), 1.0)
        reach = (mask | hop.bool()).float()
        depth = int(self.depths.max()) if size else 0
        reached = 1
        while reached < depth:
            reach = (reach @ reach).clamp_max_(1.0)
            reached *= 2
        return reach > 0


def build_prefix_tree(
    trace: BeamTrace, required: Tensor, start_tokens: Tensor
) -> PrefixTree:
    """Return the tree of the required slots, (B, L, K), and of their prefixes.

    Args:
        start_tokens: the token that begins every hypothesis, shape (B,).
    """
    batch_size, length, beam_size = required.shape
    # The slot of step t + 1 holds candidate `held` of step t, which extends `origin`.
    origins = trace.origins.gather(2, trace.held)
    required = _add_prefixes(origins, required)
    flat = required.flatten(1)
    order = (flat.cumsum(1) - 1).masked_fill(~flat, -1)
    node = order.view_as(required)
    size = int(flat.sum(1).max())
    parents = node.gather(2, origins)[:, :-1]
    first = start_tokens[:, None, None].expand(-1, 1, beam_size)
    tokens = torch.cat([first, trace.tokens.gather(2, trace.held)[:, :-1]], dim=1)
    parents = torch.cat([torch.zeros_like(first), parents], dim=1)
    depths = torch.arange(length, device=required.device)[:, None].expand_as(required)

    def pack(values: Tensor) -> Tensor:
        # Other slots are written to one more column, which is cut off.
        place = order.masked_fill(~flat, size)
        result = values.new_zeros(batch_size, size + 1)
        return result.scatter_(1, place, values.flatten(1))[:, :size]

    is_node = torch.arange(size, device=flat.device) < flat.sum(1, keepdim=True)
    return PrefixTree(node, pack(tokens), pack(parents), pack(depths), is_node)


def _add_prefixes(origins: Tensor, required: Tensor) -> Tensor:
    """Add the slots that the required ones come from, and a root for each sentence."""
    levels = list(required.unbind(1))
    for step in range(len(levels) - 1, 0, -1):
        before = torch.zeros_like(levels[step], dtype=torch.int)
        before.scatter_add_(1, origins[:, step - 1], levels[step].int())
        levels[step - 1] = levels[step - 1] | before.bool()
    levels[0] = torch.zeros_like(levels[0])
    levels[0][:, 0] = True
    return torch.stack(levels, dim=1)
