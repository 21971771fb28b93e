"""Refuse texts that would get a wrong score, and quote a line that shows why."""

from __future__ import annotations

import re
from typing import Sequence

from fairseq_plugins.utils.errors import UserError

__all__ = ["MAX_EMPTY", "check_comparable", "check_counts", "check_plain_text"]

# Fraction of hypotheses that may be empty.
MAX_EMPTY = 0.1

# Marks of SentencePiece and subword-nmt, which detokenization removes.
_SUBWORD_MARK = re.compile(r"▁|@@( |$)")
# Punctuation that a tokenizer separates, and entities and hyphens as Moses writes them.
# French and Spanish put spaces before "!" and after "«", so these are not tested.
_DETACHED = re.compile(r"\w \.$|\w , |&(?:quot|apos|amp);|@-@")
_ATTACHED = re.compile(r"\w\.$|\w, ")
# Fewer lines than this do not show that a text is tokenized.
_MIN_DETACHED = 10

_WORD = re.compile(r"[^\W\d_]+")
# Line by line, texts in one language share half of their words even if the translation
# is bad (0.55 for 18 BLEU on newstest2017). Texts in two languages share names (0.01 to
# 0.13).
_OTHER_LANGUAGE = 0.15
_SAME_LANGUAGE = 0.3
# Shorter texts, and texts with fewer different words, do not show their language.
_MIN_WORDS = 200
_MIN_VOCABULARY = 200

_MAX_SHOWN = 80


def check_comparable(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    sources: Sequence[str] | None = None,
    max_empty: float = MAX_EMPTY,
) -> None:
    """Refuse texts whose score would be wrong.

    Args:
        hypotheses: one per sentence.
        references: one per sentence.
        sources: source text, if known.
        max_empty: fraction of lines of either text that may be empty.

    Raises:
        UserError: there are no lines, or different numbers of lines; a line contains
            subword marks; a text is tokenized; too many lines are empty; or hypotheses
            and references are in different languages. The message shows such a line.
    """
    check_counts(hypotheses, references)
    check_plain_text("hypothesis", hypotheses)
    check_plain_text("reference", references)
    _check_not_empty(hypotheses, references, max_empty)
    if sources is None:
        _check_one_language(hypotheses, references)
    else:
        _check_direction(hypotheses, references, sources)


def check_counts(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Raise ``UserError`` for no lines or different numbers of lines."""
    if len(hypotheses) == len(references) and references:
        return
    common = min(len(hypotheses), len(references))
    longer, other = hypotheses, "reference"
    if len(references) > common:
        longer, other = references, "hypothesis"
    message = (
        "hypotheses and references must have the same number of lines, 1 or more, but "
        f"have {len(hypotheses):,} and {len(references):,}."
    )
    if longer[common:]:
        message += (
            f" The first line without {other} is line {common + 1:,}: "
            f"{_quote(longer[common])}."
        )
    raise UserError(message)


def check_plain_text(name: str, lines: Sequence[str]) -> None:
    """Raise ``UserError`` for subword marks and for tokenized text.

    Args:
        name: ``hypothesis`` or ``reference``, for messages.
        lines: one per sentence.
    """
    for number, line in enumerate(lines, start=1):
        if _SUBWORD_MARK.search(line):
            raise UserError(
                f"{name} {number:,} must be plain text, but contains subword marks: "
                f"{_quote(line)}."
            )
    detached = [n for n, line in enumerate(lines) if _DETACHED.search(line)]
    attached = sum(1 for line in lines if _ATTACHED.search(line))
    if len(detached) >= _MIN_DETACHED and len(detached) > attached:
        first = detached[0]
        raise UserError(
            f"{name} lines must be plain text, but {len(detached):,} of {len(lines):,} "
            f"are tokenized, such as line {first + 1:,}: {_quote(lines[first])}. BLEU "
            "tokenizes the text: detokenize it first."
        )


def _check_not_empty(
    hypotheses: Sequence[str], references: Sequence[str], max_empty: float
) -> None:
    for name, lines, other in (
        ("hypotheses", hypotheses, references),
        ("references", references, hypotheses),
    ):
        empty = [n for n, line in enumerate(lines) if not line.strip()]
        if len(empty) > max_empty * len(lines):
            first = empty[0]
            raise UserError(
                f"at most {max_empty:.0%} of the {name} may be empty, but "
                f"{len(empty):,} of {len(lines):,} are, such as line {first + 1:,}. "
                f"The other text has {_quote(other[first])} there."
            )


def _check_one_language(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    words = [word for line in hypotheses for word in _words(line)]
    # A model that is hardly trained repeats a few words, in no particular language.
    if len(words) < _MIN_WORDS or len(set(words)) < _MIN_VOCABULARY:
        return
    shared = _shared_words(hypotheses, references)
    if shared < _OTHER_LANGUAGE:
        raise UserError(
            "hypotheses and references must have the same language and order, but "
            f"share {shared:.0%} of their words. {_example(hypotheses, references)}"
        )


def _check_direction(
    hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str]
) -> None:
    if len(sources) != len(references):
        raise UserError(
            "sources and references must have the same number of lines, but have "
            f"{len(sources):,} and {len(references):,}."
        )
    if sum(len(_words(line)) for line in sources) < _MIN_WORDS:
        return
    source = _shared_words(hypotheses, sources)
    reference = _shared_words(hypotheses, references)
    if source > _SAME_LANGUAGE and source > 2 * reference:
        raise UserError(
            "hypotheses must be in the language of the references, but share "
            f"{reference:.0%} of their words with the references and {source:.0%} with "
            "the sources: source and reference are exchanged, or nothing was "
            f"translated. {_example(hypotheses, references)}"
        )


def _words(line: str) -> list[str]:
    return _WORD.findall(line.lower())


def _shared_words(hypotheses: Sequence[str], texts: Sequence[str]) -> float:
    """Return the fraction of a text's words that the hypothesis also contains."""
    total = found = 0
    for hypothesis, text in zip(hypotheses, texts):
        known, words = set(_words(hypothesis)), _words(text)
        total += len(words)
        found += sum(1 for word in words if word in known)
    return found / max(1, total)


def _example(hypotheses: Sequence[str], references: Sequence[str]) -> str:
    """Show the longest of the first 20 pairs."""
    pairs = list(zip(hypotheses, references))[:20]
    number = max(range(len(pairs)), key=lambda n: min(map(len, pairs[n])))
    hypothesis, reference = pairs[number]
    return (
        f"Line {number + 1:,}: hypothesis {_quote(hypothesis)}, "
        f"reference {_quote(reference)}."
    )


def _quote(line: str) -> str:
    return f"`{line[:_MAX_SHOWN]}{'...' if len(line) > _MAX_SHOWN else ''}`"
