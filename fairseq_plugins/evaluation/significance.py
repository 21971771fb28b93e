"""Paired tests of the difference between two systems, by sacrebleu."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np
from sacrebleu.significance import PairedTest

from fairseq_plugins.evaluation.checks import check_comparable
from fairseq_plugins.evaluation.metrics import (
    PooledBLEU,
    PooledCHRF,
    SystemOutputs,
    score_from_counts,
)
from fairseq_plugins.utils.errors import UserError

__all__ = [
    "Comparison",
    "Difference",
    "check_systems",
    "paired_test",
    "pooled_test",
]

_METHODS = {"randomization": "ar", "bootstrap": "bs"}
_RESAMPLES = 1000


@dataclass(frozen=True)
class Difference:
    """The scores of two systems by one metric, and their difference.

    Attributes:
        baseline: score of the baseline, over all its training runs together.
        system: score of the system, likewise.
        p_value: with ``randomization``, the probability of a difference of at least
            this size, in either direction, between equally good systems. With
            ``bootstrap`` it is sacrebleu's figure, which is smaller: it compares the
            difference with the deviation of the samples' absolute differences from
            their mean.
        interval: 95 % confidence interval of system minus baseline, by bootstrap over
            test sentences and, if there are several, training runs.
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
    """Test the difference of one training run each; see :func:`pooled_test`."""
    pair = SystemOutputs([baseline], references), SystemOutputs([system], references)
    return pooled_test(*pair, method=method, samples=samples, checked=checked)


def pooled_test(
    baseline: SystemOutputs,
    system: SystemOutputs,
    *,
    method: str = "randomization",
    samples: int | None = None,
    known: Comparison | None = None,
    checked: bool = False,
) -> Comparison:
    """Test the difference between two systems on the same sentences.

    A sentence is exchanged or drawn together with all its translations by a system's
    training runs. The p-value takes the runs as given. The interval also draws runs, so
    it covers the variance between runs. With few runs it is too narrow.

    Args:
        baseline: plain text of each training run.
        system: the same for the other system, with as many runs.
        method: ``randomization`` (approximate; Riezler and Maxwell, 2005) or
            ``bootstrap`` (Koehn, 2004).
        samples: sacrebleu's default (10,000 or 1,000) if not given. The seed is also
            sacrebleu's: 12345, or the environment variable ``SACREBLEU_SEED``.
        known: a comparison of these systems by the other method. Its intervals are
            reused, since they do not depend on the method.
        checked: skip the check that the texts are comparable.

    Raises:
        UserError: an option is wrong, or the texts are not comparable.
    """
    if method not in _METHODS:
        names = " or ".join(f"`{name}`" for name in _METHODS)
        raise UserError(f"`method` must be {names}, but is `{method}`.")
    if samples is not None and samples < 1:
        raise UserError(f"`samples` must be 1 or more, but is {samples}.")
    _read_seed()  # sacrebleu would fail with a traceback
    check_systems(baseline, system, checked=checked)
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


def check_systems(
    baseline: SystemOutputs, system: SystemOutputs, *, checked: bool = False
) -> None:
    """Refuse systems that cannot be compared; ``checked`` as in :func:`pooled_test`.

    Raises:
        UserError: the numbers of training runs differ or are 0, or a text is not
            comparable.
    """
    ours, theirs = len(baseline.texts), len(system.texts)
    if ours != theirs or not ours:
        raise UserError(
            "systems must have the same number of training runs, one or more, but have "
            f"{ours} and {theirs}."
        )
    if not checked:
        for outputs in (baseline, system):
            for hypotheses in outputs.texts:
                check_comparable(hypotheses, outputs.references)


def _difference(
    results: Sequence[Any], signature: str, interval: tuple[float, float]
) -> Difference:
    baseline, system = results
    theirs, ours = float(baseline.score), float(system.score)
    # sacrebleu counts the samples that differ by *more* than observed, and so gives
    # two equal systems the smallest possible p-value.
    p_value = 1.0 if ours == theirs else float(system.p_value)
    return Difference(theirs, ours, p_value, interval, signature)


def _read_seed() -> int | None:
    text = os.environ.get("SACREBLEU_SEED", "12345")
    if text.lower() == "none":
        return None
    if not text.isdecimal():
        raise UserError(
            "`SACREBLEU_SEED` must be a whole number, 0 or more, or `none`, but is "
            f"`{text}`."
        )
    return int(text)


def _interval(
    metric: PooledBLEU | PooledCHRF, baseline: SystemOutputs, system: SystemOutputs
) -> tuple[float, float]:
    """Resample sentences, the same for both systems, and the training runs of each."""
    rng = np.random.default_rng(_read_seed())
    sentences = len(baseline)
    # How often each sentence is drawn, (resamples, sentences).
    drawn = rng.multinomial(sentences, [1 / sentences] * sentences, size=_RESAMPLES)

    def resample(outputs: SystemOutputs) -> np.ndarray:
        sums = drawn @ outputs.counts(metric)  # (runs, resamples, counts)
        chosen = rng.integers(len(sums), size=(len(sums), _RESAMPLES))
        pooled = sums[chosen, np.arange(_RESAMPLES)].sum(axis=0)
        return np.array([score_from_counts(metric, row) for row in pooled])

    differences = resample(system) - resample(baseline)
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)
