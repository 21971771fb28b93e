"""Sorted SOFT top-k, exactly (Xie et al., 2020, arXiv:2002.06504, section 2.4).

The entropic optimal-transport plan between n scores and the k + 1 targets "rank 1",
..., "rank k", "not selected" is a softmax over the targets for each candidate, in which
neighboring logits differ by ``d_li = (s_i - tau_l) / T`` with T = epsilon / 2. The k
thresholds tau are found by Newton's method. The gradient needs one k x k solve.

Let ``Q_li`` be the fraction of candidate i in ranks 1..l and ``R_li = 1 - Q_li`` that
in later ranks. Each rank holds one candidate if, for every l,

    V_l = sum of Q_li over i outside the l best  =  sum of R_li over the l best = U_l.

As for one threshold (see `threshold`), the equations are solved as
``log(V_l / U_l) = 0``: sums of positive terms keep full relative precision, diagonal
slopes stay in [-2, -1], and the Jacobian does not degenerate as plans harden, where
that of ``sum_i Q_li = l`` vanishes.

Tensors here have the rows last, (ranks, candidates, rows), so that sums over ranks and
over candidates add whole vectors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .arguments import apply_to_rows, full_precision, prepare_scores
from .threshold import get_hard_gap, get_maximum, select_largest

__all__ = ["SortedSoftTopKFunction", "sorted_soft_topk"]

GPU_CHECKS = (5, 8, 11)  # the steps after which a GPU is queried
MAX_STEPS = 16  # the worst of 12,000 adversarial float64 rows took 8
LOG2_E = math.log2(math.e)


def sorted_soft_topk(
    scores: Tensor,
    k: int | Tensor,
    *,
    epsilon: float | Tensor,
    mask: Tensor | None = None,
    largest: bool = True,
    dim: int = -1,
) -> Tensor:
    """Return the assignment of candidates to ranks 1..k, best first.

    Columns sum to 1 over the candidates, rows to at most 1. As ``epsilon`` tends to 0
    column l becomes the one-hot vector of the l-th best. A deleted entry (masked, or
    -inf) has a row of zeros. With only m < k other entries, the first m columns sum to
    1 and the remaining columns are zero.

    Args:
        scores, epsilon, mask: as in `soft_topk`.
        k: number of ranks, 1 <= k <= n; or a tensor of integers from 0 to n that
            broadcasts to shape (...): columns after the k of a row are then zero.
        largest: False ranks the smallest first.
        dim: the dimension of the candidates; "..." is the shape without it.

    Returns:
        assignment, shape (..., n, k), dtype of ``scores``. With ``dim`` the candidates
        stay at their place and k is the last dimension.

    Raises:
        ValueError: an argument is out of its range.
    """
    if dim != -1 or isinstance(k, Tensor):
        return apply_to_rows(
            sorted_soft_topk,
            scores,
            k,
            epsilon=epsilon,
            mask=mask,
            largest=largest,
            dim=dim,
        )
    values, k, epsilon = prepare_scores(
        scores, k, epsilon=epsilon, mask=mask, largest=largest
    )
    rows = values.reshape(-1, values.size(-1))
    is_compiling = torch.compiler.is_compiling()
    function = SortedSoftTopKFunction if is_compiling else _TransformableSortedSoftTopK
    plan = function.apply(rows, k, epsilon / 2)
    assignment = plan[:-1].permute(2, 1, 0).to(scores.dtype)
    return assignment.reshape(*scores.shape, k)


class SortedSoftTopKFunction(torch.autograd.Function):
    """The plan, (k + 1, n, rows), of (rows, n) scores."""

    @staticmethod
    def forward(scores: Tensor, k: int, temperature: float) -> Tensor:
        with full_precision(scores):
            center, offset = _solve_rank_thresholds(scores, k, temperature)
        steps = (scores.t().contiguous() - center.unsqueeze(1)) / temperature
        plan = _compute_weights(steps - offset.unsqueeze(1), 1.0)
        return plan.div_(plan.sum(0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)
        ctx.temperature = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (plan,) = ctx.saved_tensors
        within, beyond = _compute_fractions(plan)
        grad = grad.contiguous()
        rise = grad[:-1] - grad[1:]  # of one unit moved from rank l + 1 to rank l
        with full_precision(plan):
            pull = _multiply_by_covariance(within, beyond, rise).sum(1)
            shift = _solve_scaled(_compute_covariance(within, beyond), pull)
        # A score changes all ranks: sum the covariance over its first index.
        later = _add_from_right_(beyond.clone())
        earlier = _add_from_left_(within.clone()) - within
        reach = within * later + beyond * earlier
        slope = (reach * (rise - shift.unsqueeze(1))).sum(0)
        return slope.t() / ctx.temperature, None, None


class _TransformableSortedSoftTopK(SortedSoftTopKFunction):
    """The same with the rules that `torch.compile` does not accept."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (plan,) = ctx.saved_tensors
        within, beyond = _compute_fractions(plan)
        rise = (tangent.t() / ctx.temperature).expand_as(within)
        with full_precision(plan):
            pull = _multiply_by_covariance(within, beyond, rise).sum(1)
            shift = _solve_scaled(_compute_covariance(within, beyond), pull)
        change = _multiply_by_covariance(within, beyond, rise - shift.unsqueeze(1))
        edge = torch.zeros_like(change[:1])
        return torch.cat([change, edge]) - torch.cat([edge, change])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], scores: Tensor, k: int, temperature: float
    ) -> tuple[Tensor, int]:
        rows = scores.movedim(in_dims[0], 0)
        plan = _TransformableSortedSoftTopK.apply(rows.flatten(0, 1), k, temperature)
        return plan.unflatten(2, rows.shape[:2]), 2


def _multiply_by_covariance(within: Tensor, beyond: Tensor, rise: Tensor) -> Tensor:
    """Return, per candidate, the covariance of the fractions Q times ``rise``.

    ``cov(Q_l, Q_m) = Q_m R_l`` for m <= l, so the product takes two running sums.
    """
    before = _add_from_left_(within * rise)
    after = beyond * rise
    after = _add_from_right_(after.clone()) - after
    return beyond * before + within * after


def _solve_scaled(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve with ``matrix`` scaled to a unit diagonal, since its entries span decades.

    A rank without spread has a zero row and a zero right side; its solution is 0.
    """
    finfo = torch.finfo(matrix.dtype)
    scale = matrix.diagonal().t().clamp_min(finfo.tiny).rsqrt()
    unit = (matrix * scale * scale.unsqueeze(1)).permute(2, 0, 1)
    ridge = finfo.eps * torch.eye(unit.size(-1), dtype=unit.dtype, device=unit.device)
    solution, _ = torch.linalg.solve_ex(unit + ridge, (right * scale).t().unsqueeze(-1))
    return solution.squeeze(-1).t() * scale


def _solve_rank_thresholds(
    scores: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return center and offset, both (k, rows): tau = center + temperature * offset.

    Args:
        scores: float32 or float64, shape (rows, n); -inf where deleted.
        k: 1 <= k <= n. In a row with m <= k entries the m-th rank takes the rest and
            later ranks stay empty: their offsets are large negative numbers.
        temperature: T = epsilon / 2, in score units.
    """
    best, index = select_largest(scores, k)
    rest = scores.scatter(-1, index, -math.inf).t().contiguous()
    top = best.t().contiguous()
    following = torch.cat([top[1:], rest.amax(0, keepdim=True)])
    is_open = following > -math.inf
    center = top.masked_fill(~is_open, 0.0)
    following = following.masked_fill(~is_open, 0.0)
    gap = ((center - following) / temperature).masked_fill(~is_open, 0.0)
    narrowed = gap.clamp_max(get_hard_gap(scores.dtype))

    rank = torch.arange(k, device=scores.device)
    is_top = (rank <= rank.unsqueeze(-1)).unsqueeze(-1)  # (k, k, 1): rank, candidate
    # For the rank of a wide gap, the candidates below the gap are moved up. They are
    # measured from the best of them, since that difference is exact.
    inner = top - torch.where(is_top, center.unsqueeze(1), following.unsqueeze(1))
    steps = torch.cat([inner, rest - following.unsqueeze(1)], 1) / temperature
    steps[:, :k] -= narrowed.unsqueeze(1) * ~is_top
    steps[:, k:] -= narrowed.unsqueeze(1)
    lowest = -math.sqrt(torch.finfo(scores.dtype).max)  # sums of k stay finite
    start = (narrowed / -2).masked_fill(~is_open, lowest)
    offset = _newton(steps, is_top, is_open, start)
    return center, offset + (narrowed - gap) / 2


def _compute_fractions(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q (ranks up to l) and R (later ranks), (k, n, rows).

    Args:
        weights: (k + 1, n, rows), the plan or a multiple of it per candidate.
    """
    scale = weights.sum(0).reciprocal()
    within = _add_from_left_(weights[:-1].clone()).mul_(scale)
    beyond = _add_from_right_(weights[1:].clone()).mul_(scale)
    return within, beyond


def _compute_covariance(within: Tensor, beyond: Tensor) -> Tensor:
    """Return ``sum over candidates of cov(Q_l, Q_m) = Q_min R_max``, (k, k, rows)."""
    products = torch.stack([(later * within).sum(1) for later in beyond])
    k = products.size(0)
    is_lower = torch.ones(k, k, dtype=torch.bool, device=products.device).tril()
    return torch.where(is_lower.unsqueeze(-1), products, products.transpose(0, 1))


def _add_from_left_(values: Tensor) -> Tensor:
    """Cumulate in place over the first dimension, from its start."""
    for rank in range(1, values.size(0)):
        values[rank].add_(values[rank - 1])
    return values


def _add_from_right_(values: Tensor) -> Tensor:
    """Cumulate in place over the first dimension, from its end."""
    for rank in range(values.size(0) - 2, -1, -1):
        values[rank].add_(values[rank + 1])
    return values


def _compute_weights(steps: Tensor, fraction_of_range: float) -> Tensor:
    """Return weights proportional to the plan, (k + 1, n, rows).

    The logit of rank j is the sum of ``steps`` from j on, up to a constant per
    candidate. Summing negative steps from the right and positive ones from the left
    puts the zero at the rank of the candidate, so that rounding does not grow with k.

    Args:
        steps: differences of neighboring logits, (k, n, rows).
        fraction_of_range: 1 keeps all normal numbers, 1 / 2 those with normal products:
            arithmetic on denormal numbers takes ten times longer.
    """
    scaled = steps * LOG2_E  # 2 ** x is several times faster than e ** x
    logits = steps.new_zeros(steps.size(0) + 1, *steps.shape[1:])
    _add_from_right_(torch.clamp(scaled, max=0.0, out=logits[:-1]))
    logits[1:].sub_(_add_from_left_(scaled.clamp_(min=0.0)))
    lowest = fraction_of_range * math.log2(torch.finfo(logits.dtype).tiny)
    return torch.threshold_(logits, lowest, -math.inf).exp2_()


def _newton(steps: Tensor, is_top: Tensor, is_open: Tensor, offset: Tensor) -> Tensor:
    closed = torch.diag_embed((~is_open).t().to(steps.dtype))
    jacobian, small = closed, torch.finfo(steps.dtype).eps ** (2 / 3) / 4
    for step in range(MAX_STEPS):
        within, beyond = _compute_fractions(
            _compute_weights(steps - offset.unsqueeze(1), 0.5)
        )
        sums = _sum_misplaced(within, beyond, is_top)
        top_sum, rest_sum = (each.masked_fill(~is_open, 1.0) for each in sums)
        balance = (rest_sum / top_sum).log()
        # With a balance this small the previous Jacobian gives an exact last step.
        error = get_maximum(balance.abs(), may_wait=step in GPU_CHECKS)
        is_last = step > 1 and error <= small
        if not is_last:
            slopes = _compute_jacobian(within, beyond, is_top, top_sum, rest_sum)
            jacobian = slopes.permute(2, 0, 1) + closed
        move, _ = torch.linalg.solve_ex(jacobian, balance.t().unsqueeze(-1))
        offset = offset + move.squeeze(-1).t()
        if is_last:
            break
    return offset


def _sum_misplaced(
    within: Tensor, beyond: Tensor, is_top: Tensor
) -> tuple[Tensor, Tensor]:
    """Return U and V, (k, rows). The first k candidates are the best, in order."""
    k = within.size(0)
    top_sum = (beyond[:, :k] * is_top).sum(1)
    return top_sum, within[:, k:].sum(1) + (within[:, :k] * ~is_top).sum(1)


def _compute_jacobian(
    within: Tensor, beyond: Tensor, is_top: Tensor, top_sum: Tensor, rest_sum: Tensor
) -> Tensor:
    """Return minus the Jacobian of log(V / U) in the offsets, (k, k, rows).

    A candidate outside the l best adds ``cov(Q_l, Q_m) / V_l``, one among them
    ``cov(Q_l, Q_m) / U_l``.
    """
    k = within.size(0)
    outside = _compute_covariance(within[:, k:], beyond[:, k:]) / rest_sum.unsqueeze(1)
    weight = torch.where(is_top, 1 / top_sum.unsqueeze(1), 1 / rest_sum.unsqueeze(1))
    inner, later = within[:, :k], beyond[:, :k]
    lower = ((weight * later).unsqueeze(1) * inner).sum(2)  # Q_m R_l, for m <= l
    upper = ((weight * inner).unsqueeze(1) * later).sum(2)  # Q_l R_m, for m > l
    is_lower = is_top.squeeze(-1).unsqueeze(-1)
    return outside + torch.where(is_lower, lower, upper)
