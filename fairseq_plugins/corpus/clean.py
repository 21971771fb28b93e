"""Find repeated pairs by their digests, with memory that does not grow with them.

What becomes of a training pair: normalised, kept, or dropped and by which rule.

Join aligned texts into a subset: training text cleaned, the others as they are.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import itertools
import re
import unicodedata
from pathlib import Path
from typing import IO, Callable, Iterator, Mapping, NamedTuple, Sequence

import numpy as np

from fairseq_plugins.corpus.recipe import Cleaning
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import write_atomically
from fairseq_plugins.utils.progress import Progress
from fairseq_plugins.utils.workers import Block, blocks_of, in_order, read_block

__all__ = [
    "DIGEST_BYTES",
    "PairFilter",
    "PlainPart",
    "clean_training_text",
    "digest_of_pair",
    "has_text",
    "join_whole_text",
    "mark_first",
    "normalised",
]

# 128 bits: among 10^8 pairs the odds that two different ones collide are 10^-23.
DIGEST_BYTES = 16
_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
# Digests that are sorted at once: 24 bytes each with their places, and a few copies.
_AT_ONCE = 1 << 20


def digest_of_pair(source: str, target: str) -> bytes:
    """Return a digest of both sides, which hold no line feed."""
    text = f"{source}\n{target}".encode()
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()


def mark_first(digests: Path, marks: Path, *, at_once: int = _AT_ONCE) -> int:
    """Write one byte for each digest: 1 where it stands for the first time.

    The digests are scanned once for each share of about ``at_once`` of them; a share
    has those whose value falls into its class, so that equal ones are in one share.

    Args:
        digests: file of digests, :data:`DIGEST_BYTES` each.
        marks: file to write.

    Returns:
        the number of repeated ones.
    """
    total = digests.stat().st_size // DIGEST_BYTES
    shares = max(1, -(-total // at_once))
    with open(marks, "wb") as stream:
        stream.truncate(total)
    if not total:
        return 0
    all_digests = np.memmap(digests, _DIGEST, mode="r", shape=(total,))
    first = np.memmap(marks, np.uint8, mode="r+", shape=(total,))
    repeated = 0
    for share in range(shares):
        values, places = _share(all_digests, share, shares, at_once)
        # Stable, so that of equal digests the earliest comes first.
        order = np.lexsort((values["low"], values["high"]))
        ordered = values[order]
        is_first = np.ones(len(ordered), np.uint8)
        is_first[1:] = ordered[1:] != ordered[:-1]
        first[places[order]] = is_first
        repeated += len(ordered) - int(is_first.sum())
    first.flush()
    return repeated


def _share(
    digests: np.ndarray, share: int, shares: int, at_once: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the digests of a share, in their order, and their places."""
    values, places = [], []
    for start in range(0, len(digests), at_once):
        chunk = np.array(digests[start : start + at_once])
        chosen = np.flatnonzero(chunk["high"] % np.uint64(shares) == share)
        values.append(chunk[chosen])
        places.append(chosen + start)
    return np.concatenate(values), np.concatenate(places)


# Printable, but nothing to SentencePiece: its own word mark and the replacement
# character of damaged text.
_DROPPED = "\u2581\ufffd"
# Control and format characters (Cc, Cf): white space among them becomes a space, the
# others vanish, but for the joiners that some scripts spell with.
_JOINERS = "\u200c\u200d"
_SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\u2028\u2029"


def has_text(line: str) -> bool:
    """Tell whether SentencePiece would leave anything of a line."""
    return any(
        char.isprintable() and not char.isspace() and char not in _DROPPED
        for char in line
    )


def _removals() -> Mapping[int, str | None]:
    table: dict[int, str | None] = {}
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cc", "Cf"):
            table[code] = None
    table.update({ord(char): " " for char in _SPACES})
    for char in _JOINERS:
        del table[ord(char)]
    return table


_REMOVED = _removals()
_UNCLEAN = re.compile("[" + re.escape("".join(map(chr, _REMOVED))) + "]")
_NO_LETTERS = re.compile(r"[\W\d_]+")


def normalised(line: str) -> str:
    """Return a line in NFC, without control characters, with single spaces.

    No-break spaces stay: French puts them before its punctuation, and SentencePiece
    has its own opinion about them.
    """
    if not line.isascii():
        line = unicodedata.normalize("NFC", line)
    if not line.isprintable() and _UNCLEAN.search(line):
        line = line.translate(_REMOVED)
    if "  " in line or line[:1] == " " or line[-1:] == " ":
        line = " ".join(word for word in line.split(" ") if word)
    return line


class PairFilter:
    """The rules of a :class:`Cleaning`, each of which names the count that it adds to.

    Attributes:
        names: of the counts of dropped pairs, in the order of the rules.
    """

    def __init__(self, cleaning: Cleaning) -> None:
        self._rules: list[tuple[str, Callable[[str, str], bool]]] = []
        self._normalise = cleaning.normalise
        most, ratio = cleaning.max_words, cleaning.max_ratio
        length, letters = cleaning.max_word_length, cleaning.min_letters
        self._add("empty", lambda source, target: not (
            has_text(source) and has_text(target)))  # fmt: skip
        self._add("too_long", lambda source, target: _words(source, target)[1] > most)
        if ratio is not None:
            self._add("ratio", lambda source, target: _is_lopsided(
                *_words(source, target), ratio))  # fmt: skip
        if length is not None:
            word = re.compile(r"\S{%d}" % (length + 1))
            self._add("long_word", lambda source, target: bool(
                word.search(source) or word.search(target)))  # fmt: skip
        if letters is not None:
            self._add("few_letters", lambda source, target: (
                _lacks_letters(source, letters) or _lacks_letters(target, letters)
            ))  # fmt: skip
        if cleaning.drop_copies:
            self._add("copy", lambda source, target: source == target)
        self.names = [name for name, _ in self._rules]

    def _add(self, name: str, rule: Callable[[str, str], bool]) -> None:
        self._rules.append((f"dropped_{name}", rule))

    def __call__(self, source: str, target: str) -> tuple[str, str] | str:
        """Return the pair, perhaps normalised, or the name of what drops it."""
        if self._normalise:
            source, target = normalised(source), normalised(target)
        for name, breaks in self._rules:
            if breaks(source, target):
                return name
        return source, target


def _words(source: str, target: str) -> tuple[int, int]:
    """Return the smaller and the larger number of words."""
    counts = len(source.split()), len(target.split())
    return min(counts), max(counts)


def _is_lopsided(fewest: int, most: int, ratio: float) -> bool:
    # Plus one, so that "Oui." may be two or three words elsewhere.
    return most + 1 > ratio * (fewest + 1)


def _lacks_letters(line: str, least: float) -> bool:
    """Tell whether letters and marks are a smaller share of what is not space."""
    if len(_NO_LETTERS.sub("", line)) >= least * (len(line) - line.count(" ")):
        return False
    # Some scripts spell with marks that are no letters to a regular expression.
    kinds = [unicodedata.category(char)[0] for char in line if not char.isspace()]
    return kinds.count("L") + kinds.count("M") < least * len(kinds)


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
