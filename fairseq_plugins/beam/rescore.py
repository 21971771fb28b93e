"""The two-pass engine: search without gradients, then score what was found.

The prefixes that matter to the losses form a tree, which the decoder scores in one
pass. The search itself keeps nothing for the backward pass.

The two ways to a trace with gradients.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairseq_plugins.beam.decoder import IncrementalDecoder
from fairseq_plugins.beam.projection import OutputLayer, log_probs_of
from fairseq_plugins.beam.search import rollout
from fairseq_plugins.beam.shared_dropout import SharedDropout
from fairseq_plugins.beam.step import BeamSettings
from fairseq_plugins.beam.trace import BeamTrace
from fairseq_plugins.beam.tree import PrefixTree, prefix_tree
from fairseq_plugins.beam.tree_decoder import tree_features

__all__ = ["ENGINES", "Wanted", "scored", "search", "searched_with_gradients"]


class Wanted(NamedTuple):
    """The scores that the losses use."""

    gold: bool  # of the pool while gold is in it, and of its end
    finished: bool  # of the finished hypotheses
    first_slot: bool  # of gold after the first slot


def scored(
    trace: BeamTrace,
    model: Any,
    encoder_out: Any,
    output_layer: OutputLayer,
    start_tokens: Tensor,
    target: Tensor,
    *,
    eos_id: int,
    what: Wanted,
    dropout: SharedDropout | None,
) -> BeamTrace:
    """Return the trace of a hard search with gradients in its scores.

    Args:
        trace: of a search with hard mixing, made without gradients.
        encoder_out: with gradients, for B sentences.
        start_tokens: the token that begins every hypothesis, shape (B,).
        target: gold tokens, padded right, shape (B, T).
        what: the scores that the losses use; others stay without gradient.
        dropout: of the search; None if it was without.
    """
    masks = _masks(trace, what)
    count = masks.ends.long()
    count = count.scatter_add(2, trace.origins, masks.pool.long())
    count[..., :1] += masks.first.long()
    tree = prefix_tree(trace, count > 0, start_tokens)
    features = tree_features(model, encoder_out, tree, dropout=dropout)
    last = _last_tokens(trace, tree, masks, _gold(trace, target), eos_id)
    known = _Scores(trace.pool_steps, trace.ends_steps, trace.gold_first.unsqueeze(-1))
    steps = _step_scores(last, known, features, output_layer)
    before = _cumulative(trace, tree, steps.pool)
    pool = steps.pool + before.gather(2, trace.origins)
    return dataclasses.replace(
        trace,
        pool=torch.where(masks.pool, pool, trace.pool),
        ends=torch.where(masks.ends, steps.ends + before, trace.ends),
        gold_first=steps.first.squeeze(-1),
    )


class _Scores(NamedTuple):
    """One tensor for each kind of score: (B, L, M), (B, L, K) and (B, L, 1)."""

    pool: Tensor
    ends: Tensor
    first: Tensor


class _LastTokens(NamedTuple):
    """Which entry of the log-probabilities a score is: row, token, and if wanted."""

    rows: _Scores
    tokens: _Scores
    masks: _Scores


def _masks(trace: BeamTrace, what: Wanted) -> _Scores:
    has_gold = (trace.gold >= 0).unsqueeze(-1) & what.gold
    ends_here = has_gold & (trace.gold >= trace.pool.size(-1)).unsqueeze(-1)
    ends = (trace.finishes & what.finished) | ends_here
    first = trace.gold_first.ne(0).unsqueeze(-1) & what.first_slot
    return _Scores(
        has_gold & trace.pool.isfinite(), ends & trace.ends.isfinite(), first
    )


def _gold(trace: BeamTrace, target: Tensor) -> Tensor:
    """Return the gold token of each step of the search, (B, L, 1)."""
    length = trace.pool.size(1)
    missing = max(0, length - target.size(1))
    return torch.nn.functional.pad(target, (0, missing))[:, :length].unsqueeze(-1)


def _last_tokens(
    trace: BeamTrace, tree: PrefixTree, masks: _Scores, gold: Tensor, eos_id: int
) -> _LastTokens:
    first = tree.tokens.size(1) * torch.arange(len(gold), device=gold.device)
    node = tree.node + first[:, None, None]  # rows of all sentences' features
    is_node = tree.node >= 0
    # The candidate that a node of the next step holds is needed on the way to it.
    leads_on = torch.zeros_like(trace.origins)
    leads_on[:, :-1].scatter_add_(2, trace.held[:, :-1], is_node[:, 1:].long())
    pool = (masks.pool | leads_on.bool()) & is_node.gather(2, trace.origins)
    return _LastTokens(
        rows=_Scores(node.gather(2, trace.origins), node, node[..., :1]),
        tokens=_Scores(trace.tokens, torch.full_like(node, eos_id), gold),
        masks=masks._replace(pool=pool),
    )


def _step_scores(
    last: _LastTokens,
    known: _Scores,
    features: Tensor,
    output_layer: OutputLayer,
) -> _Scores:
    """Return log-probabilities of last tokens, with gradients; 0 if not wanted.

    The search's own values are right; only their gradient is computed.
    """
    rows, tokens, values = (
        torch.cat([part[mask] for part, mask in zip(parts, last.masks)])
        for parts in (last.rows, last.tokens, known)
    )
    log_probs = log_probs_of(output_layer, features.flatten(0, 1), rows, tokens, values)
    pieces = log_probs.split([int(mask.sum()) for mask in last.masks])
    return _Scores(
        *(
            torch.zeros_like(value).masked_scatter(mask, piece)
            for value, mask, piece in zip(known, last.masks, pieces)
        )
    )


def _cumulative(trace: BeamTrace, tree: PrefixTree, pool: Tensor) -> Tensor:
    """Return the log-probabilities of the nodes' prefixes, 0 elsewhere: (B, L, K)."""
    is_node = tree.node >= 0
    held = pool.gather(2, trace.held)
    origins = trace.origins.gather(2, trace.held)
    levels = [torch.zeros_like(held[:, 0])]
    for step in range(1, pool.size(1)):
        before = levels[-1].gather(1, origins[:, step - 1])
        levels.append((before + held[:, step - 1]) * is_node[:, step])
    return torch.stack(levels, dim=1)


ENGINES = ("auto", "rollout", "two-pass")


def searched_with_gradients(
    engine: str,
    model: Any,
    encoder_out: Any,
    start_tokens: Tensor,
    target: Tensor,
    *,
    settings: BeamSettings,
    what: Wanted,
    max_lens: Tensor | None = None,
    dropout: bool = False,
) -> BeamTrace:
    """Search, and return the trace with gradients in the scores that are wanted.

    Args:
        engine: ``rollout`` keeps the graph of the search itself; ``two-pass`` searches
            without one and then scores what it found, which needs hard mixing.
        encoder_out: what the model's encoder returned for B sentences.
        start_tokens: the token that begins every hypothesis, shape (B,).
        target: gold tokens with their end of sentence, padded right, shape (B, T).
        max_lens: lower limits than ``settings.max_len``, shape (B,).
        dropout: search and score with one mask for all hypotheses of a sentence at a
            step, which both engines draw alike.
    """
    is_rollout = engine == "rollout"
    masks = None
    if dropout:
        masks = SharedDropout(model.decoder, batch_size=len(target))
    with torch.set_grad_enabled(is_rollout and torch.is_grad_enabled()):
        trace = search(
            model, encoder_out, start_tokens, target,
            settings=settings, what=what, max_lens=max_lens, dropout=masks,
        )  # fmt: skip
    if is_rollout:
        return trace
    return scored(
        trace, model, encoder_out, OutputLayer(model.decoder), start_tokens, target,
        eos_id=settings.eos_id, what=what, dropout=masks,
    )  # fmt: skip


def search(
    model: Any,
    encoder_out: Any,
    start_tokens: Tensor,
    target: Tensor,
    *,
    settings: BeamSettings,
    what: Wanted,
    max_lens: Tensor | None = None,
    dropout: SharedDropout | None = None,
) -> BeamTrace:
    """Search as far as the losses need it; arguments as above, dropout by its masks."""
    decoder = IncrementalDecoder(
        model, encoder_out, batch_size=len(target), beam_size=settings.beam_size,
        dropout=dropout,
    )  # fmt: skip
    if what.first_slot:
        follow_gold = "end"
    else:
        follow_gold = "until-lost" if what.gold else "no"
    return rollout(
        decoder, OutputLayer(model.decoder), start_tokens, target,
        settings=settings, finish=what.finished, follow_gold=follow_gold,
        max_lens=max_lens,
    )  # fmt: skip
