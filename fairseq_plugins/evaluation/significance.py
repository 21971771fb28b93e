"""sacrebleu's metrics over several trainings of one system.

A test set translated by three trainings is no test set of three times the size: the
three translations of a sentence are good or bad together. So what a metric counts in
them is added up for each sentence, and sentences stay what is drawn or exchanged.

Is one system really better than another? Paired tests, by sacrebleu.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from fairseq_plugins.evaluation.checks import check_comparable
from fairseq_plugins.utils.errors import UserError

__all__ = [
    "Comparison",
    "Difference",
    "PooledBLEU",
    "PooledCHRF",
    "Trainings",
    "check_trainings",
    "paired_test",
    "pooled_test",
]


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


_METHODS = {"randomization": "ar", "bootstrap": "bs"}
_RESAMPLES = 1000


@dataclass(frozen=True)
class Difference:
    """Two systems by one metric.

    Attributes:
        baseline: score of the baseline, of all its trainings' translations together.
        system: score of the system, likewise.
        p_value: of ``randomization``, how probable so great a difference is, in either
            direction, if the two were equally good. Of ``bootstrap`` it is sacrebleu's
            figure, which is smaller: it compares the difference with how far the
            samples' absolute differences are above their mean.
        interval: 95 % confidence interval of the difference, system less baseline, over
            test sentences and, where there are several, trainings (bootstrap).
        signature: metric, test, number of samples and seed.
    """

    baseline: float
    system: float
    p_value: float
    interval: tuple[float, float]
    signature: str


@dataclass(frozen=True)
class Comparison:
    """A system against its baseline; ``dataclasses.asdict`` makes it JSON."""

    method: str
    samples: int
    bleu: Difference
    chrf: Difference


def paired_test(
    baseline: Sequence[str],
    system: Sequence[str],
    references: Sequence[str],
    *,
    method: str = "randomization",
    samples: int | None = None,
    checked: bool = False,
) -> Comparison:
    """Test the difference of one training each; see :func:`pooled_test`."""
    pair = Trainings([baseline], references), Trainings([system], references)
    return pooled_test(*pair, method=method, samples=samples, checked=checked)


def pooled_test(
    baseline: Trainings,
    system: Trainings,
    *,
    method: str = "randomization",
    samples: int | None = None,
    known: Comparison | None = None,
    checked: bool = False,
) -> Comparison:
    """Test the difference between two systems on the same sentences.

    What is exchanged or drawn is a sentence with its translations by all trainings of a
    system (see :mod:`pooling`). The p-value takes the trainings as they are; the
    interval draws them, too, and so says more about trainings that were not made. With
    few of them it is rather too narrow.

    Args:
        baseline: plain text of each training.
        system: the same of the other system, of as many trainings.
        method: ``randomization`` (approximate; Riezler and Maxwell, 2005) or
            ``bootstrap`` (Koehn, 2004).
        samples: sacrebleu's own number (10,000 or 1,000) if not given. The seed is
            sacrebleu's too: 12345, or the environment variable ``SACREBLEU_SEED``.
        known: the other test of these systems. Intervals are the same for both, and are
            taken from it.
        checked: each text was compared with the references when it was scored, or is
            to be taken as it is.

    Raises:
        UserError: an option is wrong, or the texts are not comparable.
    """
    if method not in _METHODS:
        names = " or ".join(f"`{name}`" for name in _METHODS)
        raise UserError(f"`method` must be {names}, but is `{method}`.")
    if samples is not None and samples < 1:
        raise UserError(f"`samples` must be 1 or more, but is {samples}.")
    _seed()  # a wrong one is named before sacrebleu meets it
    check_trainings(baseline, system, checked=checked)
    metrics: dict[str, PooledBLEU | PooledCHRF] = {
        "BLEU": PooledBLEU(force=True),
        "chrF": PooledCHRF(),
    }
    test = PairedTest(
        [("baseline", baseline), ("system", system)],
        metrics,
        [baseline.references],
        test_type=_METHODS[method],
        n_samples=samples or 0,
    )
    signatures, results = test()
    if known is None:
        intervals = [_interval(each, baseline, system) for each in metrics.values()]
    else:
        intervals = [known.bleu.interval, known.chrf.interval]
    bleu, chrf = (
        _difference(results[name], str(signature), interval)
        for (name, signature), interval in zip(signatures.items(), intervals)
    )
    return Comparison(method=method, samples=test.n_samples, bleu=bleu, chrf=chrf)


def check_trainings(
    baseline: Trainings, system: Trainings, *, checked: bool = False
) -> None:
    """Refuse what cannot be compared; ``checked`` as in :func:`pooled_test`.

    Raises:
        UserError: a system has no or not as many trainings, or a text is not
            comparable.
    """
    ours, theirs = len(baseline.texts), len(system.texts)
    if ours != theirs or not ours:
        raise UserError(
            "systems must have equally many trainings, one or more, but have "
            f"{ours} and {theirs}."
        )
    if checked:
        return
    for trainings in (baseline, system):
        for hypotheses in trainings.texts:
            check_comparable(hypotheses, trainings.references)


def _difference(
    results: Sequence[Any], signature: str, interval: tuple[float, float]
) -> Difference:
    baseline, system = results
    theirs, ours = float(baseline.score), float(system.score)
    # sacrebleu counts the samples that differ by *more* than observed, and so gives
    # two equal systems the smallest p-value there is.
    p_value = 1.0 if ours == theirs else float(system.p_value)
    return Difference(theirs, ours, p_value, interval, signature)


def _seed() -> int | None:
    text = os.environ.get("SACREBLEU_SEED", "12345")
    if text.lower() == "none":
        return None
    if not text.isdecimal():
        raise UserError(
            f"`SACREBLEU_SEED` must be a whole number, 0 or more, or `none`, but is "
            f"`{text}`."
        )
    return int(text)


def _interval(
    metric: PooledBLEU | PooledCHRF, baseline: Trainings, system: Trainings
) -> tuple[float, float]:
    """Draw sentences, the same for both systems, and trainings of each."""
    rng = np.random.default_rng(_seed())
    sentences = len(baseline)
    # How often each sentence is drawn, (resamples, sentences).
    drawn = rng.multinomial(sentences, [1 / sentences] * sentences, size=_RESAMPLES)

    def resampled(trainings: Trainings) -> np.ndarray:
        sums = drawn @ trainings.counts(metric)  # (trainings, resamples, counts)
        chosen = rng.integers(len(sums), size=(len(sums), _RESAMPLES))
        pooled = sums[chosen, np.arange(_RESAMPLES)].sum(axis=0)
        return np.array([metric._compute_score_from_stats(row).score for row in pooled])

    differences = resampled(system) - resampled(baseline)
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)
