"""sacrebleu's metrics over several trainings of one system.

A test set translated by three trainings is no test set of three times the size: the
three translations of a sentence are good or bad together. So what a metric counts in
them is added up for each sentence, and sentences stay what is drawn or exchanged.
"""
from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

__all__ = ["PooledBLEU", "PooledCHRF", "Trainings"]


class Trainings:
    """A system's translations by all of its trainings, and what metrics count in them.

    ``len()`` is the number of sentences: for sacrebleu's tests this is a list of
    hypotheses.
    """

    def __init__(
        self, texts: Sequence[Sequence[str]], references: Sequence[str]
    ) -> None:
        self.texts = texts
        self.references = references
        self._counts: dict[type, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.references)

    def counts(self, metric: BLEU | CHRF) -> np.ndarray:
        """Return (trainings, sentences, counts); text is gone through only once."""
        kind = type(metric)
        if kind not in self._counts:
            plain = BLEU(force=True) if isinstance(metric, BLEU) else CHRF()
            counts = [
                plain._extract_corpus_statistics(list(text), [self.references])
                for text in self.texts
            ]
            self._counts[kind] = np.array(counts, dtype=np.float64)
        return self._counts[kind]

    def scores(self, metric: BLEU | CHRF) -> list[float]:
        """Return the score of every sentence, over all trainings together."""
        compute = metric._compute_score_from_stats
        return [float(compute(row).score) for row in self.counts(metric).sum(axis=0)]


class _Pooled:
    """Mixed into a metric: its hypotheses are :class:`Trainings`."""

    def _extract_corpus_statistics(
        self, hypotheses: Trainings, references: Any
    ) -> list[list[float]]:
        assert isinstance(self, (BLEU, CHRF))
        self.num_refs = 1  # for the signature
        pooled: list[list[float]] = hypotheses.counts(self).sum(axis=0).tolist()
        return pooled


class PooledBLEU(_Pooled, BLEU):
    """BLEU of all trainings' translations together."""


class PooledCHRF(_Pooled, CHRF):
    """chrF of all trainings' translations together."""
