"""Draw the two pictures of docs/operators.md and fill in its table.

    python scripts/dev/plot_operators.py --results results/operators/one_thread.json

Needs matplotlib. The first picture computes what it shows; the second shows times that
`bench_operators.py` has measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt

from fairseq_plugins.operators import soft_topk
from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import read_json, write_between

SCORES = [2.1, 1.7, 1.5, 0.9, 0.4, -0.3]
K = 3
MANY = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--results", type=Path, default=Path("results/operators/one_thread.json")
    )
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--page", type=Path, default=Path("docs/operators.md"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    report = read_json(options.results)
    _draw_memberships(options.out / "operators_epsilon.png")
    _draw_times(report, options.out / "operators_time.png")
    write_between(options.page, "times", _table(report))


def _draw_memberships(path: Path) -> None:
    epsilons = torch.logspace(-2, 2, 120, dtype=torch.float64)
    scores = torch.tensor(SCORES, dtype=torch.float64).expand(len(epsilons), -1)
    leaf = scores.clone().requires_grad_()
    memberships = soft_topk(leaf, K, epsilon=epsilons)
    (gradient,) = torch.autograd.grad(memberships[:, K - 1].sum(), leaf)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for index, score in enumerate(SCORES):
        colour = plt.get_cmap("viridis")(index / len(SCORES))
        label = f"score {score}"
        left.plot(epsilons, memberships[:, index].detach(), color=colour, label=label)
        right.plot(epsilons, gradient[:, index], color=colour, label=label)
    left.set_title(f"memberships, k = {K}")
    right.set_title(f"gradient of the membership of score {SCORES[K - 1]}")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("epsilon")
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    _save(figure, path)


def _draw_times(report: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5))
    lines: dict[str, list[tuple[float, float]]] = {}
    for case in report["memberships"]:
        if case["epsilon"] != 0.1:
            continue
        size = case["rows"] * case["n"]
        for name, entry in case["operators"].items():
            both = entry["forward_backward"]
            lines.setdefault(name, []).append((size, both["milliseconds"]))
        first = next(iter(case["operators"].values()))["forward_backward"]
        lines.setdefault("torch.topk", []).append((size, first["ground_milliseconds"]))
    for name, points in lines.items():
        points.sort()
        width = 3 if name == "soft_topk" else 1.2
        axes.plot(*zip(*points), marker="o", linewidth=width, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("candidates in all rows together")
    axes.set_ylabel("forward and backward, milliseconds")
    axes.set_title("epsilon 0.1, float32, one thread")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def _table(report: dict[str, Any]) -> str:
    environment = report["environment"]
    lines = [
        f"torch {environment['torch']}, {environment['cpu']}, "
        f"{environment['threads']} thread(s) of {environment['cpus']}, load average "
        f"{environment['load_before'][0]:.1f} before and "
        f"{environment['load_after'][0]:.1f} after.",
        "",
        "| rows, n, k | epsilon | operator | ms | x torch.topk | quartiles | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in report["memberships"] + report["ranks"]:
        shape = f"{case['rows']}, {case['n']}, {case['k']}"
        for name, entry in case["operators"].items():
            both = entry["forward_backward"]
            low, high = both["ratio_quartiles"]
            error = f"{entry['error']:.0e}" if "error" in entry else ""
            lines.append(
                f"| {shape} | {case['epsilon']:g} | {name} "
                f"| {both['milliseconds']:.3g} | {both['ratio']:.3g} "
                f"| {low:.3g} to {high:.3g} | {error} |"
            )
    lines += ["", "| rows, n, k | epsilon | peak memory beyond the input, in inputs |"]
    lines += ["|---|---|---|"]
    for case in report["memory"]:
        if case["rows"] * case["n"] < MANY:  # below, it is PyTorch's own memory
            continue
        shape = ", ".join(f"{case[field]:g}" for field in ("rows", "n", "k"))
        lines.append(f"| {shape} | {case['epsilon']:g} | {case['inputs']:.1f} |")
    return "\n".join(lines)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"written to {path}")


if __name__ == "__main__":
    run_command_line(main)
