"""Times as ratios of neighbouring turns, and the peak memory of a process."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import torch

from fairseq_plugins.utils.files import write_between, write_json

__all__ = [
    "compare_in_turns",
    "environment",
    "parser_of_updates",
    "peak_beyond",
    "peak_in_child",
    "timed",
    "write_report",
]

SECONDS_PER_TURN = 0.0005  # shorter calls are repeated within a turn


def compare_in_turns(
    job: Callable[[], object],
    ground: Callable[[], object],
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Time two jobs in turn for about ``seconds``; return medians.

    A ratio of neighbouring turns holds on a machine that is busy now and then. On one
    that always is, and for jobs of one thread, ``time.process_time`` is the clock.
    """
    timed(ground, 2, clock)
    once = timed(job, 1, clock)
    if once < seconds:
        once = timed(job, 1, clock)
    repeat = max(1, round(SECONDS_PER_TURN / once))
    ground_repeat = max(1, round(SECONDS_PER_TURN / timed(ground, 2, clock)))
    times: list[float] = []
    bases: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        bases.append(timed(ground, ground_repeat, clock))
        times.append(timed(job, repeat, clock))
    ratios = sorted(each / base for each, base in zip(times, bases))
    return {
        "milliseconds": 1e3 * statistics.median(times),
        "ground_milliseconds": 1e3 * statistics.median(bases),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "turns": len(ratios),
    }


def timed(
    job: Callable[[], object],
    repeat: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the seconds that one of ``repeat`` calls took, the GPU's work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    for _ in range(repeat):
        job()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - start) / repeat


def peak_beyond(job: Callable[[], object], *, device: str = "cpu") -> int:
    """Return the bytes that ``job`` needs at its peak, beyond what is held before it.

    Meant for a fresh process: freed memory that an allocator kept does not count.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return torch.cuda.max_memory_allocated() - before
    resident = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    job()
    return _status("VmHWM") - resident


def peak_in_child(script: str, case: dict[str, Any]) -> int:
    """Return what ``script --memory CASE`` prints last, in a process of its own."""
    command = [sys.executable, script, "--memory", json.dumps(case)]
    # Freed memory goes back at once, so that the peak is what is in use.
    returning = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
    answer = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | returning
    )
    return int(answer.stdout.split()[-1])


def environment(device: str, threads: int) -> dict[str, Any]:
    """Describe the command and the machine that it runs on."""
    name = torch.cuda.get_device_name() if device != "cpu" else "cpu"
    return {
        "command": " ".join(["python", *sys.argv]),
        "cpus": os.cpu_count(),
        "threads": threads,
        "device": device,
        "device_name": name,
        "torch": torch.__version__,
        "load_before": os.getloadavg(),
    }


def parser_of_updates(description: str, output: Path) -> argparse.ArgumentParser:
    """Return the options that the benchmarks of whole updates share."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--output", type=Path, default=output)
    add("--page", type=Path, help="document whose table of costs to replace")
    add("--tokens", type=int, default=1024, help="target tokens in the batch")
    add("--seconds", type=float, default=20.0, help="per comparison")
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    add("--memory", help=argparse.SUPPRESS)
    return parser


def write_report(
    options: argparse.Namespace,
    rows: list[dict[str, Any]],
    table: Callable[[list[dict[str, Any]]], str],
) -> None:
    """Write what was measured as JSON and, if asked for, the page's table of it."""
    report = {"environment": environment(options.device, options.threads), "rows": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, report)
    if options.page:
        write_between(options.page, "cost", table(rows))
    print(f"written to {options.output}")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")
