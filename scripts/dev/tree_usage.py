"""What a command costs, with all the processes that it starts (Linux)."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, NamedTuple, Sequence

__all__ = ["Usage", "run_measured"]

_SECONDS_BETWEEN_LOOKS = 0.1


class Usage(NamedTuple):
    """Attributes:
    seconds: from start to end.
    cpu_seconds: of all processes, user and system.
    peak_mb: most memory that all held at one time, shared pages counted once (PSS).
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float


def run_measured(command: Sequence[str], *, stdout: IO[Any] = sys.stderr) -> Usage:
    """Run a command to its end; its output goes to ``stdout``.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=stdout)
    while process.poll() is None:
        peak = max(peak, sum(map(_memory, _family(process.pid))))
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    seconds = time.monotonic() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Usage(round(seconds, 2), round(cpu, 2), round(peak / 1024, 1))


def _family(pid: int) -> list[int]:
    found = [pid]
    for member in found:
        try:
            for task in os.listdir(f"/proc/{member}/task"):
                children = Path(f"/proc/{member}/task/{task}/children").read_text()
                found.extend(map(int, children.split()))
        except OSError:
            continue
    return found


def _memory(pid: int) -> int:
    """Return the kilobytes of a process; 0 if it has just ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
