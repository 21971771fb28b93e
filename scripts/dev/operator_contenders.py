"""What `bench_operators.py` compares: ours, the published way, and installed peers."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from fairseq_plugins.operators import (
    nested_soft_topk,
    pooled_soft_topk,
    sinkhorn,
    soft_topk,
    softsort_topk,
    sorted_soft_topk,
)
from fairseq_plugins.operators.sorted_soft_topk import SortedSoftTopKFunction

__all__ = ["Contender", "memberships", "ranks"]

SINKHORN_LIMIT = 1_000  # not enough for epsilon <= 0.1; the violation is reported
RESIDUAL = 1e-5  # what log-domain Sinkhorn can reach in float32
ANY = 10**12


class Contender(NamedTuple):
    """A function of (scores, k, epsilon), and the inputs it is worth running on.

    ``exact`` says whether it solves the problem of `soft_topk` or `sorted_soft_topk`,
    so that its error is a number about the same thing.
    """

    name: str
    function: Callable[[Tensor, int, float], Tensor]
    max_elements: int = ANY
    exact: bool = False
    min_n: int = 0


class _SinkhornRanks(SortedSoftTopKFunction):
    """Log-domain Sinkhorn to a residual, with the implicit backward of ours."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int, temperature: float) -> Tensor:
        anchors = torch.arange(k + 1, dtype=scores.dtype, device=scores.device)
        capacities = torch.ones_like(anchors)
        capacities[-1] = scores.size(-1) - k
        plan = sinkhorn(
            -scores,
            anchors,
            capacities,
            epsilon=2 * temperature,
            tolerance=RESIDUAL,
            max_iterations=SINKHORN_LIMIT,
        ).plan.permute(2, 1, 0)
        ctx.save_for_backward(plan)
        ctx.temperature = temperature
        return plan


def ranks() -> list[Contender]:
    """Return the sorted operators, each giving (rows, n, k)."""
    return [
        Contender("sorted_soft_topk", _keywords(sorted_soft_topk), exact=True),
        Contender("nested_soft_topk", _keywords(nested_soft_topk)),
        Contender("softsort_topk", _keywords(softsort_topk)),
        Contender("Sinkhorn to 1e-5, implicit", _sinkhorn_ranks, 10**6, True),
        *_installed(_RANK_PEERS),
    ]


def memberships() -> list[Contender]:
    """Return the operators that give memberships, each (rows, n); the first is ours."""
    return [
        Contender("soft_topk", _keywords(soft_topk), exact=True),
        Contender("pooled_soft_topk, 1e-6", _pooled, min_n=4096),
        Contender("softmax(scores / T)", lambda s, k, e: torch.softmax(2 * s / e, -1)),
        Contender("sigmoid(scores / T)", lambda s, k, e: torch.sigmoid(2 * s / e)),
        Contender("Sinkhorn, published, 200", _published, 300_000, True),
        *_installed(_MEMBERSHIP_PEERS),
    ]


def _keywords(
    function: Callable[..., Tensor],
) -> Callable[[Tensor, int, float], Tensor]:
    return lambda scores, k, epsilon: function(scores, k, epsilon=epsilon)


def _pooled(scores: Tensor, k: int, epsilon: float) -> Tensor:
    return pooled_soft_topk(scores, k, epsilon=epsilon).memberships


def _published(scores: Tensor, k: int, epsilon: float) -> Tensor:
    anchors = torch.tensor([0.0, 1.0], dtype=scores.dtype)
    capacities = torch.tensor([k, scores.size(-1) - k])
    result = sinkhorn(
        -scores,
        anchors,
        capacities,
        epsilon=epsilon,
        tolerance=0.0,
        max_iterations=200,
    )
    return result.plan[..., 0]


def _sinkhorn_ranks(scores: Tensor, k: int, epsilon: float) -> Tensor:
    plan = _SinkhornRanks.apply(scores, k, epsilon / 2)
    assignment: Tensor = plan[:-1].permute(2, 1, 0)
    return assignment.contiguous()


def _torchsort(scores: Tensor, k: int, epsilon: float) -> Tensor:
    torchsort = importlib.import_module("torchsort")
    rank: Tensor = torchsort.soft_rank(-scores, regularization_strength=epsilon)
    return rank


def _difftopk(scores: Tensor, k: int, epsilon: float) -> Tensor:
    difftopk = importlib.import_module("difftopk")
    net = difftopk.DiffTopkNet(
        sorting_network_type="odd_even",
        size=scores.size(-1),
        k=k,
        steepness=2 / epsilon,
        distribution="cauchy",
    )
    assignment: Tensor = net(scores)[1]
    return assignment


def _pot(scores: Tensor, k: int, epsilon: float) -> Tensor:
    ot = importlib.import_module("ot")
    anchors = torch.tensor([0.0, 1.0], dtype=scores.dtype)
    cost = (-scores.unsqueeze(-1) - anchors).square()
    mass = torch.full_like(scores, 1 / scores.size(-1))
    share = k / scores.size(-1)
    target = torch.tensor([share, 1 - share], dtype=scores.dtype)
    result = ot.solve_batch(
        cost,
        epsilon,
        mass,
        target.expand(len(scores), -1),
        max_iter=1_000,
        tol=1e-6,
        grad="last_step",
    )
    plan: Tensor = result.plan
    return plan[..., 0] * scores.size(-1)


_MEMBERSHIP_PEERS = [
    ("ot", Contender("POT solve_batch, last step", _pot, 20_000, True)),
    ("torchsort", Contender("torchsort soft_rank (ranks only)", _torchsort, 10**6)),
]
_RANK_PEERS = [("difftopk", Contender("difftopk odd-even, Cauchy", _difftopk, 20_000))]


def _installed(peers: list[tuple[str, Contender]]) -> list[Contender]:
    found = [importlib.util.find_spec(package) for package, _ in peers]
    return [peer for spec, (_, peer) in zip(found, peers) if spec is not None]
