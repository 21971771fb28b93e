"""Time and memory of an update with top-k attention, as ratios to the plain model's.

    python scripts/dev/bench_attention.py --output results/topk_attention/cost_cpu.json

Models have random weights and batches random tokens. Their attention is sharpened to
a spread of scores as in trained models, which is what the solver's steps depend on.
Times are medians of neighbouring turns, of CPU time where there is one thread; memory
is the peak of one update in a process of its own, beyond model and batch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
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
    gradient_update,
    random_batch,
    random_model,
)

from fairseq_plugins.utils.errors import run_command_line

ALL = "cross,decoder,encoder"
SYSTEMS: dict[str, dict[str, Any]] = {
    "soft, cross": dict(),
    "soft, cross, decoder and encoder": dict(topk_attentions=ALL),
    "soft, all three, epsilon 0.1": dict(topk_attentions=ALL, topk_epsilon=0.1),
    "soft, all three, learnt": dict(topk_attentions=ALL, topk_learn="both"),
    "hard, all three": dict(topk_attentions=ALL, topk_operator="hard"),
    "entmax-1.5, all three": dict(topk_attentions=ALL, topk_operator="entmax15"),
}
LENGTHS = (50, 100)
GAIN = 4.0  # of query and key projections: scores then spread by about 2 nats


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(_peak(json.loads(options.memory)))
        return
    # Other processes do not count in the time of the one thread of this one.
    is_alone = options.device == "cpu" and options.threads == 1
    clock = time.process_time if is_alone else time.perf_counter
    rows = []
    for length in options.lengths:
        case = dict(
            length=length, vocabulary=options.vocabulary, tokens=options.tokens,
            device=options.device, precision=options.precision,
        )  # fmt: skip
        rows += _measure(case, options.seconds, clock)
    write_report(options, rows, _table)


def _parse() -> argparse.Namespace:
    summary = __doc__.split("\n\n")[0]
    parser = parser_of_updates(summary, Path("runs/bench_attention.json"))
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=LENGTHS, help="of all sentences")
    add("--vocabulary", type=int, default=6000)
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    return parser.parse_args()


def _measure(
    case: dict[str, Any], seconds: float, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    ground_memory = peak_in_child(__file__, {**case, "system": None})
    ground = _update({**case, "system": None})
    rows = []
    for system, options in SYSTEMS.items():
        needs_library = options.get("topk_operator") == "entmax15"
        if needs_library and importlib.util.find_spec("entmax") is None:
            continue
        row = {**case, "system": system}
        row |= compare_in_turns(_update(row), ground, seconds, clock=clock)
        row["megabytes"] = peak_in_child(__file__, {**case, "system": system}) / 1e6
        row["memory_ratio"] = 1e6 * row["megabytes"] / ground_memory
        rows.append(row)
        print(
            f"length {case['length']:3} {system:34} {row['milliseconds']:7.0f} ms ="
            f" {row['ratio']:5.2f} x plain, memory {row['megabytes']:6.0f} MB ="
            f" {row['memory_ratio']:5.2f} x",
            flush=True,
        )
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    """Return a line for each length and system, in Markdown."""
    lines = ["| length | system | time | quartiles | memory |", "|---|---|---|---|---|"]
    for row in rows:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['length']} | {row['system']} | {row['ratio']:.2f} x "
            f"| {low:.2f} to {high:.2f} | {row['memory_ratio']:.2f} x |"
        )
    return "\n".join(lines)


def _peak(case: dict[str, Any]) -> int:
    _update({**case, "tokens": 2 * case["length"]})()  # libraries allocate at first
    return peak_beyond(_update(case), device=case["device"])


def _update(case: dict[str, Any]) -> Callable[[], None]:
    """Return a forward and backward pass of one batch."""
    from fairseq.criterions.label_smoothed_cross_entropy import (
        LabelSmoothedCrossEntropyCriterion,
    )

    system = case["system"]
    options = {} if system is None else SYSTEMS[system]
    arch = "transformer" if system is None else "transformer_topk"
    task, model = random_model({**case, "arch": arch}, **options)
    _sharpen(model)
    model.to(_DTYPES[case["precision"]])
    criterion = LabelSmoothedCrossEntropyCriterion(task, False, 0.1)
    return gradient_update(model, criterion, random_batch(case, task))


_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@torch.no_grad()
def _sharpen(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            parameter *= GAIN**0.5


if __name__ == "__main__":
    run_command_line(main)
