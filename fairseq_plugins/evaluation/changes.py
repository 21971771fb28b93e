"""Which sentences one system translates better than another, and which worse."""
from __future__ import annotations

from dataclasses import dataclass

from fairseq_plugins.evaluation.pooling import PooledCHRF, Trainings

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


def changes(baseline: Trainings, system: Trainings) -> list[Change]:
    """Return every sentence, the one with the greatest gain first.

    Single sentences are scored by chrF: sentence BLEU is zero, or a matter of
    smoothing, for a short one without a match of four words.
    """
    metric = PooledCHRF()
    pairs = zip(baseline.scores(metric), system.scores(metric))
    found = [Change(line, *pair) for line, pair in enumerate(pairs, start=1)]
    return sorted(found, key=lambda change: -change.gain)
