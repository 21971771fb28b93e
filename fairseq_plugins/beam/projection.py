"""Selected log-probabilities of a large vocabulary, without keeping its logits.

The logits of all slots and positions would be by far the largest tensor of training.
Here only a piece of them exists at a time. The backward pass computes a piece again,
and only for the rows that a gradient reaches.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["OutputLayer", "log_probs_of"]

PIECE, PIECE_GPU = 2**20, 2**25  # logits that exist at a time


class OutputLayer:
    """The layer from features to float32 logits.

    Args:
        project: from features to logits.
        parameters: those that ``project`` multiplies by.
    """

    def __init__(
        self, project: Callable[[Tensor], Tensor], parameters: Iterable[nn.Parameter]
    ) -> None:
        self._project = project
        self.parameters = [p for p in parameters if p.requires_grad]

    def __call__(self, features: Tensor) -> Tensor:
        return self._project(features).float()


def log_probs_of(
    output_layer: OutputLayer,
    features: Tensor,
    rows: Tensor,
    tokens: Tensor,
    values: Tensor | None = None,
) -> Tensor:
    """Return ``log_softmax(output_layer(features))[rows, tokens]``, in float32.

    Args:
        features: shape (N, D).
        rows: shape (E,).
        tokens: shape (E,).
        values: the result if it is known, so that only its gradient has to be
            computed, shape (E,).
    """
    order = rows.argsort(dim=0, stable=True)  # pieces of rows are runs of entries
    values = None if values is None else values[order]
    in_order = _LogProbs.apply(
        output_layer, rows[order], tokens[order], values, features,
        *output_layer.parameters,
    )  # fmt: skip
    return in_order[order.argsort()]


class _LogProbs(torch.autograd.Function):
    """Keeps features but no logits. It can be differentiated once."""

    @staticmethod
    def forward(
        ctx: Any,
        output_layer: OutputLayer,
        rows: Tensor,
        tokens: Tensor,
        values: Tensor | None,
        features: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        if values is None:
            values = _gather(output_layer, features, rows, tokens)
        ctx.output_layer = output_layer
        ctx.autocast = _autocast(features.device.type)
        ctx.save_for_backward(rows, tokens, features)
        return values.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rows, tokens, features = ctx.saved_tensors
        layer: OutputLayer = ctx.output_layer
        grad_features = torch.zeros_like(features)
        grad_parameters = [torch.zeros_like(p) for p in layer.parameters]
        reached = grad.ne(0)
        rows, tokens, grad = rows[reached], tokens[reached], grad[reached]
        pieces = _pieces(layer, features, rows, tokens)
        for at, piece_rows, piece_tokens, picked in pieces:
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                inputs = features[at].detach().requires_grad_()
                logits = layer(inputs)
            # d log p_v / d logits = one-hot(v) - p, times the gradient, summed per row.
            slope = torch.softmax(logits.detach(), -1)
            total = slope.new_zeros(len(at)).index_add_(0, piece_rows, grad[picked])
            slope.mul_(-total.unsqueeze(-1))
            slope.index_put_((piece_rows, piece_tokens), grad[picked], accumulate=True)
            found = torch.autograd.grad(logits, [inputs, *layer.parameters], slope)
            grad_features[at] = found[0]
            for total_grad, part in zip(grad_parameters, found[1:]):
                total_grad += part
        return (None, None, None, None, grad_features, *grad_parameters)


def _autocast(device_type: str) -> dict[str, Any]:
    """Return the arguments of the current autocast: backward runs outside it."""
    return {
        "device_type": device_type,
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
    }


def _gather(
    layer: OutputLayer, features: Tensor, rows: Tensor, tokens: Tensor
) -> Tensor:
    values = features.new_empty(rows.shape, dtype=torch.float32)
    for at, piece_rows, piece_tokens, picked in _pieces(layer, features, rows, tokens):
        log_probs = torch.log_softmax(layer(features[at]), -1)
        values[picked] = log_probs[piece_rows, piece_tokens]
    return values


def _pieces(
    layer: OutputLayer, features: Tensor, rows: Tensor, tokens: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, slice]]:
    """Yield rows of features and the entries that belong to them, piece by piece."""
    if not rows.numel():
        return
    used, position = torch.unique_consecutive(rows, return_inverse=True)
    piece = PIECE_GPU if features.is_cuda else PIECE
    size = max(1, piece // layer.parameters[0].size(0)) if layer.parameters else 4096
    starts = torch.arange(0, used.numel(), size, device=rows.device)
    bounds: Sequence[int] = torch.searchsorted(position, starts).tolist()
    bounds = [*bounds, rows.numel()]
    for index, (start, end) in enumerate(zip(bounds, bounds[1:])):
        at = used[index * size : (index + 1) * size]
        entries = slice(start, end)
        yield at, position[entries] - index * size, tokens[entries], entries
