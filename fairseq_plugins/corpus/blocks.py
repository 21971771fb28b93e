"""Process a text in blocks of lines with all cores; results keep the blocks' order."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence, TypeVar

from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.process import die_with_parent

__all__ = ["Block", "default_workers", "map_in_order", "split_into_blocks"]

Task = TypeVar("Task")
Result = TypeVar("Result")

# Enough lines that the overhead of a task is small, few enough that 16 workers share a
# small corpus and that the blocks in flight fit in memory.
LINES_PER_BLOCK = 10_000


class Block(NamedTuple):
    """Lines of a file, by their position: ``size`` bytes from ``start``."""

    path: Path
    start: int
    size: int

    def read_lines(self) -> list[str]:
        """Return the lines without their ends."""
        with open(self.path, "rb") as stream:
            stream.seek(self.start)
            return stream.read(self.size).decode().split("\n")[:-1]


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def split_into_blocks(path: Path) -> list[Block]:
    """Return blocks of equally many lines; the last line must have its end, too."""
    blocks, start = [], 0
    with open(path, "rb") as stream:
        while size := sum(map(len, itertools.islice(stream, LINES_PER_BLOCK))):
            blocks.append(Block(path, start, size))
            start += size
    return blocks


def map_in_order(
    make_function: Callable[[], Callable[[Task], Result]],
    tasks: Sequence[Task],
    *,
    workers: int,
) -> Iterator[Result]:
    """Yield the result of each task, in order, computed by worker processes.

    Each process makes its own function, once. Only a few tasks are ahead of the one
    that is yielded, so memory does not grow with their number. The processes end with
    this one, however it ends.

    Raises:
        UserError: a process was killed, probably because memory ran out.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(make_function(), tasks)
        return
    executor = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_start_worker,
        initargs=(make_function, os.getpid()),
    )
    pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    try:
        for task in tasks:
            pending.append(executor.submit(_run_task, task))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, probably because memory ran out. Run again "
            "with fewer `--workers`."
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_function: list[Callable[[Any], Any]] = []  # of a worker process


def _start_worker(
    make_function: Callable[[], Callable[[Any], Any]], parent: int
) -> None:
    # Ctrl-C reaches the parent, which ends the pool in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    if os.getppid() != parent:  # it died before this process could ask for its signal
        os._exit(1)
    _function[:] = [make_function()]


def _run_task(task: Any) -> Any:
    return _function[0](task)
