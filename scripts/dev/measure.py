"""Time and memory: of calls by turns with a baseline, and of whole commands."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import psutil
from results_tables import RESULTS

__all__ = [
    "Usage",
    "compare_in_turns",
    "create_parser",
    "describe_machine",
    "measure_command",
    "measure_peak",
    "measure_peak_in_child",
    "time_calls",
]

Clock = Callable[[], float]
Job = Callable[[], object]

SECONDS_PER_TURN = 0.0005  # shorter calls are repeated within a turn
_SECONDS_BETWEEN_SAMPLES = 0.1


class Usage(NamedTuple):
    """What a command used.

    Attributes:
        seconds: from start to end.
        cpu_seconds: of all its processes, user and system.
        peak_mb: largest memory of all its processes together; a page that several
            share counts once (PSS).
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float


def create_parser(description: str | None, file: str) -> argparse.ArgumentParser:
    """Return a parser with the option for the CSV file to which rows are added."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS / file, metavar="FILE",
        help=f"CSV file to which rows are added (default: results/{file})",
    )  # fmt: skip
    return parser


def describe_machine(*, threads: int = 1, device: str = "cpu") -> dict[str, Any]:
    """Return the columns that tell where rows were measured."""
    if device != "cpu":
        import torch

        device = torch.cuda.get_device_name(device)
    return {"threads": threads, "device": device, "torch": version("torch"),
            "load": os.getloadavg()[0]}  # fmt: skip


def compare_in_turns(
    job: Job, baseline: Job, seconds: float, *, clock: Clock = time.perf_counter
) -> dict[str, Any]:
    """Time two jobs in turns for about ``seconds``; return medians.

    A ratio of neighboring turns is reliable on a machine that is busy at times. On one
    that is always busy, ``time.process_time`` is the clock for jobs of one thread.
    """
    time_calls(baseline, 2, clock)
    once = time_calls(job, 1, clock)
    if once < seconds:
        once = time_calls(job, 1, clock)
    repeat = max(1, round(SECONDS_PER_TURN / once))
    base_repeat = max(1, round(SECONDS_PER_TURN / time_calls(baseline, 2, clock)))
    times: list[float] = []
    bases: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        bases.append(time_calls(baseline, base_repeat, clock))
        times.append(time_calls(job, repeat, clock))
    ratios = sorted(each / base for each, base in zip(times, bases))
    return {
        "ms": 1e3 * statistics.median(times),
        "baseline_ms": 1e3 * statistics.median(bases),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[len(ratios) // 4],
        "ratio_high": ratios[3 * len(ratios) // 4],
        "turns": len(ratios),
    }


def time_calls(job: Job, repeat: int, clock: Clock = time.perf_counter) -> float:
    """Return the seconds per call of ``repeat`` calls, with the GPU's work."""
    import torch  # not for commands, which would count its import as theirs

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    for _ in range(repeat):
        job()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - start) / repeat


def measure_peak(job: Job, *, device: str = "cpu") -> int:
    """Return the bytes that ``job`` needs at its peak, beyond those held before it.

    Meant for a fresh process (`measure_peak_in_child`): otherwise freed memory that the
    allocator kept does not count.
    """
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return torch.cuda.max_memory_allocated() - before
    resident = _read_status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    job()
    return _read_status("VmHWM") - resident


def measure_peak_in_child(script: str, case: dict[str, Any]) -> int:
    """Return the number that ``script --memory CASE`` prints last."""
    command = [sys.executable, script, "--memory", json.dumps(case)]
    # Freed memory is returned at once, so that the peak is the memory in use.
    returning = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
    answer = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | returning,
    )  # fmt: skip
    return int(answer.stdout.split()[-1])


def measure_command(command: Sequence[str], *, stdout: Any = sys.stderr) -> Usage:
    """Run a command to its end; its output goes to ``stdout``.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started, peak = time.monotonic(), 0
    process = psutil.Popen(command, stdout=stdout)
    while process.poll() is None:
        peak = max(peak, _sum_memory(process))
        time.sleep(_SECONDS_BETWEEN_SAMPLES)
    seconds = time.monotonic() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Usage(round(seconds, 2), round(cpu, 2), round(peak / 2**20, 1))


def _sum_memory(process: Any) -> int:
    """Return the bytes of a process and its descendants, without ended ones."""
    total = 0
    try:
        for member in [process, *process.children(recursive=True)]:
            total += member.memory_full_info().pss
    except psutil.Error:  # it has just ended
        pass
    return total


def _read_status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")
