"""Time and memory of an update for the beam, as ratios to a cross-entropy update.

    python scripts/dev/bench_training.py --output results/beam_training/cost_cpu.json

Models have random weights and the batches random tokens, whose hypotheses would not
end by themselves: they are ended two tokens beyond the length of the source, which is
that of the target. Times are medians of neighbouring turns; memory is the peak of one
update in a process of its own, beyond model and batch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Callable

import torch
from measuring import (
    compare_in_turns,
    parser_of_updates,
    peak_beyond,
    peak_in_child,
    write_report,
)
from random_models import (
    MODELS,
    gradient_update,
    random_batch,
    random_model,
)

from fairseq_plugins.utils.errors import run_command_line

SYSTEMS: dict[str, dict[str, Any]] = {
    "risk, two-pass": dict(beam_loss="risk", engine="two-pass"),
    "risk, rollout": dict(beam_loss="risk", engine="rollout"),
    "survival, two-pass": dict(beam_loss="survival", engine="two-pass"),
    "risk + survival, two-pass": dict(
        beam_loss="risk=1,survival=0.1", engine="two-pass"
    ),
    "mrt, two-pass": dict(beam_loss="mrt", engine="two-pass"),
    "bso, two-pass": dict(beam_loss="bso", engine="two-pass"),
    "paper: slot-ce, soft, rollout": dict(
        beam_loss="slot-ce", mixing="soft", epsilon=0.1, selection_clip=0.0, rho=0.8,
        beam_dropout="none",
    ),  # fmt: skip
}
PREDICTED = "risk, two-pass"  # the system that the formula for memory is about
# Vocabulary and target length: the first is the size of Multi30k, the others grow.
SIZES = [(6_000, 16), (24_000, 16), (6_000, 64)]


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(_peak(json.loads(options.memory)))
        return
    rows = []
    for arch in options.models:
        for vocabulary, length in SIZES[: options.sizes]:
            case = dict(
                arch=arch, vocabulary=vocabulary, length=length, beam=options.beam,
                tokens=options.tokens, device=options.device, precision="fp32",
            )  # fmt: skip
            rows += _measure(case, options.seconds)
    write_report(options, rows, _table)


def _parse() -> argparse.Namespace:
    summary = __doc__.split("\n\n")[0]
    parser = parser_of_updates(summary, Path("runs/bench_training.json"))
    add = parser.add_argument
    add("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    add("--sizes", type=int, default=len(SIZES), help="first N only")
    add("--beam", type=int, default=5)
    return parser.parse_args()


def _measure(case: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    ground_memory = peak_in_child(__file__, {**case, "system": None})
    ground = _update(case, None)
    rows = []
    for system in SYSTEMS:
        row = {**case, "system": system}
        row |= compare_in_turns(_update(case, system), ground, seconds)
        row["megabytes"] = peak_in_child(__file__, row) / 1e6
        row["memory_ratio"] = 1e6 * row["megabytes"] / ground_memory
        if system == PREDICTED:
            row["predicted_megabytes"] = predicted_bytes(case) / 1e6
        rows.append(row)
        print(
            f"{case['arch']:12} V {case['vocabulary']:6} T {case['length']:3}"
            f" {system:30}"
            f" {row['milliseconds']:8.0f} ms = {row['ratio']:5.2f} x cross entropy,"
            f" memory {row['megabytes']:7.0f} MB = {row['memory_ratio']:5.2f} x"
            f" (formula {row.get('predicted_megabytes', float('nan')):.0f} MB)",
            flush=True,
        )
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    """Return a line for each case and system, in Markdown."""
    lines = ["| model | V | length | system | time | memory | memory, MB (formula) |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        predicted = row.get("predicted_megabytes")
        formula = "" if predicted is None else f" ({predicted:.0f})"
        lines.append(
            f"| {row['arch']} | {row['vocabulary']:,} | {row['length']} "
            f"| {row['system']} | {row['ratio']:.1f} x | {row['memory_ratio']:.1f} x "
            f"| {row['megabytes']:.0f}{formula} |"
        )
    return "\n".join(lines)


def predicted_bytes(case: dict[str, Any]) -> float:
    """Return the peak memory by the formula of docs/beam_training.md."""
    config = MODELS[case["arch"]]
    width, layers = config["decoder_embed_dim"], config.get("decoder_layers", 1)
    tokens, vocabulary = case["tokens"], case["vocabulary"]
    nodes = case["beam"] * tokens * width * layers
    if case["arch"] == "lstm":
        return 4 * (1.5 * tokens * vocabulary + 24 * nodes + 3 * vocabulary * width)
    return 4 * (1.9 * tokens * vocabulary + 25 * nodes)


def _peak(case: dict[str, Any]) -> int:
    small = _update({**case, "tokens": 2 * case["length"]}, case["system"])
    small()  # libraries allocate on their first call
    return peak_beyond(_update(case, case["system"]), device=case["device"])


def _update(case: dict[str, Any], system: str | None) -> Callable[[], None]:
    """Return a forward and backward pass of one batch."""
    task, model = random_model(case)
    chosen = {"rho": 1.0} if system is None else SYSTEMS[system]
    criterion = _criterion(task, {"beam": case["beam"], **chosen})
    return gradient_update(model, criterion, random_batch(case, task))


def _criterion(task: Any, options: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf

    from fairseq_plugins.criterions.options import SoftBeamSearchConfig
    from fairseq_plugins.criterions.soft_beam_search import SoftBeamSearchCriterion

    fixed = {"beam_max_len_a": 1.0, "beam_max_len_b": 1}  # with its end: two beyond
    config = OmegaConf.structured(
        SoftBeamSearchConfig(label_smoothing=0.1, **{**fixed, **options})
    )
    config.sentence_avg = False
    return SoftBeamSearchCriterion.build_criterion(config, task).train()


if __name__ == "__main__":
    run_command_line(main)
