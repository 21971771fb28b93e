"""SOFT top-k memberships and logits as one differentiable function of the scores."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .arguments import full_precision
from .threshold import solve_threshold, solve_threshold_per_row

__all__ = ["memberships_and_logits", "short_memberships"]


def short_memberships(
    scores: Tensor,
    k: int | Tensor,
    temperature: float,
    solution: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the memberships alone; arguments as in `memberships_and_logits`."""
    if isinstance(k, Tensor) or torch.compiler.is_compiling():
        return memberships_and_logits(scores, k, temperature, solution)[0]
    memberships: Tensor = _Memberships.apply(scores, k, temperature, solution)
    return memberships


def memberships_and_logits(
    scores: Tensor,
    k: int | Tensor,
    temperature: float,
    solution: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return memberships and logits of (rows, n) scores, as `solve_threshold` says.

    Args:
        k: a number, or of the dtype of ``scores``, shape (rows, 1), and differentiable.
        solution: what `solve_threshold` would return, if known.
    """
    memberships, logits = _SoftTopK.apply(scores, k, temperature, solution)
    return memberships, logits


class _Memberships(torch.autograd.Function):
    """Memberships with the fewest operations: short rows cost what these are worth."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        k: int,
        temperature: float,
        solution: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        if solution is None:
            # Without the bookkeeping of autograd an operation takes a third less.
            with full_precision(scores), torch.inference_mode():
                solution = solve_threshold(scores, k, temperature)
        centre, offset = solution
        logits = torch.add(-offset, scores - centre, alpha=1 / temperature)
        memberships = logits.sigmoid()
        if ctx.needs_input_grad[0]:
            density = logits.neg_().sigmoid_().mul_(memberships)
            ctx.save_for_backward(scores, density)
            ctx.k, ctx.temperature = k, temperature
        return memberships

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        scores, density = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            again, _ = memberships_and_logits(scores, ctx.k, ctx.temperature)
            (slope,) = torch.autograd.grad(again, scores, grad, create_graph=True)
            return slope, None, None, None
        weighted = density * grad
        mean = weighted.sum(-1, keepdim=True).div_(density.sum(-1, keepdim=True))
        mean.nan_to_num_()  # 0 / 0 where nothing is soft
        weighted.addcmul_(density, mean, value=-1)
        return weighted.mul_(1 / ctx.temperature), None, None, None


class _SoftTopK(torch.autograd.Function):
    """Memberships and logits of (rows, n) scores; the backward is differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        k: int | Tensor,
        temperature: float,
        solution: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature = temperature
        if solution is None:
            with full_precision(scores):
                if isinstance(k, Tensor):
                    solution = solve_threshold_per_row(scores, k, temperature)
                else:
                    solution = solve_threshold(scores, k, temperature)
        centre, offset = solution
        logits = torch.add(-offset, scores - centre, alpha=1 / temperature)
        memberships = logits.sigmoid()
        ctx.save_for_backward(logits, memberships, offset)
        return memberships, logits

    @staticmethod
    def backward(
        ctx: Any, grad_memberships: Tensor | None, grad_logits: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        logits, memberships, offset = ctx.saved_tensors
        grad, grad_k = None, None
        if grad_memberships is not None:
            grad, grad_k = _through_memberships(grad_memberships, logits, memberships)
        if grad_logits is not None:
            along, along_k = _through_logits(grad_logits, logits, offset)
            grad = along if grad is None else grad + along
            grad_k = along_k if grad_k is None else grad_k + along_k
        if grad is not None:
            grad = grad / ctx.temperature
        return grad, grad_k if ctx.needs_input_grad[1] else None, None, None


def _through_memberships(
    grad: Tensor, logits: Tensor, memberships: Tensor
) -> tuple[Tensor, Tensor]:
    density = memberships * (-logits).sigmoid()
    weighted = density * grad
    total = density.sum(-1, keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
    mean = weighted.sum(-1, keepdim=True) / total
    return torch.addcmul(weighted, density, mean, value=-1), mean


def _through_logits(
    grad: Tensor, logits: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    log_density = logsigmoid(logits) + logsigmoid(-logits)
    total = grad.sum(-1, keepdim=True)
    along = torch.addcmul(grad, torch.softmax(log_density, -1), total, value=-1)
    # The threshold of a row that selects all or nothing does not move.
    fixed = offset.abs() == torch.finfo(offset.dtype).max
    along_k = total * (-torch.logsumexp(log_density, -1, keepdim=True)).exp()
    return along.masked_fill(fixed, 0.0), along_k.masked_fill(fixed, 0.0)
