"""Join aligned texts into a subset: training text cleaned, the others as they are."""
from __future__ import annotations

import collections
import contextlib
import functools
import itertools
from pathlib import Path
from typing import IO, Iterator, NamedTuple, Sequence

import numpy as np

from fairseq_plugins.pipeline.duplicates import digest_of_pair, mark_first
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import write_atomically
from fairseq_plugins.pipeline.filters import PairFilter, has_text
from fairseq_plugins.pipeline.progress import Progress
from fairseq_plugins.pipeline.recipe import Cleaning
from fairseq_plugins.pipeline.workers import Block, blocks_of, in_order, read_block

__all__ = ["PlainPart", "clean_training_text", "join_whole_text"]

_BUFFER = 1 << 20


class PlainPart(NamedTuple):
    """A part as plain text, and the names of its sides for people."""

    source: Path
    target: Path
    names: tuple[str, str]


def join_whole_text(
    parts: Sequence[PlainPart], source: Path, target: Path
) -> dict[str, int]:
    """Join valid or test text, of which nothing may be dropped.

    Raises:
        UserError: a side is empty; the message names its file and line.
    """
    pairs = 0
    with write_atomically(source, "wb") as source_out, write_atomically(
        target, "wb"
    ) as target_out:
        for part in parts:
            with open(part.source, "rb") as first, open(part.target, "rb") as second:
                for number, lines in enumerate(zip(first, second), start=1):
                    for line, name in zip(lines, part.names):
                        if not has_text(line.decode()):
                            raise UserError(
                                f"`{name}` is empty in line {number}. Only training "
                                "pairs may be dropped; valid and test must be whole."
                            )
                    source_out.write(lines[0])
                    target_out.write(lines[1])
                    pairs += 1
    return {"pairs": pairs}


def clean_training_text(
    parts: Sequence[PlainPart],
    source: Path,
    target: Path,
    *,
    cleaning: Cleaning,
    workers: int,
) -> dict[str, int]:
    """Join training text, without the pairs that break a rule.

    Returns:
        counts of pairs: those ``read``, those dropped by each rule, with
        ``normalise`` the ``changed`` lines, and the ``pairs`` that were written.

    Raises:
        UserError: no pair is left.
    """
    rules = PairFilter(cleaning)
    counts = collections.Counter({name: 0 for name in ("read", *rules.names)})
    tasks = [
        task
        for part in parts
        for task in zip(blocks_of(part.source), blocks_of(part.target))
    ]
    digests = source.with_name(f".{source.name}.digests.partial")
    with contextlib.ExitStack() as stack:
        outs = [_output(stack, path) for path in (source, target)]
        stack.callback(digests.unlink, missing_ok=True)
        with open(digests, "wb") as digests_out:
            progress = Progress("pairs")
            make = functools.partial(_BlockCleaner, cleaning)
            for block in in_order(make, tasks, workers=workers):
                counts.update(block.counts)
                progress.add(block.counts["read"])
                outs[0].write(block.source)
                outs[1].write(block.target)
                digests_out.write(block.digests)
        counts["pairs"] = counts["read"] - sum(counts[name] for name in rules.names)
        if cleaning.drop_duplicates:
            repeated = _drop_repeated(outs, digests)
            counts["pairs"] -= repeated
            counts = _with_duplicates(counts, repeated)
        if not counts["pairs"]:
            raise UserError(_nothing_left(counts))
    return dict(counts)


def _output(stack: contextlib.ExitStack, path: Path) -> IO[bytes]:
    stream: IO[bytes] = stack.enter_context(write_atomically(path, "w+b"))
    return stream


def _with_duplicates(
    counts: collections.Counter[str], repeated: int
) -> collections.Counter[str]:
    pairs = counts.pop("pairs")
    counts["dropped_duplicate"] = repeated
    counts["pairs"] = pairs
    return counts


def _nothing_left(counts: collections.Counter[str]) -> str:
    reasons = {
        "dropped_empty": "have an empty side",
        "dropped_too_long": "are too long",
    }
    dropped = [
        f"{count:,} {reasons.get(name, 'fall to ' + name.removeprefix('dropped_'))}"
        for name, count in counts.items()
        if name.startswith("dropped") and (count or name in reasons)
    ]
    listed = ", ".join(dropped[:-1]) + " and " + dropped[-1]
    return f"no training pair is left of {counts['read']:,}: {listed}."


class _CleanBlock(NamedTuple):
    source: bytes
    target: bytes
    digests: bytes
    counts: dict[str, int]


class _BlockCleaner:
    """What a worker process does with aligned blocks of lines."""

    def __init__(self, cleaning: Cleaning) -> None:
        self._cleaning, self._rules = cleaning, PairFilter(cleaning)

    def __call__(self, blocks: tuple[Block, Block]) -> _CleanBlock:
        sides = [read_block(block).decode().split("\n")[:-1] for block in blocks]
        kept: list[tuple[str, str]] = []
        counts: collections.Counter[str] = collections.Counter(read=len(sides[0]))
        changed = 0
        for source, target in zip(*sides):
            outcome = self._rules(source, target)
            if isinstance(outcome, str):
                counts[outcome] += 1
            else:
                kept.append(outcome)
                changed += outcome != (source, target)
        if self._cleaning.normalise:
            counts["changed"] = changed
        digests = b""
        if self._cleaning.drop_duplicates:
            digests = b"".join(itertools.starmap(digest_of_pair, kept))
        texts = ["".join(f"{pair[i]}\n" for pair in kept).encode() for i in (0, 1)]
        return _CleanBlock(texts[0], texts[1], digests, dict(counts))


def _drop_repeated(outs: Sequence[IO[bytes]], digests: Path) -> int:
    """Take repeated pairs out of the texts that were written; return their number.

    The texts are closed up in place: what is read lies never before what is written.
    """
    marks = digests.with_name(digests.name.replace("digests", "marks"))
    try:
        repeated = mark_first(digests, marks)
        if repeated:
            for out in outs:
                _close_up(out, marks)
    finally:
        marks.unlink(missing_ok=True)
    return repeated


def _close_up(out: IO[bytes], marks: Path) -> None:
    out.flush()
    with open(out.name, "rb") as lines, open(marks, "rb") as chosen:
        place = 0
        for batch in _batches(lines, chosen):
            out.seek(place)
            place += out.write(batch)
            out.flush()
    out.truncate(place)
    out.seek(place)


def _batches(lines: IO[bytes], chosen: IO[bytes]) -> Iterator[bytes]:
    while marks := chosen.read(_BUFFER >> 6):
        batch = list(itertools.islice(lines, len(marks)))
        yield b"".join(itertools.compress(batch, np.frombuffer(marks, np.uint8)))
