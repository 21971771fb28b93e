"""Read what ``fairseq-generate`` prints: hypotheses and scores, in corpus order.

It translates in order of length, prints several lines for each hypothesis, each with
the sentence's number from 0, and gives scores in base 2 with all their digits.
"""
from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Iterable

from fairseq_plugins.pipeline.errors import UserError

__all__ = ["Hypothesis", "Reference", "hypotheses_of", "references_of"]

_MAX_LISTED = 5

_HYPOTHESIS = re.compile(r"H-(\d+)\t([^\t]*)\t(.*)")
_TOKEN_SCORES = re.compile(r"P-(\d+)\t(.*)")


@dataclass(frozen=True)
class Hypothesis:
    """One way to translate a sentence.

    Attributes:
        score: natural logarithm of its probability, divided by its length (with end
            mark) to the power of lenpen.
        pieces: subwords with spaces between them.
    """

    score: float
    pieces: str


@dataclass(frozen=True)
class Reference:
    """What the model thinks of a reference.

    Attributes:
        log_prob: natural logarithm of its probability.
        tokens: its length in subwords, with end mark.
    """

    log_prob: float
    tokens: int


def hypotheses_of(
    lines: Iterable[str], *, subset: str, sentences: int
) -> list[list[Hypothesis]]:
    """Return each sentence's hypotheses, best first.

    Args:
        lines: output of ``fairseq-generate``; lines of other kinds are ignored.
        subset: for messages.
        sentences: how many there must be, numbered from 0.

    Raises:
        UserError: some have no hypothesis, or there are more than there should be.
    """
    found: dict[int, list[Hypothesis]] = {}
    for line in lines:
        match = _HYPOTHESIS.match(line)
        if match:
            hypothesis = Hypothesis(_natural(match[2]), match[3])
            found.setdefault(int(match[1]), []).append(hypothesis)
    _check_complete(found.keys(), subset, sentences)
    return [found[number] for number in range(sentences)]


def references_of(
    lines: Iterable[str], *, subset: str, sentences: int
) -> list[Reference]:
    """Return the scores of ``fairseq-generate --score-reference``.

    Raises:
        UserError: as :func:`hypotheses_of`.
    """
    means: dict[int, float] = {}
    lengths: dict[int, int] = {}
    for line in lines:
        if match := _HYPOTHESIS.match(line):
            means[int(match[1])] = _natural(match[2])
        elif match := _TOKEN_SCORES.match(line):
            lengths[int(match[1])] = len(match[2].split())
    _check_complete(means.keys() & lengths.keys(), subset, sentences)
    # What is printed is the mean over the tokens.
    return [Reference(means[n] * lengths[n], lengths[n]) for n in range(sentences)]


def _natural(score: str) -> float:
    return float(score) * math.log(2)


def _check_complete(found: Iterable[int], subset: str, sentences: int) -> None:
    numbers = set(found)
    missing = [number + 1 for number in range(sentences) if number not in numbers]
    if missing:
        listed = ", ".join(map(str, missing[:_MAX_LISTED]))
        raise UserError(
            f"fairseq-generate gave no translation of {len(missing):,} of the "
            f"{sentences:,} sentences of `{subset}`: {listed}"
            f"{', ...' if len(missing) > _MAX_LISTED else ''}. The binarised data and "
            "the raw text do not belong together: prepare the corpus anew."
        )
    if len(numbers) > sentences:
        raise UserError(
            f"`{subset}` has {len(numbers):,} binarised but {sentences:,} raw "
            "sentences: prepare the corpus anew."
        )
