"""Draw the two pictures of docs/operators.md.

    python scripts/dev/plot_operators.py

Needs matplotlib. The first picture computes what it shows; the second shows the times
of results/operators.csv on one thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from results_tables import RESULTS, ROOT, read_rows

from fairseq_plugins.operators import soft_topk
from fairseq_plugins.utils.errors import run_command_line

SCORES = [2.1, 1.7, 1.5, 0.9, 0.4, -0.3]
K = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    _draw_memberships(out / "operators_epsilon.png")
    _draw_times(out / "operators_time.png")


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


def _draw_times(path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5))
    lines: dict[str, list[tuple[float, float]]] = {}
    baseline: dict[float, float] = {}
    for row in read_rows(
        RESULTS / "operators.csv", kind="memberships", epsilon=0.1, threads=1
    ):
        size = int(row["rows"]) * int(row["n"])
        lines.setdefault(row["operator"], []).append((size, float(row["ms"])))
        baseline.setdefault(size, float(row["baseline_ms"]))
    lines["torch.topk"] = list(baseline.items())
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


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"written to {path}")


if __name__ == "__main__":
    run_command_line(main)
