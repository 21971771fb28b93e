"""What a step of the differentiable beam adds to the loss, one value a sentence."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fairseq_plugins.beam.state import BeamSettings
from fairseq_plugins.beam.step import Candidates
from fairseq_plugins.operators import soft_topk_logits

__all__ = ["LOSSES", "slot_ce", "survival"]

LOSSES = ("slot-ce", "survival")


def slot_ce(log_probs: Tensor, gold: Tensor, pad_id: int) -> Tensor:
    """Return the cross entropy of the gold token given the first slot, in nats.

    This is the loss of Xie et al. (2020, section 5): the hypothesis of rank 1, which
    may be a mixture, has to predict the gold token of the same position.

    Args:
        log_probs: log-probabilities of the next token, shape (B, K, V).
        gold: the gold token of this step, padding after its end, shape (B,).

    Returns:
        loss, shape (B,); zero where gold has ended.
    """
    loss = -log_probs[:, 0].gather(-1, gold.unsqueeze(-1)).squeeze(-1)
    return loss.masked_fill(gold.eq(pad_id), 0.0)


def survival(candidates: Candidates, settings: BeamSettings) -> Tensor:
    """Return -log of the gold prefix's soft membership in the beam, in nats.

    With memberships A = sigmoid(z) of the SOFT top-k this is softplus(-z_gold): a
    smooth form of the margin between gold and the edge of the beam in beam search
    optimisation (Wiseman and Rush, 2016), with a slope of at most 2 / epsilon.

    Returns:
        loss, shape (B,); zero once gold has been pruned or has ended.
    """
    logits = soft_topk_logits(
        candidates.scores, settings.beam_size, epsilon=settings.survival_epsilon
    )
    return -torch.where(candidates.is_gold, logsigmoid(logits), 0.0).sum(-1)
