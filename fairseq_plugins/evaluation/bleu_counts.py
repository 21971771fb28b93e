"""What BLEU counts in each sentence, counted once for all scores that it makes."""
from __future__ import annotations

from typing import Any, Sequence

from sacrebleu.metrics import BLEU

__all__ = ["BleuCounts", "Counts"]

Counts = list[int]


class BleuCounts:
    """sacrebleu's BLEU against these references, whose n-grams are counted once."""

    def __init__(self, references: Sequence[str]) -> None:
        # `check_comparable` decides whether text is tokenised; sacrebleu would only
        # warn.
        self._corpus = BLEU(force=True)
        self._sentence = BLEU(force=True, effective_order=True)
        self._references = self._corpus._cache_references([references])

    @property
    def signature(self) -> str:
        return str(self._corpus.get_signature())

    def of(self, hypothesis: str, number: int) -> Counts:
        """Count in a hypothesis for sentence ``number``, from 0."""
        segment = self._corpus._preprocess_segment(hypothesis)
        counts: Counts = self._corpus._compute_segment_statistics(
            segment, self._references[number]
        )
        return counts

    def of_all(self, hypotheses: Sequence[str]) -> list[Counts]:
        """Count in a hypothesis for each sentence."""
        return [self.of(line, number) for number, line in enumerate(hypotheses)]

    def corpus_score(self, counts: Sequence[Counts]) -> Any:
        """Return sacrebleu's score object of these sentences together."""
        return self._corpus._aggregate_and_compute(counts)

    def sentence_score(self, counts: Counts) -> float:
        """Return sentence BLEU with effective order, 0 to 100."""
        return float(self._sentence._compute_score_from_stats(counts).score)
