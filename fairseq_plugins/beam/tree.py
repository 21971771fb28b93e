"""The prefixes that a search kept, as a tree that a decoder can score in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_plugins.beam.trace import BeamTrace

__all__ = ["PrefixTree", "prefix_tree"]


@dataclass(frozen=True)
class PrefixTree:
    """The nodes of each sentence, parents before children, packed to the left.

    Attributes:
        node: the node of a slot before a step, -1 where none is wanted, (B, L, K).
        tokens: the last token of a node's prefix, shape (B, N).
        parents: its prefix without that token; itself at the root, shape (B, N).
        depths: the number of tokens after the one that begins it, shape (B, N).
        is_node: which places are filled, shape (B, N).
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


def prefix_tree(trace: BeamTrace, wanted: Tensor, start_tokens: Tensor) -> PrefixTree:
    """Return the tree of the slots that are ``wanted``, (B, L, K), and their prefixes.

    Args:
        start_tokens: the token that begins every hypothesis, shape (B,).
    """
    batch_size, length, beam_size = wanted.shape
    wanted = _with_prefixes(trace, wanted)
    flat = wanted.flatten(1)
    order = (flat.cumsum(1) - 1).masked_fill(~flat, -1)
    node = order.view_as(wanted)
    size = int(flat.sum(1).max())
    # The slot of step t + 1 holds candidate `held` of step t, which extends `origin`.
    tokens = trace.tokens.gather(2, trace.held)
    origins = trace.origins.gather(2, trace.held)
    parents = node.gather(2, origins)[:, :-1]
    first = start_tokens[:, None, None].expand(-1, 1, beam_size)
    tokens = torch.cat([first, tokens[:, :-1]], dim=1)
    parents = torch.cat([torch.zeros_like(first), parents], dim=1)
    depths = torch.arange(length, device=wanted.device)[:, None].expand_as(wanted)

    def packed(values: Tensor) -> Tensor:
        # Places that are not wanted are written to one more column, which is cut off.
        place = order.masked_fill(~flat, size)
        result = values.new_zeros(batch_size, size + 1)
        return result.scatter_(1, place, values.flatten(1))[:, :size]

    is_node = torch.arange(size, device=flat.device) < flat.sum(1, keepdim=True)
    return PrefixTree(node, packed(tokens), packed(parents), packed(depths), is_node)


def _with_prefixes(trace: BeamTrace, wanted: Tensor) -> Tensor:
    """Add the slots that the wanted ones come from; unwanted sentences keep a root."""
    origins = trace.origins.gather(2, trace.held)  # (B, L, K)
    levels = list(wanted.unbind(1))
    for step in range(len(levels) - 1, 0, -1):
        children = levels[step]
        before = torch.zeros_like(children, dtype=torch.int)
        before.scatter_add_(1, origins[:, step - 1], children.int())
        levels[step - 1] = levels[step - 1] | before.bool()
    levels[0] = torch.zeros_like(levels[0])
    levels[0][:, 0] = True
    return torch.stack(levels, dim=1)
