"""Time, error and memory of the top-k operators, as ratios to ``torch.topk``.

    python scripts/dev/bench_operators.py --output results/operators/one_thread.json

Each contender takes turns with ``torch.topk`` for a while; what is reported is the
median of the ratios of neighbouring turns, so that a busy machine slows both alike.
Errors are against a float64 solution: by bisection for memberships, by the same solver
for ranks. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import torch
from measuring import compare_in_turns, environment, peak_beyond
from operator_contenders import Contender, memberships, ranks
from torch import Tensor

from fairseq_plugins.operators import sorted_soft_topk
from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import write_json

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
BASELINE = Contender("torch.topk", lambda scores, k, _: scores.topk(k).values)


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(json.dumps(_peak_memory(*options.memory)))
        return
    report: dict[str, Any] = {"environment": _describe(options)}
    report["memberships"] = [
        _measure(memberships(), shape, epsilon, options, _bisect)
        for shape in SHAPES[: options.shapes]
        for epsilon in EPSILONS
    ]
    report["ranks"] = [
        _measure(ranks(), shape, epsilon, options, _rank_reference)
        for shape in RANK_SHAPES
        for epsilon in EPSILONS
    ]
    report["memory"] = [
        _memory_in_child(shape, epsilon)
        for shape in SHAPES[: options.shapes]
        for epsilon in (1.0, 0.1, 0.01)
    ]
    report["environment"]["load_after"] = os.getloadavg()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, report)
    print(f"written to {options.output}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/operators.json"))
    parser.add_argument("--seconds", type=float, default=0.5, help="per comparison")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="first N only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def _describe(options: argparse.Namespace) -> dict[str, Any]:
    return {
        **environment(options.device, options.threads),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "seed": options.seed,
    }


def _measure(
    contenders: list[Contender],
    shape: tuple[int, int, int],
    epsilon: float,
    options: argparse.Namespace,
    reference: Callable[[Tensor, int, float], Tensor],
) -> dict[str, Any]:
    rows, n, k = shape
    generator = torch.Generator().manual_seed(options.seed)
    scores = torch.randn(rows, n, generator=generator).to(options.device)
    chosen = [c for c in contenders if c.min_n <= n and rows * n <= c.max_elements]
    sample = scores[: max(1, min(rows, 4_000_000 // n))]
    exact = reference(sample.cpu(), k, epsilon)
    result: dict[str, Any] = {"rows": rows, "n": n, "k": k, "epsilon": epsilon}
    result["operators"] = {}
    for contender in chosen:
        entry: dict[str, Any] = {}
        for kind, backward in (("forward", False), ("forward_backward", True)):
            job = _job(contender, scores, k, epsilon, backward)
            ground = _job(BASELINE, scores, k, epsilon, backward)
            entry[kind] = compare_in_turns(job, ground, options.seconds)
        entry.update(_quality(contender, sample, k, epsilon, exact))
        result["operators"][contender.name] = entry
    _print(result)
    return result


def _job(
    contender: Contender, scores: Tensor, k: int, epsilon: float, backward: bool
) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad():
            contender.function(scores, k, epsilon)

    if not backward:
        return forward
    leaf = scores.clone().requires_grad_()
    upstream = torch.randn_like(contender.function(scores, k, epsilon))

    def both() -> None:
        leaf.grad = None
        contender.function(leaf, k, epsilon).backward(upstream)

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


def _rank_reference(scores: Tensor, k: int, epsilon: float) -> Tensor:
    return sorted_soft_topk(scores.double(), k, epsilon=epsilon)


def _quality(
    contender: Contender, scores: Tensor, k: int, epsilon: float, exact: Tensor
) -> dict[str, Any]:
    """Return the error, where the problem is the same, and the violation."""
    with torch.no_grad():
        value = contender.function(scores, k, epsilon).cpu().double()
    if value.dim() == 3:
        violation = (value.sum(1) - 1).abs().max()
    else:
        violation = (value.sum(-1) - k).abs().max()
    entry = {"constraint_violation": float(violation)}
    if contender.exact:
        entry["error"] = float((value - exact).abs().max())
    return entry


def _memory_in_child(shape: tuple[int, int, int], epsilon: float) -> dict[str, Any]:
    arguments = [str(value) for value in (*shape, epsilon)]
    command = [sys.executable, __file__, "--memory", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(answer.stdout))


def _peak_memory(rows: float, n: float, k: float, epsilon: float) -> dict[str, Any]:
    """Return the peak of forward and backward beyond the input, in inputs."""
    scores = torch.randn(int(rows), int(n), requires_grad=True)
    function = memberships()[0].function
    function(torch.randn(2, 5000), 3, epsilon)
    upstream = torch.randn_like(scores)
    extra = peak_beyond(lambda: function(scores, int(k), epsilon).backward(upstream))
    size = scores.numel() * scores.element_size()
    return {"rows": rows, "n": n, "k": k, "epsilon": epsilon, "inputs": extra / size}


def _print(result: dict[str, Any]) -> None:
    shape = (result["rows"], result["n"], result["k"])
    print(f"\n{shape} epsilon {result['epsilon']}")
    for name, entry in result["operators"].items():
        both, error = entry["forward_backward"], entry.get("error")
        print(
            f"  {name:32} forward {entry['forward']['milliseconds']:9.3f} ms"
            f"  both {both['milliseconds']:9.3f} ms = {both['ratio']:7.2f} x topk"
            + (f"  error {error:.0e}" if error is not None else ""),
            flush=True,
        )


if __name__ == "__main__":
    run_command_line(main)
