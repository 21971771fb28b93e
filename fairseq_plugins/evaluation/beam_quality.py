"""What a beam held: the best translation in it, and the references that it missed."""
from __future__ import annotations

from typing import Sequence

from fairseq_plugins.evaluation.bleu_counts import BleuCounts
from fairseq_plugins.evaluation.found import Hypothesis, Reference

__all__ = ["oracle_bleu", "search_errors"]

# Scores of one sentence in two batches differ by rounding.
_TOLERANCE = 1e-4


def oracle_bleu(nbest: Sequence[Sequence[str]], references: Sequence[str]) -> float:
    """Return BLEU of each sentence's hypothesis that has the greatest sentence BLEU.

    The first wins a tie. It is what a perfect reranker of the beam could reach (about:
    sentence BLEU is not what corpus BLEU is made of).

    Args:
        nbest: plain text, best first by the model.
        references: one per sentence.
    """
    counting = BleuCounts(references)
    best = []
    for number, hypotheses in enumerate(nbest):
        counts = [counting.of(text, number) for text in dict.fromkeys(hypotheses)]
        best.append(max(counts, key=counting.sentence_score))
    return float(counting.corpus_score(best).score)


def search_errors(
    best: Sequence[Hypothesis], references: Sequence[Reference], *, lenpen: float
) -> list[bool]:
    """Tell for which sentences the search missed a better one: the reference itself.

    There the model gives the reference a greater score than the hypothesis that the
    search ended with, so that it did not find the best there is. Elsewhere it may have
    missed others: the share of ``True`` is a lower bound of the rate of search errors.

    Args:
        best: what the search found, scored with the same ``lenpen``.
        references: what the model thinks of the references.
        lenpen: exponent of the length that scores are divided by.
    """
    return [
        reference.log_prob / reference.tokens**lenpen
        > found.score + _TOLERANCE * max(1.0, abs(found.score))
        for found, reference in zip(best, references)
    ]
