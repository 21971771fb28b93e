"""Read both sides of a text together, check them and write what is kept."""
from __future__ import annotations

import gzip
import hashlib
import itertools
import lzma
import zlib
from pathlib import Path
from typing import Iterable, Iterator

from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import open_text, write_atomically
from fairseq_plugins.pipeline.recipe import Cleaning, TextFile
from fairseq_plugins.pipeline.sources import LocatedPart

__all__ = ["write_subset"]

# Printable, but nothing to SentencePiece: its own word mark and the replacement
# character of damaged text.
_DROPPED = "\u2581\ufffd"


def write_subset(
    parts: Iterable[LocatedPart],
    source: Path,
    target: Path,
    *,
    cleaning: Cleaning | None,
) -> dict[str, int]:
    """Join parts into two aligned plain text files.

    Args:
        parts: what to read, in this order.
        source: file to write the source side to.
        target: file to write the target side to.
        cleaning: drop pairs that break these rules or have an empty side. Without it
            nothing is dropped, and an empty side is an error.

    Returns:
        counts of pairs: those written are ``pairs``; with ``cleaning`` there are also
        ``read``, ``dropped_empty`` and ``dropped_too_long``.

    Raises:
        UserError: a file is empty, damaged, not UTF-8 or not the text that the recipe
            names; sides have different numbers of lines; no pair is left.
    """
    counts = {"read": 0, "dropped_empty": 0, "dropped_too_long": 0, "pairs": 0}
    with write_atomically(source) as source_out, write_atomically(target) as target_out:
        for located in parts:
            for number, pair in enumerate(_read_pairs(located), start=1):
                counts["read"] += 1
                fault = _fault(pair, cleaning)
                if fault is None:
                    counts["pairs"] += 1
                    source_out.write(pair[0] + "\n")
                    target_out.write(pair[1] + "\n")
                elif cleaning is not None:
                    counts[fault] += 1
                else:
                    side = located.target if _has_text(pair[0]) else located.source
                    raise UserError(
                        f"`{side}` is empty in line {number}. Only training pairs may "
                        "be dropped; valid and test must be whole."
                    )
        if not counts["pairs"]:
            raise UserError(
                f"no training pair is left of {counts['read']:,}: "
                f"{counts['dropped_empty']:,} have an empty side and "
                f"{counts['dropped_too_long']:,} are too long."
            )
    return counts if cleaning is not None else {"pairs": counts["pairs"]}


def _fault(pair: tuple[str, str], cleaning: Cleaning | None) -> str | None:
    if not (_has_text(pair[0]) and _has_text(pair[1])):
        return "dropped_empty"
    if cleaning and max(len(side.split()) for side in pair) > cleaning.max_words:
        return "dropped_too_long"
    return None


def _has_text(line: str) -> bool:
    """Tell whether SentencePiece would leave anything of a line."""
    return any(
        char.isprintable() and not char.isspace() and char not in _DROPPED
        for char in line
    )


def _read_pairs(located: LocatedPart) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a part, then check that both sides were what they must be."""
    part = located.part
    source, target = _Lines(located.source), _Lines(located.target)
    for source_line, target_line in itertools.zip_longest(source, target):
        if source_line is not None and target_line is not None:
            yield source_line, target_line
    for side in (source, target):
        if not side.count:
            raise UserError(f"`{side.path}` is empty.")
    if source.count != target.count:
        raise UserError(
            f"`{source.path}` and `{target.path}` must have equally many lines, but "
            f"have {source.count:,} and {target.count:,}."
        )
    if part.lines is not None and source.count != part.lines:
        raise UserError(
            f"`{source.path}` and `{target.path}` must have {part.lines:,} lines, but "
            f"have {source.count:,}. {_OTHER_TEXT}"
        )
    for side, file in ((source, part.source), (target, part.target)):
        _check_digest(side, file)


_OTHER_TEXT = (
    "To prepare another text than the recipe's, copy the recipe to a file of your own, "
    "take `lines` and `sha256` out and give its path as the recipe."
)


def _check_digest(side: _Lines, file: TextFile) -> None:
    if file.sha256 is not None and side.sha256() != file.sha256:
        raise UserError(
            f"`{side.path}` must hold the text with sha256 {file.sha256}, but its text "
            f"has {side.sha256()}. {_OTHER_TEXT}"
        )


class _Lines:
    """The lines of a file, counted and digested while they are read, once.

    Lines end with a line feed only; a carriage return before it is no text.

    Raises:
        UserError: the file cannot be read, is damaged or is not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._digest = hashlib.sha256()

    def sha256(self) -> str:
        """Return the digest of the uncompressed text that was read so far."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[str]:
        try:
            with open_text(self.path) as stream:
                for line in stream.buffer:
                    self.count += 1
                    self._digest.update(line)
                    yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"`{self.path}` must be UTF-8 text, but line {self.count} is not: "
                f"{error.reason} at its byte {error.start + 1}."
            ) from None
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"`{self.path}` is a damaged archive, after line {self.count}: {error}."
            ) from None
        except PermissionError as error:
            reason = error.strerror
            raise UserError(f"`{self.path}` cannot be read: {reason}.") from None
