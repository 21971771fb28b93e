"""CPU time of an update with and without glibc keeping freed memory.

    python scripts/dev/bench_allocation.py

Each turn starts two processes that make updates of a model of random weights with cross
entropy: one with the variables that scripts/train.py sets
(`fairseq_plugins.utils.process.ALLOCATION`) and one without. CPU time is compared,
which other processes hardly change.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from measure import create_parser, describe_machine, time_calls
from random_models import SIZES, create_batch, create_model, create_task, create_update
from results_tables import merge_rows

from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.process import ALLOCATION

_WARM_UP, _UPDATES = 3, 12


def main() -> None:
    options = _parse()
    if options.child:
        print(_time_update(options))
        return
    rows = [_measure(model, options) for model in options.models]
    merge_rows(options.output, rows, ("model", "vocabulary", "length", "tokens"))
    for row in rows:
        print(f"{row['model']}: {row['ratio']:.2f} x the CPU time without")


def _parse() -> argparse.Namespace:
    parser = create_parser(__doc__, "allocation.csv")
    add = parser.add_argument
    add("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    add("--vocabulary", type=int, default=6_000)
    add("--length", type=int, default=16, help="of the sentences, in tokens")
    add("--tokens", type=int, default=2_400, help="target tokens in the batch")
    add("--turns", type=int, default=5)
    add("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    plain = {k: v for k, v in os.environ.items() if k not in ALLOCATION}
    sizes = {
        name: getattr(options, name) for name in ("vocabulary", "length", "tokens")
    }
    command = [sys.executable, __file__, "--child", "--models", model]
    command += [f"--{name}={value}" for name, value in sizes.items()]
    with_: list[float] = []
    without: list[float] = []
    for _ in range(options.turns):
        for seconds, variables in ((with_, plain | ALLOCATION), (without, plain)):
            output = subprocess.check_output(command, env=variables, text=True)
            seconds.append(float(output.split()[-1]))
    ratios = [each / base for each, base in zip(with_, without)]
    return {
        "model": model,
        **sizes,
        "cpu_seconds_with": statistics.median(with_),
        "cpu_seconds_without": statistics.median(without),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "turns": options.turns,
        **describe_machine(),
    }


def _time_update(options: argparse.Namespace) -> float:
    from fairseq.criterions.cross_entropy import CrossEntropyCriterion

    torch.set_num_threads(1)
    task = create_task(options.vocabulary)
    model = create_model(task, options.models[0], **SIZES[options.models[0]])
    criterion = CrossEntropyCriterion(task, sentence_avg=False)
    sample = create_batch(task, tokens=options.tokens, length=options.length)
    update = create_update(model, criterion, sample)
    time_calls(update, _WARM_UP, time.process_time)
    return time_calls(update, _UPDATES, time.process_time)


if __name__ == "__main__":
    run_command_line(main)
