"""A process that is started once and answers requests until it is no longer needed.

Both sides speak lines: a request is one line of JSON, an answer any number of records
and ``null`` at its end, each after the character that JSON text sequences have for it
(RFC 7464). Whatever else the process prints is for the log.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

from fairseq_plugins.utils.process import (
    LAST_LINES,
    Outcome,
    end_by,
    kill,
    output_of,
    pass_signals_on,
    start,
)

__all__ = ["Worker", "answer_requests"]

_RECORD = "\x1e"


class Worker:
    """The side that asks; a context manager, at whose end the process is killed.

    Nothing is started before the first request.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._output: Iterator[str] = iter(())

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        # It holds nothing that is worth the time of a tidy end.
        if self._process is not None:
            kill(self._process)
            self._process = None

    def ask(
        self,
        request: Mapping[str, Any],
        *,
        log: Path,
        on_record: Callable[[Any], None],
    ) -> Outcome | None:
        """Hand on all records of the answer; return how the process ended if it did.

        Signals are treated as in :func:`process.run_logged`.

        Args:
            request: JSON.
            log: receives what the process prints besides.
            on_record: called with each record as soon as it is there.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        if self._process is None:
            self._process = start(self._command, stdin=subprocess.PIPE)
            self._output = iter(output_of(self._process))
        last_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        with (
            open(log, "w", encoding="utf-8", newline="\n") as stream,
            pass_signals_on(self._process) as received,
        ):
            self._send(request)
            for line in self._output:
                if not line.startswith(_RECORD):
                    stream.write(line)
                    stream.flush()
                    last_lines.append(line.rstrip("\n"))
                elif line.endswith("\n"):  # else it was killed while it wrote
                    record = json.loads(line[1:])
                    if record is None:
                        break
                    on_record(record)
            else:
                outcome = Outcome.of(self._process.wait(), last_lines)
                self._process = None
        end_by(received)
        return outcome if self._process is None else None

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, which the end of its output tells


def answer_requests(answer: Callable[[Any], Iterable[Any]]) -> None:
    """Be the side that answers: call ``answer`` for each request until there is none.

    What it yields is sent at once; none of it may be ``None``.
    """
    for line in iter(sys.stdin.readline, ""):
        for record in answer(json.loads(line)):
            _write(record)
        _write(None)


def _write(record: Any) -> None:
    sys.stdout.write(f"{_RECORD}{json.dumps(record)}\n")
    sys.stdout.flush()
