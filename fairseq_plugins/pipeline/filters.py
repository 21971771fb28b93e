"""What becomes of a training pair: normalised, kept, or dropped and by which rule."""
from __future__ import annotations

import re
import unicodedata
from typing import Callable, Mapping

from fairseq_plugins.pipeline.recipe import Cleaning

__all__ = ["PairFilter", "has_text", "normalised"]

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
