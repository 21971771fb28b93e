"""Decide which training pairs are kept: rules for one pair, and repeated pairs.

:class:`PairFilter` applies the rules of a recipe's ``cleaning`` to one pair, in the
order in which they stand there. :func:`find_first` finds repeated pairs.
:func:`clean_training_text` applies both to joined text, and counts. Valid and test text
is only joined.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import itertools
import logging
import re
import unicodedata
from pathlib import Path
from typing import IO, Callable, NamedTuple, Sequence

import numpy as np

from fairseq_plugins.corpus.blocks import Block, map_in_order, split_into_blocks
from fairseq_plugins.corpus.recipe import Cleaning
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import write_atomically
from fairseq_plugins.utils.progress import progress_bar

__all__ = [
    "PairFilter",
    "PlainPart",
    "clean_training_text",
    "find_first",
    "hash_pair",
    "has_text",
    "join_whole_text",
    "normalize_line",
]

logger = logging.getLogger(__name__)

# Visible, but dropped by SentencePiece: its own word mark and the replacement character
# of damaged text.
_DROPPED = "\u2581\ufffd"
# Categories without a visible form. Private-use characters and those that are newer
# than Python's tables have one.
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")
_MOST_EMPTY = 0.01  # fraction of a valid or test set
_SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\u2028\u2029"
_JOINERS = "\u200c\u200d"  # format characters that some scripts need
_NO_LETTERS = re.compile(r"[\W\d_]+")
# 128 bits: among 10^8 pairs, the odds that two different ones collide are 10^-23.
_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
_DIGESTS_AT_ONCE = 1 << 20  # sorted at once: 24 bytes each, and a few copies
_LINES_AT_ONCE = 1 << 14


def has_text(line: str) -> bool:
    """Tell whether SentencePiece would keep anything of a line."""
    return any(
        unicodedata.category(char) not in _INVISIBLE and char not in _DROPPED
        for char in line
    )


def normalize_line(line: str) -> str:
    """Return a line in NFC, without control characters, with single spaces.

    No-break spaces stay: French puts them before its punctuation, and SentencePiece
    treats them itself.
    """
    if not line.isascii():
        line = unicodedata.normalize("NFC", line)
    if not line.isprintable():
        line = "".join(map(_replace_control, line))
    if "  " in line or line[:1] == " " or line[-1:] == " ":
        line = " ".join(word for word in line.split(" ") if word)
    return line


@functools.cache
def _replace_control(char: str) -> str:
    if char in _SPACES:
        return " "
    is_control = unicodedata.category(char) in ("Cc", "Cf") and char not in _JOINERS
    return "" if is_control else char


class PairFilter:
    """The rules of a :class:`Cleaning`; each has its own count of dropped pairs.

    Attributes:
        names: the names of these counts, in the order of the rules.
    """

    def __init__(self, cleaning: Cleaning) -> None:
        self._normalize = cleaning.normalise
        ratio, letters = cleaning.max_ratio, cleaning.min_letters
        rules: dict[str, Callable[[str, str], bool]] = {
            "empty": lambda *pair: not all(map(has_text, pair)),
            "too_long": lambda *pair: max(_count_words(pair)) > cleaning.max_words,
        }
        if ratio is not None:
            rules["ratio"] = lambda *pair: _is_lopsided(_count_words(pair), ratio)
        if cleaning.max_word_length is not None:
            long_word = re.compile(r"\S{%d}" % (cleaning.max_word_length + 1))
            rules["long_word"] = lambda *pair: any(map(long_word.search, pair))
        if letters is not None:
            rules["few_letters"] = lambda *pair: any(
                _lacks_letters(line, letters) for line in pair
            )
        if cleaning.drop_copies:
            rules["copy"] = lambda source, target: source == target
        self._rules = {f"dropped_{name}": rule for name, rule in rules.items()}
        self.names = list(self._rules)

    def __call__(self, source: str, target: str) -> tuple[str, str] | str:
        """Return the pair, normalized if asked for, or the name of the broken rule."""
        if self._normalize:
            source, target = normalize_line(source), normalize_line(target)
        for name, is_broken in self._rules.items():
            if is_broken(source, target):
                return name
        return source, target


def _count_words(pair: tuple[str, ...]) -> list[int]:
    return [len(line.split()) for line in pair]


def _is_lopsided(counts: list[int], ratio: float) -> bool:
    # Plus one, so that "Oui." may be two or three words in another language.
    return max(counts) + 1 > ratio * (min(counts) + 1)


def _lacks_letters(line: str, least: float) -> bool:
    """Tell whether the fraction of letters and marks is too small, without spaces."""
    if len(_NO_LETTERS.sub("", line)) >= least * (len(line) - line.count(" ")):
        return False
    # Some scripts write vowels as marks, which regular expressions do not call letters.
    kinds = [unicodedata.category(char)[0] for char in line if not char.isspace()]
    return kinds.count("L") + kinds.count("M") < least * len(kinds)


class PlainPart(NamedTuple):
    """A part as plain text, and the names of its sides for messages."""

    source: Path
    target: Path
    names: tuple[str, str]


def join_whole_text(
    parts: Sequence[PlainPart], source: Path, target: Path
) -> dict[str, int]:
    """Join valid or test text, of which nothing may be dropped.

    Single lines without text are reported and stay.

    Raises:
        UserError: more than one line and more than 1 % of a side have no text; the
            message names its file and the first such line.
    """
    pairs = 0
    with write_atomically(source, "wb") as source_out, write_atomically(
        target, "wb"
    ) as target_out:
        for part in parts:
            empty: tuple[list[int], list[int]] = ([], [])
            number = 0
            with open(part.source, "rb") as first, open(part.target, "rb") as second:
                for number, lines in enumerate(zip(first, second), start=1):
                    for line, found in zip(lines, empty):
                        if not has_text(line.decode()):
                            found.append(number)
                    source_out.write(lines[0])
                    target_out.write(lines[1])
            for name, found in zip(part.names, empty):
                _report_empty(name, found, number)
            pairs += number
    return {"pairs": pairs}


def _report_empty(name: str, lines: list[int], total: int) -> None:
    if not lines:
        return
    place = f"`{name}` is empty in line {lines[0]:,}"
    if len(lines) > max(1, _MOST_EMPTY * total):
        raise UserError(
            f"{place}, and at most {_MOST_EMPTY:.0%} of its lines may be, but "
            f"{len(lines):,} of {total:,} are. Only training pairs may be dropped; "
            "valid and test must be complete."
        )
    more = f" and {len(lines) - 1:,} others" if lines[1:] else ""
    logger.warning("Notice: %s%s of %s; it stays.", place, more, f"{total:,}")


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
        numbers of pairs: those ``read``, those dropped by each rule, with ``normalise``
        those ``changed`` by it, and the ``pairs`` that were written.

    Raises:
        UserError: no pair is left.
    """
    names = PairFilter(cleaning).names
    counts = collections.Counter({name: 0 for name in ("read", *names)})
    tasks = [
        task
        for part in parts
        for task in zip(split_into_blocks(part.source), split_into_blocks(part.target))
    ]
    digests = source.with_name(f".{source.name}.digests.partial")
    with write_atomically(source, "w+b") as source_out, write_atomically(
        target, "w+b"
    ) as target_out, contextlib.ExitStack() as stack:
        stack.callback(digests.unlink, missing_ok=True)
        digests_out = stack.enter_context(open(digests, "wb"))
        bar = stack.enter_context(progress_bar("pairs"))
        make = functools.partial(_BlockCleaner, cleaning)
        for block in map_in_order(make, tasks, workers=workers):
            source_out.write(block.source)
            target_out.write(block.target)
            digests_out.write(block.digests)
            counts.update(block.counts)
            bar.update(block.counts["read"])
        pairs = counts["read"] - sum(counts[name] for name in names)
        if cleaning.drop_duplicates:
            digests_out.flush()
            is_first = find_first(digests)
            for out in (source_out, target_out):
                _keep_lines(out, is_first)
            counts["dropped_duplicate"] = len(is_first) - int(is_first.sum())
            pairs -= counts["dropped_duplicate"]
        counts["pairs"] = pairs
        if not pairs:
            dropped = ", ".join(
                f"{count:,} {name.replace('_', ' ')}"
                for name, count in counts.items()
                if name.startswith("dropped") and count
            )
            raise UserError(
                f"no training pair is left of {counts['read']:,}: {dropped}."
            )
    return dict(counts)


class _CleanBlock(NamedTuple):
    source: bytes
    target: bytes
    digests: bytes
    counts: dict[str, int]


class _BlockCleaner:
    """Cleans aligned blocks of lines in a worker process."""

    def __init__(self, cleaning: Cleaning) -> None:
        self._cleaning, self._filter = cleaning, PairFilter(cleaning)

    def __call__(self, blocks: tuple[Block, Block]) -> _CleanBlock:
        pairs = list(zip(*(block.read_lines() for block in blocks)))
        kept: list[tuple[str, str]] = []
        counts = collections.Counter(read=len(pairs))
        if self._cleaning.normalise:
            counts["changed"] = 0
        for pair in pairs:
            outcome = self._filter(*pair)
            if isinstance(outcome, str):
                counts[outcome] += 1
                continue
            kept.append(outcome)
            if outcome != pair:
                counts["changed"] += 1
        digests = b""
        if self._cleaning.drop_duplicates:
            digests = b"".join(itertools.starmap(hash_pair, kept))
        texts = ["".join(f"{pair[i]}\n" for pair in kept).encode() for i in (0, 1)]
        return _CleanBlock(texts[0], texts[1], digests, dict(counts))


def hash_pair(source: str, target: str) -> bytes:
    """Return a digest of 16 bytes of both sides, which contain no line feed."""
    text = f"{source}\n{target}".encode()
    return hashlib.blake2b(text, digest_size=_DIGEST.itemsize).digest()


def find_first(path: Path, *, at_once: int = _DIGESTS_AT_ONCE) -> np.ndarray:
    """Tell for each digest in a file whether it occurs there for the first time.

    The file is scanned once for each class of about ``at_once`` digests. Equal digests
    are in the same class. So memory grows by one byte per digest only.

    Returns:
        a boolean array with one entry per digest.
    """
    total = path.stat().st_size // _DIGEST.itemsize
    is_first = np.ones(total, bool)
    if not total:
        return is_first
    digests = np.memmap(path, _DIGEST, mode="r", shape=(total,))
    classes = -(-total // at_once)
    for each in range(classes):
        found, positions = [], []
        for start in range(0, total, at_once):
            chunk = np.array(digests[start : start + at_once])
            chosen = np.flatnonzero(chunk["high"] % np.uint64(classes) == each)
            found.append(chunk[chosen])
            positions.append(chosen + start)
        values = np.concatenate(found)
        # A stable order, so the earliest of equal digests comes first.
        order = np.lexsort((values["low"], values["high"]))
        repeats = np.flatnonzero(values[order][1:] == values[order][:-1]) + 1
        is_first[np.concatenate(positions)[order[repeats]]] = False
    return is_first


def _keep_lines(out: IO[bytes], is_kept: np.ndarray) -> None:
    """Remove the other lines of a file in place; reading stays ahead of writing."""
    out.flush()
    end = 0
    with open(out.name, "rb") as lines:
        for start in range(0, len(is_kept), _LINES_AT_ONCE):
            chosen = is_kept[start : start + _LINES_AT_ONCE]
            batch = list(itertools.islice(lines, len(chosen)))
            out.seek(end)
            end += out.write(b"".join(itertools.compress(batch, chosen)))
            out.flush()
    out.truncate(end)
