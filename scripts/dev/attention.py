"""Where a trained Transformer attends: weights, their entropy, what is left over."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

import torch
from torch import Tensor

from fairseq_plugins.utils.errors import UserError

__all__ = ["attention_by_head", "cross_attention", "entropy", "share_outside"]


def cross_attention(model: Any, sample: dict[str, Any]) -> Tensor:
    """Return the weights over the source, gold given: (layers, H, B, T, S).

    Args:
        model: a Transformer of fairseq, with top-k attention or without.
        sample: a batch of its task.

    Raises:
        UserError: the model is no Transformer.
    """
    layers = getattr(model.decoder, "layers", None)
    if not layers or not hasattr(layers[0], "encoder_attn"):
        raise UserError(
            "the model must be a Transformer, but its decoder is a "
            f"{type(model.decoder).__name__}."
        )
    model.eval()
    attentions = [layer.encoder_attn for layer in layers]
    with torch.no_grad(), _weights_of(attentions) as found:
        model(**sample["net_input"])
    return torch.stack(found).float()


@contextlib.contextmanager
def _weights_of(attentions: list[Any]) -> Iterator[list[Tensor]]:
    """Make attentions return the weights of each head, and collect them."""
    found: list[Tensor] = []

    def ask(_: Any, args: Any, options: dict[str, Any]) -> Any:
        return args, {**options, "need_weights": True, "need_head_weights": True}

    hooks = []
    for part in attentions:
        hooks.append(part.register_forward_pre_hook(ask, with_kwargs=True))
        hooks.append(
            part.register_forward_hook(lambda _, __, out: found.append(out[1]))
        )
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def entropy(weights: Tensor) -> Tensor:
    """Return the entropy of each row in nats: (..., S) -> (...)."""
    return -torch.xlogy(weights, weights).sum(-1)


def share_outside(weights: Tensor, k: int) -> Tensor:
    """Return the weight outside of each row's k largest: (..., S) -> (...)."""
    if k >= weights.size(-1):
        return torch.zeros_like(weights[..., 0])
    return (1 - weights.topk(k).values.sum(-1)).clamp_min(0.0)


def attention_by_head(model: Any, samples: list[dict[str, Any]], k: int) -> list[Any]:
    """Return a row for each layer and head, averaged over target tokens.

    Each has ``layer`` and ``head``, from 0, ``entropy`` in nats and ``outside``, the
    share of weight outside the k largest.
    """
    totals: Any = 0.0
    num_tokens = 0
    for sample in samples:
        weights = cross_attention(model, sample)
        is_word = sample["target"].ne(model.decoder.padding_idx)
        values = torch.stack([entropy(weights), share_outside(weights, k)])
        totals = totals + (values * is_word).sum((-2, -1))  # (2, layers, H)
        num_tokens += int(is_word.sum())
    means = (totals / num_tokens).tolist()
    return [
        {
            "layer": layer,
            "head": head,
            "entropy": means[0][layer][head],
            "outside": means[1][layer][head],
        }
        for layer in range(len(means[0]))
        for head in range(len(means[0][0]))
    ]
