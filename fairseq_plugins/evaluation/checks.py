"""Refuse what would give a wrong score, and show the sentence that gives it away."""

from __future__ import annotations

import re
from typing import Sequence

from fairseq_plugins.utils.errors import UserError

__all__ = ["MAX_EMPTY", "check_comparable", "check_plain_text"]

# Share of hypotheses that may be empty.
MAX_EMPTY = 0.1

# What SentencePiece and subword-nmt leave in text that was not put together again.
_SUBWORD_MARK = re.compile(r"▁|@@( |$)")
# Marks that a tokeniser takes off their words, and what Moses' writes for others.
# French and Spanish habits (" !", "« ") are none, so that these are not looked at.
_DETACHED = re.compile(r"\w \.$|\w , |&(?:quot|apos|amp);|@-@")
_ATTACHED = re.compile(r"\w\.$|\w, ")
# So many lines must show it before text is called tokenised.
_MIN_DETACHED = 10

_WORD = re.compile(r"[^\W\d_]+")
# Texts in one language share half of the words of a line even if the translation is
# bad (0.55 for 18 BLEU on newstest2017), texts in two share names (0.01 to 0.13).
_OTHER_LANGUAGE = 0.15
_SAME_LANGUAGE = 0.3
# Less text than this proves nothing.
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
    """Refuse what gives a wrong score without a word.

    Args:
        hypotheses: one per sentence.
        references: one per sentence.
        sources: what was translated, if it is known.
        max_empty: share of hypotheses that may be empty.

    Raises:
        UserError: there is nothing to score; the numbers of lines differ; a line still
            holds subword marks; a text is tokenised; too many hypotheses are empty; or
            hypotheses and references are not in one language. The message shows a line
            that is so.
    """
    _check_counts(hypotheses, references)
    for name, lines in (("hypothesis", hypotheses), ("reference", references)):
        check_plain_text(name, lines)
    _check_not_empty(hypotheses, references, max_empty)
    if sources is None:
        _check_one_language(hypotheses, references)
    else:
        _check_direction(hypotheses, references, sources)


def check_plain_text(name: str, lines: Sequence[str]) -> None:
    """Raise ``UserError`` for subword marks and for tokenised text.

    Args:
        name: of one of the lines, ``hypothesis`` or ``reference``.
    """
    _check_whole_words(name, lines)
    _check_not_tokenised(name, lines)


def _check_counts(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) == len(references) and references:
        return
    common = min(len(hypotheses), len(references))
    longer, other = hypotheses, "reference"
    if len(references) > common:
        longer, other = references, "hypothesis"
    over = (
        f" The first line without {other} is line {common + 1:,}: "
        f"{_shown(longer[common])}."
        if longer[common:]
        else ""
    )
    raise UserError(
        "hypotheses and references must be equally many and not none, but are "
        f"{len(hypotheses):,} and {len(references):,}.{over}"
    )


def _check_whole_words(name: str, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines, start=1):
        if _SUBWORD_MARK.search(line):
            raise UserError(
                f"{name} {number:,} must be plain text, but holds subword marks: "
                f"{_shown(line)}."
            )


def _check_not_tokenised(name: str, lines: Sequence[str]) -> None:
    detached = [n for n, line in enumerate(lines) if _DETACHED.search(line)]
    if len(detached) < _MIN_DETACHED:
        return
    attached = sum(1 for line in lines if _ATTACHED.search(line))
    if len(detached) > attached:
        first = detached[0]
        raise UserError(
            f"{name} lines must be plain text as people write it, but {len(detached):,}"
            f" of {len(lines):,} are tokenised, such as line {first + 1:,}: "
            f"{_shown(lines[first])}. BLEU tokenises by itself: detokenise first."
        )


def _check_not_empty(
    hypotheses: Sequence[str], references: Sequence[str], max_empty: float
) -> None:
    for name, lines in (("hypotheses", hypotheses), ("references", references)):
        empty = [n for n, line in enumerate(lines) if not line.strip()]
        if len(empty) > max_empty * len(lines):
            other = references if lines is hypotheses else hypotheses
            first = empty[0]
            raise UserError(
                f"at most {max_empty:.0%} of the {name} may be empty, but "
                f"{len(empty):,} of {len(lines):,} are, such as line {first + 1:,}; "
                f"the other text has {_shown(other[first])} there."
            )


def _check_one_language(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Compare words; too little text or too poor a vocabulary says nothing."""
    words = [word for line in hypotheses for word in _words(line)]
    # The few words of a hardly trained model are in no language.
    if len(words) < _MIN_WORDS or len(set(words)) < _MIN_VOCABULARY:
        return
    share = _shared(hypotheses, references)
    if share < _OTHER_LANGUAGE:
        raise UserError(
            "hypotheses and references must be in one language and in one order, but "
            f"share {share:.0%} of their words. {_example(hypotheses, references)}"
        )


def _check_direction(
    hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str]
) -> None:
    if len(sources) != len(references):
        raise UserError(
            "sources and references must be equally many, but are "
            f"{len(sources):,} and {len(references):,}."
        )
    if sum(len(_words(line)) for line in sources) < _MIN_WORDS:
        return
    source, reference = _shared(hypotheses, sources), _shared(hypotheses, references)
    if source > _SAME_LANGUAGE and source > 2 * reference:
        raise UserError(
            "hypotheses must be in the language of the references, but share "
            f"{reference:.0%} of their words with these and {source:.0%} with the "
            "sources: source and reference are exchanged, or nothing was translated. "
            + _example(hypotheses, references)
        )


def _words(line: str) -> list[str]:
    return _WORD.findall(line.lower())


def _shared(hypotheses: Sequence[str], texts: Sequence[str]) -> float:
    """Return the share of the text's words that stand in the hypothesis, too."""
    total = found = 0
    for hypothesis, text in zip(hypotheses, texts):
        there, words = set(_words(hypothesis)), _words(text)
        total += len(words)
        found += sum(1 for word in words if word in there)
    return found / max(1, total)


def _example(hypotheses: Sequence[str], references: Sequence[str]) -> str:
    pairs = enumerate(zip(hypotheses, references), start=1)
    number, (hypothesis, reference) = max(
        # The longest pair of the first ones says most.
        (pair for pair in pairs if pair[0] <= 20),
        key=lambda pair: min(map(len, pair[1])),
    )
    return (
        f"Line {number:,}: hypothesis {_shown(hypothesis)}, "
        f"reference {_shown(reference)}."
    )


def _shown(line: str) -> str:
    return f"`{line[:_MAX_SHOWN]}{'...' if len(line) > _MAX_SHOWN else ''}`"
