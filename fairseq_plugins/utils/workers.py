"""Work on blocks of lines with all cores, results in the order of the blocks."""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence, TypeVar

from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.process import die_with_parent

__all__ = ["Block", "blocks_of", "default_workers", "in_order", "read_block"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_CHUNK = 1 << 22
# Enough lines to keep the price of a task small, few enough that 16 workers share the
# work of a small corpus and that the blocks in flight fit in memory.
LINES_PER_BLOCK = 10_000


class Block(NamedTuple):
    """Lines of a file, by their place: ``size`` bytes from ``start``."""

    path: Path
    start: int
    size: int


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def blocks_of(path: Path) -> list[Block]:
    """Cut a file whose every line has its end into blocks of equally many lines."""
    lines = LINES_PER_BLOCK
    ends = [0]
    place = count = 0
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            newlines = chunk.count(b"\n")
            if count + newlines < lines:
                count += newlines
            else:
                start = -1
                for _ in range(newlines):
                    start = chunk.index(b"\n", start + 1)
                    count += 1
                    if count == lines:
                        ends.append(place + start + 1)
                        count = 0
            place += len(chunk)
    if ends[-1] != place:
        ends.append(place)
    return [Block(path, start, end - start) for start, end in zip(ends, ends[1:])]


def read_block(block: Block) -> bytes:
    """Return the bytes of a block."""
    with open(block.path, "rb") as stream:
        stream.seek(block.start)
        return stream.read(block.size)


def in_order(
    make_function: Callable[[], Callable[[Task], Result]],
    tasks: Sequence[Task],
    *,
    workers: int,
) -> Iterator[Result]:
    """Yield what a function makes of each task, in order, worked out by processes.

    Each process makes its own function, once. Only a few tasks are ahead of the one
    that is yielded, so that memory does not grow with their number. The processes end
    with this one, however it ends.

    Raises:
        UserError: a process was killed, most likely for want of memory.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(make_function(), tasks)
        return
    executor = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_begin,
        initargs=(make_function, os.getpid()),
    )
    pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    try:
        for task in tasks:
            pending.append(executor.submit(_work, task))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely for want of memory. Run again "
            "with fewer --workers."
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_function: list[Callable[[Any], Any]] = []


def _begin(make_function: Callable[[], Callable[[Any], Any]], parent: int) -> None:
    # Ctrl-C reaches the parent, which ends the pool in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    if os.getppid() != parent:  # it died before this process could ask for its signal
        os._exit(1)
    _function[:] = [make_function()]


def _work(task: Any) -> Any:
    return _function[0](task)
