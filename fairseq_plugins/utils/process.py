"""Run child processes, log their output, and end them when this process ends.

:func:`run_logged` runs a command. :class:`Worker` keeps a process that answers requests
with :func:`answer_requests`. A request is one line of JSON. An answer is any number of
records and a final ``null``, each in JSON after the character that starts a record in
JSON text sequences (RFC 7464). All other output of the process belongs to the log.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import io
import itertools
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Callable, Iterable, Iterator, Mapping, Sequence, TextIO

__all__ = [
    "ALLOCATION",
    "Outcome",
    "Worker",
    "answer_requests",
    "die_with_parent",
    "run_logged",
]

# On a CPU, glibc gives each tensor of logits new pages and returns them to the system
# at once (scripts/dev/bench_allocation.py). Up to these sizes it keeps them instead.
ALLOCATION = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),  # bytes
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
_LAST_LINES = 12  # of the output, for a message
_LINUX_PR_SET_PDEATHSIG = 1
_MILLISECONDS_BETWEEN_SIGNAL_CHECKS = 1000
_RECORD = "\x1e"


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        status: as in a shell: 128 + N for a process that signal N ended.
        last_lines: the end of its output.
    """

    status: int
    last_lines: list[str]


def run_logged(
    command: Sequence[str],
    *,
    log: Path,
    append: bool = False,
    on_line: Callable[[str], None],
) -> Outcome:
    """Run a command and write its output to ``log``.

    Ctrl-C and SIGTERM are forwarded to the command and all its processes, and then
    end this process as they would without a command. If this process is killed, so is
    the command (on Linux): two trainings must not write to one folder.

    Args:
        command: program and arguments.
        log: file for output and errors together.
        append: keep the content of the log.
        on_line: called with each line, including its end.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the command.
        SystemExit: SIGTERM ended the command.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    last_lines = _LastLines(maxlen=_LAST_LINES)
    with open(log, "a" if append else "w", encoding="utf-8", newline="\n") as stream:
        process = _start(command, stdin=subprocess.DEVNULL)
        try:
            with _forward_signals(process), _read_output(process) as output:
                for line in output:
                    _log_line(line, stream, last_lines)
                    on_line(line)
                process.wait()
        finally:
            _kill(process)
    return _outcome(process, last_lines)


class Worker:
    """A process that is started at the first request and answers more of them.

    Use it as a context manager, which kills the process at the end.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._output: Iterator[str] = iter(())

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        # The process keeps no state that an orderly end would save.
        if self._process is not None:
            _kill(self._process)
            self._process = None

    def ask(
        self,
        request: Mapping[str, Any],
        *,
        log: Path,
        on_record: Callable[[Any], None],
    ) -> Outcome | None:
        """Send a request and pass on all records of the answer.

        Signals are treated as in :func:`run_logged`.

        Args:
            request: JSON.
            log: receives all other output of the process.
            on_record: called with each record as soon as it arrives.

        Returns:
            how the process ended, if it ended before it had answered.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        if self._process is None:
            self._process = _start(self._command, stdin=subprocess.PIPE)
            self._output = iter(_read_output(self._process))
        process, last_lines = self._process, _LastLines(maxlen=_LAST_LINES)
        with open(log, "w", encoding="utf-8", newline="\n") as stream, _forward_signals(
            process
        ):
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # then the output also ends
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            for line in self._output:
                if not line.startswith(_RECORD):
                    _log_line(line, stream, last_lines)
                elif line.endswith(
                    "\n"
                ):  # otherwise the process was killed while writing
                    record = json.loads(line[1:])
                    if record is None:
                        return None
                    on_record(record)
            process.wait()
            self._process = None
        return _outcome(process, last_lines)


def answer_requests(answer: Callable[[Any], Iterable[Any]]) -> None:
    """Call ``answer`` for each request on standard input until the input ends.

    Each record that it yields is sent at once; a record must not be ``None``.
    """
    for line in iter(sys.stdin.readline, ""):
        for record in itertools.chain(answer(json.loads(line)), [None]):
            sys.stdout.write(f"{_RECORD}{json.dumps(record)}\n")
            sys.stdout.flush()


def die_with_parent() -> None:
    """Let the system kill this process when its parent ends (on Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_LINUX_PR_SET_PDEATHSIG, signal.SIGKILL)


_LastLines = collections.deque[str]


def _log_line(line: str, stream: TextIO, last_lines: _LastLines) -> None:
    stream.write(line)
    stream.flush()
    last_lines.append(line.rstrip("\n"))


def _outcome(process: subprocess.Popen[bytes], last_lines: _LastLines) -> Outcome:
    code = process.returncode
    return Outcome(code if code >= 0 else 128 - code, list(last_lines))


def _start(command: Sequence[str], *, stdin: int) -> subprocess.Popen[bytes]:
    output = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**ALLOCATION, **os.environ, **output},
        # In a new process group, so that a Ctrl-C arrives once and not twice.
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group, if it is still running."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _forward_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Send SIGINT and SIGTERM to the group of a process, and a second one as SIGKILL.

    At the end of the block, a signal ends this process as well.
    """
    received: list[int] = []

    def forward(signum: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL if received else signum)
        received.append(signum)

    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(name, forward) for name in names]
    try:
        yield
    finally:
        for name, handler in zip(names, before):
            signal.signal(name, handler)
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if signal.SIGTERM in received:
        raise SystemExit(128 + signal.SIGTERM)


def _read_output(process: subprocess.Popen[bytes]) -> TextIO:
    assert process.stdout is not None
    buffered = io.BufferedReader(_InterruptiblePipe(process.stdout))
    # Only a line feed ends a line: text may contain other separators.
    return io.TextIOWrapper(buffered, encoding="utf-8", errors="replace", newline="\n")


class _InterruptiblePipe(io.RawIOBase):
    """Reads a pipe, and lets Python handle signals every second while it waits.

    Python calls handlers between its instructions. A signal that arrives after the
    last instruction but before the read begins would otherwise wait for the next
    output of the process, which may never come.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._poll.poll(_MILLISECONDS_BETWEEN_SIGNAL_CHECKS):
            pass
        return os.readv(self._pipe.fileno(), [buffer])

    def close(self) -> None:
        self._pipe.close()
        super().close()
