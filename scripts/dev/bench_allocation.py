"""What an update on a CPU costs with and without glibc keeping its memory.

    python scripts/dev/bench_allocation.py \\
        --output results/beam_training/allocation.json

Each turn starts two processes, one with the variables that scripts/train.py sets
(`fairseq_plugins.utils.process.ALLOCATION`) and one without, which make updates of a
model of random weights by cross entropy. It is their CPU time that counts, which other
processes hardly change.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measuring import environment, timed
from random_models import (
    MODELS,
    gradient_update,
    random_batch,
    random_model,
)

from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import write_json
from fairseq_plugins.utils.process import ALLOCATION

_WARM_UP, _UPDATES = 3, 12


def main() -> None:
    options = _parse()
    if options.child:
        print(_seconds_an_update(options))
        return
    rows = [_row(arch, options) for arch in options.models]
    report = {"environment": environment("cpu", 1), "rows": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, report)
    for row in rows:
        print(f"{row['arch']}: {row['ratio']:.2f} x the CPU time without")
    print(f"written to {options.output}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/bench_allocation.json"))
    add("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    add("--vocabulary", type=int, default=6_000)
    add("--length", type=int, default=16, help="of the sentences, tokens")
    add("--tokens", type=int, default=2_400, help="target tokens in the batch")
    add("--turns", type=int, default=5)
    add("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _row(arch: str, options: argparse.Namespace) -> dict[str, Any]:
    plain = {k: v for k, v in os.environ.items() if k not in ALLOCATION}
    kept: list[float] = []
    given: list[float] = []
    for _ in range(options.turns):
        kept.append(_in_child(arch, options, plain | ALLOCATION))
        given.append(_in_child(arch, options, plain))
    ratios = sorted(each / base for each, base in zip(kept, given))
    return {
        "arch": arch,
        "vocabulary": options.vocabulary,
        "length": options.length,
        "tokens": options.tokens,
        "cpu_seconds_with": statistics.median(kept),
        "cpu_seconds_without": statistics.median(given),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def _in_child(
    arch: str, options: argparse.Namespace, variables: dict[str, str]
) -> float:
    command = [
        sys.executable, __file__, "--child", "--models", arch,
        "--vocabulary", str(options.vocabulary), "--length", str(options.length),
        "--tokens", str(options.tokens),
    ]  # fmt: skip
    answer = subprocess.run(
        command, capture_output=True, text=True, check=True, env=variables
    )
    return float(answer.stdout.split()[-1])


def _seconds_an_update(options: argparse.Namespace) -> float:
    from fairseq.criterions.cross_entropy import CrossEntropyCriterion

    torch.set_num_threads(1)
    case = {**vars(options), "arch": options.models[0], "device": "cpu"}
    task, model = random_model(case)
    criterion = CrossEntropyCriterion(task, sentence_avg=False)
    update = gradient_update(model, criterion, random_batch(case, task))
    timed(update, _WARM_UP, time.process_time)
    return timed(update, _UPDATES, time.process_time)


if __name__ == "__main__":
    run_command_line(main)
