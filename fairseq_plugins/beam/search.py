"""A beam search, step by step: with gradients the rollout engine, without a search."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fairseq_plugins.beam.decoder import IncrementalDecoder
from fairseq_plugins.beam.projection import OutputLayer, log_probs_of
from fairseq_plugins.beam.step import (
    BeamSettings,
    BeamState,
    Candidates,
    Selection,
    expand,
    select,
)
from fairseq_plugins.beam.trace import BeamTrace, TraceRecorder
from fairseq_plugins.operators.arguments import full_precision

__all__ = ["rollout"]

SHRINK = 0.75  # sentences that are over are dropped once no more than this are left


class _StepScores(NamedTuple):
    """Log-probabilities of the last tokens: (B, M), (B, K) and (B,)."""

    pool: Tensor
    ends: Tensor
    gold_first: Tensor


def rollout(
    decoder: IncrementalDecoder,
    output_layer: OutputLayer,
    start_tokens: Tensor,
    target: Tensor,
    *,
    settings: BeamSettings,
    finish: bool,
    follow_gold: str,
    max_lens: Tensor | None = None,
) -> BeamTrace:
    """Search as far as is asked for; gradients flow where autograd is on.

    Args:
        decoder: a fresh decoder for B sentences and K slots.
        output_layer: of the same decoder.
        start_tokens: the token that begins every hypothesis, shape (B,).
        target: gold tokens with their end of sentence, padded right, shape (B, T).
        settings: how the beam selects and mixes.
        finish: go on until K hypotheses have ended, as ``fairseq-generate`` does.
        follow_gold: go on ``"until-lost"``, or to gold's ``"end"``, or ``"no"``.
        max_lens: each sentence's own limit, where it is lower than
            ``settings.max_len``, shape (B,).
    """
    if max_lens is None:
        max_lens = torch.full_like(start_tokens, settings.max_len)
    # Above the limit of all a sentence would not be made to end at its last step.
    max_lens = max_lens.clamp_max(settings.max_len)
    search = _Search(
        decoder, output_layer, target, max_lens, settings, finish, follow_gold
    )
    inputs = decoder.embed(start_tokens).unsqueeze(1)
    inputs = inputs.expand(-1, settings.beam_size, -1)
    for position in range(settings.max_len + 1):
        selection, candidates = search.step(inputs, position)
        if search.is_over(position):
            break
        inputs = search.advance(selection, candidates)
    return search.trace


class _Search:
    """The loop's variables: the sentences that still go on, and what was recorded."""

    def __init__(
        self,
        decoder: IncrementalDecoder,
        output_layer: OutputLayer,
        target: Tensor,
        max_lens: Tensor,
        settings: BeamSettings,
        finish: bool,
        follow_gold: str,
    ) -> None:
        self._decoder, self._output_layer = decoder, output_layer
        self._settings = settings
        self._finish, self._follow_gold = finish, follow_gold
        self._batch_size = len(target)
        self._target = torch.nn.functional.pad(target, (0, 1), value=settings.pad_id)
        self._state = BeamState.start(max_lens, settings.beam_size)
        self._sentences: Tensor | None = None  # None: all of them
        self._goes_on = torch.ones_like(target[:, 0], dtype=torch.bool)
        self._left = self._batch_size
        self._recorder = TraceRecorder(self._batch_size)

    def step(self, inputs: Tensor, position: int) -> tuple[Selection, Candidates]:
        """Score all candidates, select among them and record what happened."""
        settings, state = self._settings, self._state
        last = self._target.size(1) - 1
        gold = self._target[:, min(position, last)]
        features = self._decoder.step(inputs, position)
        with torch.no_grad():
            log_probs = self._decoder.log_probs(features)  # (B, K, V)
            log_probs = log_probs.nan_to_num(nan=float("-inf"))
        candidates = expand(state, log_probs, gold, position, settings)
        scores = self._scores(features, log_probs, candidates, gold)
        pool = scores.pool + state.log_probs.gather(1, candidates.origins)
        is_longest = position >= state.max_lens
        pool = pool.masked_fill(is_longest.unsqueeze(-1), float("-inf"))
        selection = select(state, candidates, pool, settings)
        self._record(pool, scores, candidates, selection)
        self._goes_on = self._still_going_on(selection.state, position)
        return selection, candidates

    def is_over(self, position: int) -> bool:
        """Whether no sentence goes on; a GPU is asked only if that is not known."""
        if position >= self._settings.max_len:
            return True
        self._left = int(self._goes_on.sum())
        return self._left == 0

    def advance(self, selection: Selection, candidates: Candidates) -> Tensor:
        """Move decoder and state to the slots selected; return their inputs."""
        self._state = selection.state
        if selection.weights is None:
            origins = candidates.origins.gather(1, selection.held)
            self._decoder.reorder(origins)
            inputs = self._decoder.embed(candidates.tokens.gather(1, selection.held))
        else:
            weights = selection.weights
            slots = torch.arange(self._settings.beam_size, device=weights.device)
            is_from = candidates.origins.unsqueeze(-1).eq(slots).to(weights.dtype)
            embedded = self._decoder.embed(candidates.tokens)  # (B, M, D)
            # What hard mixing only copies must not be rounded by autocast, either.
            with full_precision(weights):
                self._decoder.mix(torch.einsum("bmk,bmo->bko", weights, is_from))
                inputs = torch.einsum(
                    "bmk,bmd->bkd", weights.to(embedded.dtype), embedded
                )
        return self._shrink(inputs)

    def _scores(
        self, features: Tensor, log_probs: Tensor, candidates: Candidates, gold: Tensor
    ) -> _StepScores:
        batch_size, beam_size, vocabulary = log_probs.shape
        slots = torch.arange(beam_size, device=gold.device).expand(batch_size, -1)
        ends = torch.full_like(slots, self._settings.eos_id)
        index = torch.cat(
            [
                candidates.origins * vocabulary + candidates.tokens,
                slots * vocabulary + ends,
                gold.unsqueeze(-1),
            ],
            dim=1,
        )
        values = log_probs.flatten(1).gather(1, index)
        if torch.is_grad_enabled():
            values = self._with_gradient(features, index, values, vocabulary)
        pool, ends_scores, gold_first = values.split(
            [candidates.tokens.size(1), beam_size, 1], dim=1
        )
        has_ended = gold.eq(self._settings.pad_id)
        gold_first = gold_first.squeeze(1).masked_fill(has_ended, 0.0)
        return _StepScores(pool, ends_scores, gold_first)

    def _with_gradient(
        self, features: Tensor, index: Tensor, values: Tensor, vocabulary: int
    ) -> Tensor:
        slots = index.div(vocabulary, rounding_mode="floor")
        first = features.size(1) * torch.arange(len(index), device=index.device)
        rows = (slots + first.unsqueeze(-1)).flatten()
        result = log_probs_of(
            self._output_layer,
            features.flatten(0, 1),
            rows,
            (index % vocabulary).flatten(),
            values.flatten(),
        )
        return result.view(index.shape)

    def _still_going_on(self, state: BeamState, position: int) -> Tensor:
        goes_on = torch.zeros_like(self._goes_on)
        if self._finish:
            goes_on |= state.num_finished < self._settings.beam_size
        if self._follow_gold == "until-lost":
            goes_on |= state.holds_gold.any(-1)
        elif self._follow_gold == "end":
            following = self._target[:, min(position + 1, self._target.size(1) - 1)]
            goes_on |= following.ne(self._settings.pad_id)
        return goes_on & self._goes_on & (position < state.max_lens)

    def _record(
        self,
        pool: Tensor,
        scores: _StepScores,
        candidates: Candidates,
        selection: Selection,
    ) -> None:
        state, goes_on = self._state, self._goes_on.unsqueeze(-1)
        ends = (scores.ends + state.log_probs).masked_fill(~goes_on, float("-inf"))
        overlap = selection.state.same.triu(1).flatten(1).any(-1)
        self._recorder.add(
            self._sentences,
            pool=pool.masked_fill(~goes_on, float("-inf")),
            ends=ends,
            gold_first=scores.gold_first.masked_fill(~self._goes_on, 0.0),
            pool_steps=scores.pool.detach(),
            ends_steps=scores.ends.detach(),
            origins=candidates.origins,
            tokens=candidates.tokens,
            held=selection.held,
            gold=candidates.gold.masked_fill(~self._goes_on, -1),
            gold_rank=candidates.gold_rank.masked_fill(~self._goes_on, pool.size(1)),
            finishes=candidates.finishes & goes_on,
            is_alive=state.log_probs.detach().isfinite() & goes_on,
            distinct=~overlap & self._goes_on,
            resets=selection.resets & self._goes_on,
        )

    def _shrink(self, inputs: Tensor) -> Tensor:
        """Drop sentences that are over, if they are many."""
        if self._left > SHRINK * len(self._goes_on):
            return inputs
        kept = self._goes_on.nonzero().squeeze(-1)
        self._decoder.keep(kept)
        self._state = self._state.keep(kept)
        self._target = self._target.index_select(0, kept)
        self._goes_on = self._goes_on.index_select(0, kept)
        before = self._sentences
        self._sentences = kept if before is None else before.index_select(0, kept)
        return inputs.index_select(0, kept)

    @property
    def trace(self) -> BeamTrace:
        return self._recorder.trace()
