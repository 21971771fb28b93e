"""The two engines that give a search gradients.

*rollout* keeps the graph of the search. *two-pass* searches without gradients, collects
the prefixes that the losses need in a tree, and scores the tree. It needs hard mixing:
a mixture of hypotheses makes each step depend on the scores of the previous ones.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fairseq_plugins.beam.adapters import find_adapter
from fairseq_plugins.beam.adapters.hooks import evaluation_mode
from fairseq_plugins.beam.projection import log_probs_of
from fairseq_plugins.beam.search import SearchRequest, search
from fairseq_plugins.beam.trace import BeamTrace, PrefixTree, build_prefix_tree

__all__ = ["ENGINES", "rescore", "search_with_gradients"]

ENGINES = ("auto", "rollout", "two-pass")


def search_with_gradients(request: SearchRequest, engine: str = "auto") -> BeamTrace:
    """Search, and return the trace with gradients in the required scores.

    Args:
        engine: one of `ENGINES`. ``auto`` takes two-pass with hard mixing if the
            decoder scores a tree in one pass, and otherwise rollout.
    """
    if engine == "auto":
        is_parallel = find_adapter(request.model).scores_trees_in_parallel
        is_hard = request.settings.mixing == "hard"
        engine = "two-pass" if is_parallel and is_hard else "rollout"
    with evaluation_mode(request.model.decoder):
        if engine == "rollout":
            return search(request)
        with torch.no_grad():
            trace = search(request)
        return rescore(request, trace)


def rescore(request: SearchRequest, trace: BeamTrace) -> BeamTrace:
    """Return the trace of a hard search with gradients in the required scores.

    Args:
        trace: of the request, made without gradients.
    """
    pool_mask, ends_mask, first_mask = _required_masks(request, trace)
    count = ends_mask.long()
    count = count.scatter_add(2, trace.origins, pool_mask.long())
    count[..., :1] += first_mask.long()
    tree = build_prefix_tree(trace, count > 0, request.start_tokens)
    is_node = tree.node >= 0
    # The candidate that a node of the next step holds is needed on the way to it.
    leads_on = torch.zeros_like(trace.origins)
    leads_on[:, :-1].scatter_add_(2, trace.held[:, :-1], is_node[:, 1:].long())
    path_mask = (pool_mask | leads_on.bool()) & is_node.gather(2, trace.origins)
    masks = torch.cat([path_mask, ends_mask, first_mask], dim=-1)
    scores = _score_last_tokens(request, trace, tree, masks)
    sizes = [trace.pool.size(-1), trace.beam_size, 1]
    pool_steps, ends_steps, gold_first = scores.split(sizes, dim=-1)
    before = _accumulate(trace, is_node, pool_steps)
    pool = pool_steps + before.gather(2, trace.origins)
    return dataclasses.replace(
        trace,
        pool=torch.where(pool_mask, pool, trace.pool),
        ends=torch.where(ends_mask, ends_steps + before, trace.ends),
        gold_first=gold_first.squeeze(-1),
    )


def _required_masks(
    request: SearchRequest, trace: BeamTrace
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the required entries of pool, ends and gold_first, (B, L, M | K | 1)."""
    required = request.required
    has_gold = (trace.gold >= 0).unsqueeze(-1) & required.gold
    gold_ends = has_gold & (trace.gold >= trace.pool.size(-1)).unsqueeze(-1)
    ends = (trace.finishes & required.finished) | gold_ends
    first = trace.gold_first.ne(0).unsqueeze(-1) & required.gold_first
    return has_gold & trace.pool.isfinite(), ends & trace.ends.isfinite(), first


def _score_last_tokens(
    request: SearchRequest, trace: BeamTrace, tree: PrefixTree, masks: Tensor
) -> Tensor:
    """Return log-probabilities of last tokens, 0 outside the mask: (B, L, M + K + 1).

    The values are those of the search. Only their gradients are computed.
    """
    adapter = request.create_adapter()
    features = adapter.score_tree(tree)
    length = trace.pool.size(1)
    missing = max(0, length - request.target.size(1))
    gold = torch.nn.functional.pad(request.target, (0, missing))[:, :length]
    first = tree.tokens.size(1) * torch.arange(len(gold), device=gold.device)
    node = tree.node + first[:, None, None]  # rows of all sentences' features
    ends = torch.full_like(node, request.settings.eos_id)
    rows = torch.cat([node.gather(2, trace.origins), node, node[..., :1]], dim=-1)
    tokens = torch.cat([trace.tokens, ends, gold.unsqueeze(-1)], dim=-1)
    known = torch.cat(
        [trace.pool_steps, trace.ends_steps, trace.gold_first.unsqueeze(-1)], dim=-1
    )
    log_probs = log_probs_of(
        adapter.output_layer,
        features.flatten(0, 1),
        rows[masks],
        tokens[masks],
        known[masks],
    )
    return torch.zeros_like(known).masked_scatter(masks, log_probs)


def _accumulate(trace: BeamTrace, is_node: Tensor, pool_steps: Tensor) -> Tensor:
    """Return the log-probabilities of the nodes' prefixes, 0 elsewhere: (B, L, K)."""
    held = pool_steps.gather(2, trace.held)
    origins = trace.origins.gather(2, trace.held)
    levels = [torch.zeros_like(held[:, 0])]
    for step in range(1, pool_steps.size(1)):
        before = levels[-1].gather(1, origins[:, step - 1])
        levels.append((before + held[:, step - 1]) * is_node[:, step])
    return torch.stack(levels, dim=1)
