"""Write both sides of a part as plain aligned text, and check that they are it."""
from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Callable, Iterator

from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import read_lines, write_atomically
from fairseq_plugins.pipeline.progress import Progress
from fairseq_plugins.pipeline.recipe import Part, TextFile
from fairseq_plugins.pipeline.sources import LocatedPart
from fairseq_plugins.pipeline.texts import Text, segments

__all__ = ["extract"]

_LINES_BETWEEN_LOOKS = 10_000
_OTHER_TEXT = (
    "To prepare another text than the recipe's, copy the recipe to a file of your own, "
    "take `lines` and `sha256` out and give its path as the recipe."
)


def extract(
    located: LocatedPart,
    outputs: tuple[Path, Path],
    *,
    languages: tuple[str, str],
    limit: int | None = None,
) -> dict[str, int]:
    """Write ``outputs``, one segment a line.

    Args:
        located: the part and where its texts are.
        outputs: files for the source and the target side.
        languages: of the two sides.
        limit: stop after so many pairs, without the checks that need the whole.

    Returns:
        the number of ``lines`` that were read and, if that is another one, of ``pairs``
        that were written.

    Raises:
        UserError: a file is empty, damaged, not UTF-8 or not the text that the recipe
            names; sides have different numbers of segments.
    """
    part = located.part
    sides = [
        _Side(text, language)
        for text, language in zip((located.source, located.target), languages)
    ]
    pairs: Iterator[tuple[bytes, bytes]] = _aligned(sides[0], sides[1])
    if located.line_numbers is not None:
        pairs = _picked(pairs, located.line_numbers)
    if not located.is_sample:
        pairs = _thinned(pairs, part)
    joined = part.tokenised and not located.is_sample
    finish = [_finisher(part.name if joined else "", each) for each in languages]
    written, progress = 0, Progress("lines")
    with write_atomically(outputs[0], "wb") as first, write_atomically(
        outputs[1], "wb"
    ) as second:
        for source, target in itertools.islice(pairs, limit):
            first.write(finish[0](source) + b"\n")
            second.write(finish[1](target) + b"\n")
            written += 1
            if not written % _LINES_BETWEEN_LOOKS:
                progress.add(_LINES_BETWEEN_LOOKS)
        if limit is None:
            _check(located, sides, written)
        if not written:
            raise UserError(f"`{sides[0].text}` is empty.")
    lines = sides[0].count
    return {"lines": lines} if lines == written else {"lines": lines, "pairs": written}


class _Side:
    """The segments of a side, counted and digested while they are read, once."""

    def __init__(self, text: Text, language: str) -> None:
        self.text = text
        self.count = 0
        self._language = language
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for segment in segments(self.text, self._language):
            self.count += 1
            self._digest.update(segment + b"\n")
            # White space of other kinds stays: only a line feed ends a line.
            yield segment.replace(b"\n", b" ")

    def sha256(self) -> str:
        """Return the digest of the text that was read so far, with ``\\n`` ends."""
        return self._digest.hexdigest()


def _aligned(source: _Side, target: _Side) -> Iterator[tuple[bytes, bytes]]:
    for first, second in itertools.zip_longest(source, target):
        if first is not None and second is not None:
            yield first, second


def _picked(
    pairs: Iterator[tuple[bytes, bytes]], index: Path
) -> Iterator[tuple[bytes, bytes]]:
    try:
        numbers = [int(line) for line in read_lines(index)]
    except ValueError as error:
        raise UserError(
            f"`{index}` must hold one line number a line: {error}."
        ) from None
    text = list(pairs)
    for place, number in enumerate(numbers, start=1):
        if not 0 <= number < len(text):
            raise UserError(
                f"`{index}` has line number {number} in its line {place}, but the text "
                f"has {len(text):,} lines."
            )
        yield text[number]


def _thinned(
    pairs: Iterator[tuple[bytes, bytes]], part: Part
) -> Iterator[tuple[bytes, bytes]]:
    for number, pair in enumerate(pairs, start=1):
        if part.every is not None and number % part.every:
            continue
        if part.but_every is not None and not number % part.but_every:
            continue
        yield pair


def _finisher(tokenised_part: str, language: str) -> Callable[[bytes], bytes]:
    if not tokenised_part:
        return lambda segment: segment
    try:
        from sacremoses import MosesDetokenizer
    except ImportError:
        raise UserError(
            f"`{tokenised_part}` is published tokenised; to join its tokens, install "
            "sacremoses: pip install -e '.[moses]'."
        ) from None
    join = MosesDetokenizer(language).detokenize
    return lambda segment: join(segment.decode().split()).encode()


def _check(located: LocatedPart, sides: list[_Side], written: int) -> None:
    part, (source, target) = located.part, sides
    for side in sides:
        if not side.count:
            raise UserError(f"`{side.text}` is empty.")
    if source.count != target.count:
        raise UserError(
            f"`{source.text}` and `{target.text}` must have equally many lines, but "
            f"have {source.count:,} and {target.count:,}."
        )
    thinned = part.every is not None or part.but_every is not None
    lines = written if located.line_numbers is not None else source.count
    if part.lines is not None and lines != part.lines and not thinned:
        raise UserError(
            f"`{source.text}` and `{target.text}` must have {part.lines:,} lines, but "
            f"have {lines:,}. {_OTHER_TEXT}"
        )
    if located.line_numbers is None:  # otherwise it was a longer text that was read
        for side, file in zip(sides, (part.source, part.target)):
            _check_digest(side, file)


def _check_digest(side: _Side, file: TextFile) -> None:
    if file.sha256 is not None and side.sha256() != file.sha256:
        raise UserError(
            f"`{side.text}` must hold the text with sha256 {file.sha256}, but its text "
            f"has {side.sha256()}. {_OTHER_TEXT}"
        )
