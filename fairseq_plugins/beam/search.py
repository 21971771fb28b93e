"""Beam search, step by step, and with gradients if autograd is on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq_plugins.beam.adapters import DecoderAdapter, find_adapter
from fairseq_plugins.beam.adapters.hooks import SharedDropout
from fairseq_plugins.beam.projection import log_probs_of
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

__all__ = ["RequiredScores", "SearchRequest", "search"]

SHRINK = 0.75  # sentences that have ended are dropped at this fraction of active ones


@dataclass(frozen=True)
class RequiredScores:
    """The scores that a loss uses: only these get gradients.

    Attributes:
        gold: of the pool while it contains gold, and of the end of gold.
        finished: of the finished hypotheses. The search continues as in
            ``fairseq-generate`` until K have finished.
        gold_first: of the gold token after the first slot, to the end of gold.
    """

    gold: bool = False
    finished: bool = False
    gold_first: bool = False

    def __or__(self, other: RequiredScores) -> RequiredScores:
        return RequiredScores(
            gold=self.gold or other.gold,
            finished=self.finished or other.finished,
            gold_first=self.gold_first or other.gold_first,
        )


@dataclass(frozen=True)
class SearchRequest:
    """A batch to search, and how.

    Attributes:
        model: an encoder-decoder model of a known family.
        encoder_out: the output of the model's encoder for B sentences.
        start_tokens: the token that begins every hypothesis, shape (B,).
        target: gold tokens with their end of sentence, padded right, shape (B, T).
            Its first ``prefix_size`` tokens begin every hypothesis.
        settings: how the beam selects, mixes and ends.
        required: the scores that the losses use.
        max_lens: a limit per sentence, if lower than ``settings.max_len``, shape (B,).
        prefix_size: number of tokens that generation forces, too.
        dropout: masks for the decoder, None for no dropout.
    """

    model: Any
    encoder_out: Any
    start_tokens: Tensor
    target: Tensor
    settings: BeamSettings
    required: RequiredScores
    max_lens: Tensor | None = None
    prefix_size: int = 0
    dropout: SharedDropout | None = None

    def create_adapter(self) -> DecoderAdapter:
        """Return the decoder before its first step."""
        return find_adapter(self.model)(
            self.model,
            self.encoder_out,
            batch_size=len(self.target),
            beam_size=self.settings.beam_size,
            dropout=self.dropout,
        )


def search(request: SearchRequest) -> BeamTrace:
    """Search until all required scores are known.

    The decoder should be in evaluation mode: dropout comes from ``request.dropout``.
    """
    return _Search(request).run()


class _Search:
    """The variables of the loop. Rows are the sentences that are still searched."""

    def __init__(self, request: SearchRequest) -> None:
        settings = self._settings = request.settings
        self._required = request.required
        self._prefix_size = request.prefix_size
        # Another candidate would change mixtures, also of losses without gold.
        self._follows_gold = request.required.gold or settings.reset_margin is not None
        self._decoder = request.create_adapter()
        self._output_layer = self._decoder.output_layer
        self._target = torch.nn.functional.pad(
            request.target, (0, 1), value=settings.pad_id
        )
        max_lens = request.max_lens
        if max_lens is None:
            max_lens = torch.full_like(request.start_tokens, settings.max_len)
        # With a higher limit a sentence would not have to end at the last step of all.
        max_lens = max_lens.clamp_max(settings.max_len)
        self._state = BeamState.start(max_lens, settings.beam_size)
        self._sentences: Tensor | None = None  # None: all of them
        self._is_active = torch.ones_like(max_lens, dtype=torch.bool)
        self._recorder = TraceRecorder(len(max_lens))
        inputs = self._decoder.embed(request.start_tokens).unsqueeze(1)
        self._inputs = inputs.expand(-1, settings.beam_size, -1)

    def run(self) -> BeamTrace:
        max_len = self._settings.max_len
        for position in range(max_len + 1):
            candidates, selection = self._step(position)
            if position == max_len:
                break
            num_active = int(self._is_active.sum())  # waits for a GPU
            if num_active == 0:
                break
            self._advance(candidates, selection)
            if num_active <= SHRINK * len(self._is_active):
                self._keep(self._is_active.nonzero().squeeze(-1))
        return self._recorder.trace()

    def _step(self, position: int) -> tuple[Candidates, Selection]:
        """Score all candidates, select among them and record the step."""
        settings, state = self._settings, self._state
        gold = self._target[:, min(position, self._target.size(1) - 1)]
        features = self._decoder.step(self._inputs, position)
        with torch.no_grad():
            log_probs = self._decoder.log_probs(features)  # (B, K, V)
            log_probs = log_probs.nan_to_num(nan=float("-inf"))
        forced = gold if position < self._prefix_size else None
        candidates = expand(
            state, log_probs, gold, position, settings,
            follows_gold=self._follows_gold, forced=forced,
        )  # fmt: skip
        pool_steps, ends_steps, gold_first = self._score(
            features, log_probs, candidates, gold
        )
        pool = pool_steps + state.log_probs.gather(1, candidates.origins)
        is_longest = position >= state.max_lens
        pool = pool.masked_fill(is_longest.unsqueeze(-1), float("-inf"))
        if forced is not None:  # there is nothing to mix
            is_other = candidates.tokens.ne(forced.unsqueeze(-1))
            pool = pool.masked_fill(is_other, float("-inf"))
            settings = dataclasses.replace(settings, mixing="hard")
        selection = select(state, candidates, pool, settings)
        active = self._is_active.unsqueeze(-1)
        ends = (ends_steps + state.log_probs).masked_fill(~active, float("-inf"))
        overlap = selection.state.same.triu(1).flatten(1).any(-1)
        self._recorder.add(
            self._sentences,
            pool=pool.masked_fill(~active, float("-inf")),
            ends=ends,
            gold_first=gold_first.masked_fill(~self._is_active, 0.0),
            pool_steps=pool_steps.detach(),
            ends_steps=ends_steps.detach(),
            origins=candidates.origins,
            tokens=candidates.tokens,
            held=selection.held,
            gold=candidates.gold.masked_fill(~self._is_active, -1),
            gold_rank=candidates.gold_rank.masked_fill(~self._is_active, pool.size(1)),
            finishes=candidates.finishes & active,
            is_alive=state.log_probs.detach().isfinite() & active,
            distinct=~overlap & self._is_active,
            resets=selection.resets & self._is_active,
        )
        must_continue = self._must_continue(selection.state, position)
        self._is_active = self._is_active & must_continue
        return candidates, selection

    def _score(
        self, features: Tensor, log_probs: Tensor, candidates: Candidates, gold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities of the last tokens: (B, M), (B, K) and (B,)."""
        batch_size, beam_size, _ = log_probs.shape
        slots = torch.arange(beam_size, device=gold.device).expand(batch_size, -1)
        slots = torch.cat([candidates.origins, slots, slots[:, :1]], dim=1)
        ends = torch.full_like(slots[:, :beam_size], self._settings.eos_id)
        tokens = torch.cat([candidates.tokens, ends, gold.unsqueeze(-1)], dim=1)
        values = log_probs.flatten(1).gather(1, slots * log_probs.size(-1) + tokens)
        if torch.is_grad_enabled():
            first = beam_size * torch.arange(batch_size, device=gold.device)
            values = log_probs_of(
                self._output_layer,
                features.flatten(0, 1),
                (slots + first.unsqueeze(-1)).flatten(),
                tokens.flatten(),
                values.flatten(),
            ).view(values.shape)
        pool, ends, gold_first = values.split(
            [candidates.tokens.size(1), beam_size, 1], dim=1
        )
        has_ended = gold.eq(self._settings.pad_id)
        return pool, ends, gold_first.squeeze(1).masked_fill(has_ended, 0.0)

    def _must_continue(self, state: BeamState, position: int) -> Tensor:
        """Return which sentences have scores that are required but not known."""
        result = torch.zeros_like(self._is_active)
        if self._required.finished:
            result |= state.num_finished < self._settings.beam_size
        if self._required.gold:
            result |= state.holds_gold.any(-1)
        if self._required.gold_first:
            following = self._target[:, min(position + 1, self._target.size(1) - 1)]
            result |= following.ne(self._settings.pad_id)
        return result & (position < state.max_lens)

    def _advance(self, candidates: Candidates, selection: Selection) -> None:
        """Move the decoder to the selected slots and embed their last tokens."""
        decoder, weights = self._decoder, selection.weights
        self._state = selection.state
        if weights is None:
            decoder.reorder(candidates.origins.gather(1, selection.held))
            self._inputs = decoder.embed(candidates.tokens.gather(1, selection.held))
            return
        slots = torch.arange(self._settings.beam_size, device=weights.device)
        is_from = candidates.origins.unsqueeze(-1).eq(slots).to(weights.dtype)
        embedded = decoder.embed(candidates.tokens)  # (B, M, D)
        # Hard mixing copies exactly, so autocast must not round here, either.
        with full_precision(weights):
            decoder.mix(torch.einsum("bmk,bmo->bko", weights, is_from))
            self._inputs = torch.einsum(
                "bmk,bmd->bkd", weights.to(embedded.dtype), embedded
            )

    def _keep(self, rows: Tensor) -> None:
        """Drop the other sentences."""
        self._decoder.keep(rows)
        self._inputs = self._inputs.index_select(0, rows)
        self._state = self._state.keep(rows)
        self._target = self._target.index_select(0, rows)
        self._is_active = self._is_active.index_select(0, rows)
        before = self._sentences
        self._sentences = rows if before is None else before.index_select(0, rows)
