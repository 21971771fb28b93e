"""What a search finds, and what a model thinks of references, in corpus order."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, TypeVar

from fairseq_plugins.pipeline.errors import UserError

__all__ = ["Hypothesis", "Reference", "in_order"]

_MAX_LISTED = 5

T = TypeVar("T")


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


def in_order(
    found: Iterable[tuple[int, T]], *, subset: str, sentences: int
) -> list[T]:
    """Return what was found for each sentence, in corpus order.

    Args:
        found: with numbers from 0, in any order.
        subset: for messages.
        sentences: how many there must be.

    Raises:
        UserError: nothing was found for some, or there are more than there should be.
    """
    by_number = dict(found)
    missing = [n + 1 for n in range(sentences) if n not in by_number]
    if missing:
        listed = ", ".join(map(str, missing[:_MAX_LISTED]))
        raise UserError(
            f"fairseq gave nothing for {len(missing):,} of the {sentences:,} sentences "
            f"of `{subset}`: {listed}{', ...' if len(missing) > _MAX_LISTED else ''}. "
            "The binarised data and the raw text do not belong together: prepare the "
            "corpus anew."
        )
    if len(by_number) > sentences:
        raise UserError(
            f"`{subset}` has {len(by_number):,} binarised but {sentences:,} raw "
            "sentences: prepare the corpus anew."
        )
    return [by_number[number] for number in range(sentences)]
