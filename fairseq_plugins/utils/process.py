"""Run one of fairseq's commands: watch its output, keep it, and end with it."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import io
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Callable, Iterable, Iterator, Sequence, TextIO

__all__ = [
    "ALLOCATION",
    "LAST_LINES",
    "Outcome",
    "die_with_parent",
    "end_by",
    "kill",
    "output_of",
    "pass_signals_on",
    "run_logged",
    "start",
]

LAST_LINES = 12  # of a command's output, for a message
# On a CPU, glibc gives every tensor of logits fresh pages and takes them away again at
# once (scripts/dev/bench_allocation.py). So it keeps what it has, up to these sizes.
ALLOCATION = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),  # bytes
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
_LINUX_PR_SET_PDEATHSIG = 1
_MILLISECONDS_BETWEEN_LOOKS = 1000  # for signals


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: as a shell gives it, so 128 + N for a command ended by signal N.
        last_lines: the end of its output.
    """

    status: int
    last_lines: list[str]

    @classmethod
    def of(cls, returncode: int, last_lines: Iterable[str]) -> Outcome:
        """Make it of what :class:`subprocess.Popen` says."""
        status = returncode if returncode >= 0 else 128 - returncode
        return cls(status, list(last_lines))


def run_logged(
    command: Sequence[str],
    *,
    log: Path,
    append: bool = False,
    on_line: Callable[[str], None],
) -> Outcome:
    """Run a command, write its output to ``log`` and hand on every line.

    Ctrl-C and SIGTERM are passed on to the command and all its processes, and this
    process then ends as it would have ended without a command. If it is killed, so
    is the command (on Linux): two trainings must not write to one folder.

    Args:
        command: program and arguments.
        log: file for output and errors together.
        append: keep what the log holds already.
        on_line: called with each line, its end included.

    Raises:
        KeyboardInterrupt: the command was ended by Ctrl-C.
        SystemExit: the command was ended by SIGTERM.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    last_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
    with open(log, "a" if append else "w", encoding="utf-8", newline="\n") as stream:
        process = start(command)
        with pass_signals_on(process) as received, _ended(process) as output:
            for line in output:
                stream.write(line)
                stream.flush()
                last_lines.append(line.rstrip("\n"))
                on_line(line)
            status = process.wait()
    end_by(received)
    return Outcome.of(status, last_lines)


def end_by(received: Sequence[int]) -> None:
    """End as these signals would have ended this process.

    Raises:
        KeyboardInterrupt, SystemExit: there was one.
    """
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if signal.SIGTERM in received:
        raise SystemExit(128 + signal.SIGTERM)


def start(
    command: Sequence[str], *, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a command in a group of its own that does not outlive this process."""
    output = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**ALLOCATION, **os.environ, **output},
        # A group of its own, so that a Ctrl-C arrives once and not twice.
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends (on Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_LINUX_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[TextIO]:
    """Yield the output; if reading it fails, leave no process behind."""
    try:
        with output_of(process) as output:
            yield output
    finally:
        kill(process)


def output_of(process: subprocess.Popen[bytes]) -> TextIO:
    """Return output and errors as text."""
    assert process.stdout is not None
    buffered = io.BufferedReader(_WakefulPipe(process.stdout))
    # Only a line feed ends a line: text may hold other separators.
    return io.TextIOWrapper(buffered, encoding="utf-8", errors="replace", newline="\n")


class _WakefulPipe(io.RawIOBase):
    """Reads a pipe, and lets Python look for signals every second while it waits.

    Python's handlers run between its instructions. Of a signal that comes after the
    last one of them, but before the read has begun, nothing would be heard until the
    process says its next word, which may be never.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._poll.poll(_MILLISECONDS_BETWEEN_LOOKS):
            pass
        return os.readv(self._pipe.fileno(), [buffer])

    def close(self) -> None:
        self._pipe.close()
        super().close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process of :func:`start` and all that it started, if it is still there."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def pass_signals_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Send SIGINT and SIGTERM to the process' group; a second one kills it."""
    received: list[int] = []

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL if received else signum)
        received.append(signum)

    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(name, pass_on) for name in names]
    try:
        yield received
    finally:
        for name, handler in zip(names, before):
            signal.signal(name, handler)
