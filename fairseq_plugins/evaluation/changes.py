"""Which sentences one system translates better than another, and which worse."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from fairseq_plugins.evaluation.pooling import PooledCHRF, statistics_of_trainings

__all__ = ["Change", "changes"]


@dataclass(frozen=True)
class Change:
    """One sentence by two systems.

    Attributes:
        line: its number in the files, from 1.
        baseline: chrF of the baseline's translations, of all its trainings together.
        system: chrF of the system's.
    """

    line: int
    baseline: float
    system: float

    @property
    def gain(self) -> float:
        """By how much the system's is better."""
        return self.system - self.baseline


def changes(
    baselines: Sequence[Sequence[str]],
    systems: Sequence[Sequence[str]],
    references: Sequence[str],
) -> list[Change]:
    """Return every sentence, the one with the greatest gain first.

    Single sentences are scored by chrF: sentence BLEU is zero, or a matter of
    smoothing, for a short one without a match of four words.

    Args:
        baselines: hypotheses of each training.
        systems: hypotheses of each training of the other system.
        references: one per sentence.
    """
    metric = PooledCHRF()

    def scores(trainings: Sequence[Sequence[str]]) -> list[float]:
        counts = statistics_of_trainings(metric, trainings, references).sum(axis=0)
        return [_score(metric, row) for row in counts]

    pairs = zip(scores(baselines), scores(systems))
    found = [Change(line, *pair) for line, pair in enumerate(pairs, start=1)]
    return sorted(found, key=lambda change: -change.gain)


def _score(metric: PooledCHRF, counts: np.ndarray) -> float:
    return float(metric._compute_score_from_stats(counts).score)
