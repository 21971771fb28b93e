"""sacrebleu's metrics over several trainings of one system.

A test set translated by three trainings is no test set of three times the size: the
three translations of a sentence are good or bad together. So what a metric counts in
them is added up for each sentence, and sentences stay what is drawn or exchanged.
"""
from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

__all__ = ["PooledBLEU", "PooledCHRF", "statistics_of_trainings"]


class _Pooled:
    """Mixed into a metric: a hypothesis is a tuple of texts, one of each training."""

    def _extract_corpus_statistics(
        self, hypotheses: Sequence[Sequence[str]], references: Any
    ) -> list[list[float]]:
        extract = super()._extract_corpus_statistics  # type: ignore[misc]
        trainings = [extract(list(texts), references) for texts in zip(*hypotheses)]
        pooled: list[list[float]] = np.sum(trainings, axis=0).tolist()
        return pooled


class PooledBLEU(_Pooled, BLEU):
    """BLEU of all trainings' translations together."""


class PooledCHRF(_Pooled, CHRF):
    """chrF of all trainings' translations together."""


def statistics_of_trainings(
    metric: BLEU | CHRF, trainings: Sequence[Sequence[str]], references: Sequence[str]
) -> np.ndarray:
    """Return what the pooled metric counts, (trainings, sentences, counts)."""
    return np.array(
        [
            metric._extract_corpus_statistics([(text,) for text in texts], [references])
            for texts in trainings
        ],
        dtype=np.float64,
    )
