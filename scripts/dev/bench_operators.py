"""Time, error and memory of the top-k operators, as ratios to ``torch.topk``.

    python scripts/dev/bench_operators.py [--threads 2]

Each operator takes turns with ``torch.topk`` for some time. Reported is the median of
the ratios of neighboring turns, so that a busy machine slows both alike. Errors are
differences from a float64 solution: by bisection for memberships, by the same solver
for ranks. Other packages (POT, torchsort, difftopk) are compared where they are
installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
from typing import Any, Callable, NamedTuple

import torch
from measure import (
    compare_in_turns,
    create_parser,
    describe_machine,
    measure_peak,
    measure_peak_in_child,
)
from results_tables import merge_rows
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
from fairseq_plugins.utils.errors import run_command_line

SHAPES = [
    (128, 10, 3),
    (64, 100, 9),
    (256, 50, 5),
    (32, 160_000, 5),
    (640, 32_000, 5),
    (8, 1_000_000, 100),
]
RANK_SHAPES = [(256, 50, 5), (640, 20, 5)]
EPSILONS = [1.0, 0.1, 0.01, 0.001]
SINKHORN_LIMIT = 1_000  # too few for epsilon <= 0.1; the violation is reported
RESIDUAL = 1e-5  # that log-domain Sinkhorn can reach in float32
ANY = 10**12
KEY = ("kind", "rows", "n", "k", "epsilon", "operator", "threads", "device")


class Operator(NamedTuple):
    """A function of (scores, k, epsilon), and the inputs that it can handle.

    Attributes:
        exact: it solves the problem of `soft_topk` or `sorted_soft_topk`, so that its
            error is defined.
    """

    name: str
    function: Callable[[Tensor, int, float], Tensor]
    max_elements: int = ANY
    exact: bool = False
    min_n: int = 0


BASELINE = Operator("torch.topk", lambda scores, k, _: scores.topk(k).values)


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(_peak(**json.loads(options.memory)))
        return
    machine = describe_machine(threads=options.threads, device=options.device)
    cases = [
        *(("memberships", shape) for shape in SHAPES[: options.shapes]),
        *(("ranks", shape) for shape in RANK_SHAPES),
    ]
    for kind, shape in cases:
        for epsilon in EPSILONS:
            rows = _measure(kind, shape, epsilon, options)
            merge_rows(options.output, [row | machine for row in rows], KEY)
    for shape in SHAPES[: options.shapes]:
        for epsilon in EPSILONS[:3]:
            row = _measure_memory(shape, epsilon)
            merge_rows(options.output, [row | machine], KEY)
    print(f"written to {options.output}")


def _parse() -> argparse.Namespace:
    parser = create_parser(__doc__, "operators.csv")
    add = parser.add_argument
    add("--seconds", type=float, default=0.5, help="per comparison")
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    add("--shapes", type=int, default=len(SHAPES), help="the first N only")
    add("--seed", type=int, default=0)
    add("--memory", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(
    kind: str, shape: tuple[int, int, int], epsilon: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return a row for each operator on random scores of one shape."""
    operators, solve = _KINDS[kind]
    count, n, k = shape
    generator = torch.Generator().manual_seed(options.seed)
    scores = torch.randn(count, n, generator=generator).to(options.device)
    sample = scores[: max(1, min(count, 4_000_000 // n))]
    exact = solve(sample.cpu(), k, epsilon)
    rows = []
    print(f"\n{shape} epsilon {epsilon}")
    for operator in operators():
        if n < operator.min_n or scores.numel() > operator.max_elements:
            continue
        times = {
            backward: compare_in_turns(
                _job(operator, scores, k, epsilon, backward),
                _job(BASELINE, scores, k, epsilon, backward),
                options.seconds,
            )
            for backward in (False, True)
        }
        row = {
            **_identify(kind, shape, epsilon, operator.name),
            "forward_ms": times[False]["ms"],
            "forward_ratio": times[False]["ratio"],
            **{name: times[True][name] for name in _TIMES},
            **_quality(operator, sample, k, epsilon, exact),
        }
        rows.append(row)
        print(
            f"  {operator.name:32} forward {row['forward_ms']:9.3f} ms"
            f"  both {row['ms']:9.3f} ms = {row['ratio']:7.2f} x topk"
            + (f"  error {row['error']:.0e}" if "error" in row else ""),
            flush=True,
        )
    return rows


_TIMES = ("ms", "ratio", "ratio_low", "ratio_high", "baseline_ms")


def _identify(
    kind: str, shape: tuple[int, int, int], epsilon: float, name: str
) -> dict[str, Any]:
    rows, n, k = shape
    return {"kind": kind, "rows": rows, "n": n, "k": k, "epsilon": epsilon,
            "operator": name}  # fmt: skip


def _job(
    operator: Operator, scores: Tensor, k: int, epsilon: float, backward: bool
) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad():
            operator.function(scores, k, epsilon)

    if not backward:
        return forward
    leaf = scores.clone().requires_grad_()
    upstream = torch.randn_like(operator.function(scores, k, epsilon))

    def both() -> None:
        leaf.grad = None
        operator.function(leaf, k, epsilon).backward(upstream)

    return both


def _bisect(scores: Tensor, k: int, epsilon: float) -> Tensor:
    values = 2 * scores.double() / epsilon
    low, high = values.amin(-1, True) - 40, values.amax(-1, True) + 40
    for _ in range(100):
        middle = (low + high) / 2
        too_many = torch.sigmoid(values - middle).sum(-1, keepdim=True) > k
        low = torch.where(too_many, middle, low)
        high = torch.where(too_many, high, middle)
    return torch.sigmoid(values - (low + high) / 2)


def _solve_ranks(scores: Tensor, k: int, epsilon: float) -> Tensor:
    return sorted_soft_topk(scores.double(), k, epsilon=epsilon)


def _quality(
    operator: Operator, scores: Tensor, k: int, epsilon: float, exact: Tensor
) -> dict[str, float]:
    """Return by how much the constraints are missed, and the error if defined."""
    with torch.no_grad():
        value = operator.function(scores, k, epsilon).cpu().double()
    violation = value.sum(1) - 1 if value.dim() == 3 else value.sum(-1) - k
    quality = {"violation": float(violation.abs().max())}
    if operator.exact:
        quality["error"] = float((value - exact).abs().max())
    return quality


def _measure_memory(shape: tuple[int, int, int], epsilon: float) -> dict[str, Any]:
    """Return a row with the peak of forward and backward, in sizes of the input."""
    peak = measure_peak_in_child(__file__, {"shape": shape, "epsilon": epsilon})
    size = 4 * shape[0] * shape[1]
    return {**_identify("memory", shape, epsilon, "soft_topk"), "memory": peak / size}


def _peak(shape: tuple[int, int, int], epsilon: float) -> int:
    rows, n, k = shape
    soft_topk(torch.randn(2, 5000), 3, epsilon=epsilon)  # libraries allocate at first
    scores = torch.randn(rows, n, requires_grad=True)
    upstream = torch.randn_like(scores)
    return measure_peak(
        lambda: soft_topk(scores, k, epsilon=epsilon).backward(upstream)
    )


class _SinkhornRanks(SortedSoftTopKFunction):
    """Log-domain Sinkhorn to a residual; the backward pass is the implicit one."""

    @staticmethod
    def forward(scores: Tensor, k: int, temperature: float) -> Tensor:
        anchors = torch.arange(k + 1, dtype=scores.dtype, device=scores.device)
        capacities = torch.ones_like(anchors)
        capacities[-1] = scores.size(-1) - k
        return sinkhorn(
            -scores,
            anchors,
            capacities,
            epsilon=2 * temperature,
            tolerance=RESIDUAL,
            max_iterations=SINKHORN_LIMIT,
        ).plan.permute(2, 1, 0)


def list_rank_operators() -> list[Operator]:
    """Return the sorted operators, each giving (rows, n, k)."""
    return [
        Operator("sorted_soft_topk", _keywords(sorted_soft_topk), exact=True),
        Operator("nested_soft_topk", _keywords(nested_soft_topk)),
        Operator("softsort_topk", _keywords(softsort_topk)),
        Operator("Sinkhorn to 1e-5, implicit", _sinkhorn_ranks, 10**6, True),
        *_installed(_RANK_PEERS),
    ]


def list_membership_operators() -> list[Operator]:
    """Return the operators that give memberships, each (rows, n)."""
    return [
        Operator("soft_topk", _keywords(soft_topk), exact=True),
        Operator("pooled_soft_topk, 1e-6", _pooled, min_n=4096),
        Operator("softmax(scores / T)", lambda s, k, e: torch.softmax(2 * s / e, -1)),
        Operator("sigmoid(scores / T)", lambda s, k, e: torch.sigmoid(2 * s / e)),
        Operator("Sinkhorn, published, 200", _published, 300_000, True),
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
    ("ot", Operator("POT solve_batch, last step", _pot, 20_000, True)),
    ("torchsort", Operator("torchsort soft_rank (ranks only)", _torchsort, 10**6)),
]
_RANK_PEERS = [("difftopk", Operator("difftopk odd-even, Cauchy", _difftopk, 20_000))]


def _installed(peers: list[tuple[str, Operator]]) -> list[Operator]:
    found = [importlib.util.find_spec(package) for package, _ in peers]
    return [peer for spec, (_, peer) in zip(found, peers) if spec is not None]


_KINDS = {
    "memberships": (list_membership_operators, _bisect),
    "ranks": (list_rank_operators, _solve_ranks),
}

if __name__ == "__main__":
    run_command_line(main)
