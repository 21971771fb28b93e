"""Is one system really better than another? Paired tests, by sacrebleu."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from fairseq_plugins.evaluation.comparable import check_comparable
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import read_lines

__all__ = ["Comparison", "Difference", "compare", "paired_test"]

_METHODS = {"randomization": "ar", "bootstrap": "bs"}


@dataclass(frozen=True)
class Difference:
    """Two systems by one metric.

    Attributes:
        baseline: score of the baseline.
        system: score of the system.
        p_value: how probable so great a difference is, in either direction, if the
            two were equally good.
        signature: metric, test, number of samples and seed.
    """

    baseline: float
    system: float
    p_value: float
    signature: str


@dataclass(frozen=True)
class Comparison:
    """A system against its baseline; ``dataclasses.asdict`` makes it JSON."""

    method: str
    samples: int
    bleu: Difference
    chrf: Difference


def compare(
    baseline: Path, system: Path, reference: Path, *, method: str = "randomization"
) -> Comparison:
    """Compare two files of translations, one sentence a line; see `paired_test`."""
    files = (baseline, system, reference)
    return paired_test(*map(read_lines, files), method=method)


def paired_test(
    baseline: Sequence[str],
    system: Sequence[str],
    references: Sequence[str],
    *,
    method: str = "randomization",
    samples: int | None = None,
) -> Comparison:
    """Test the difference between two systems on the same sentences.

    Args:
        baseline: plain text, one hypothesis per sentence.
        system: plain text, one hypothesis per sentence.
        references: raw text, one reference per sentence.
        method: ``randomization`` (approximate; Riezler and Maxwell, 2005) or
            ``bootstrap`` (Koehn, 2004).
        samples: sacrebleu's own number (10,000 or 1,000) if not given. The seed is
            sacrebleu's too: 12345, or the environment variable ``SACREBLEU_SEED``.

    Raises:
        UserError: an option is wrong, or the texts are not comparable.
    """
    if method not in _METHODS:
        names = " or ".join(f"`{name}`" for name in _METHODS)
        raise UserError(f"`method` must be {names}, but is `{method}`.")
    if samples is not None and samples < 1:
        raise UserError(f"`samples` must be 1 or more, but is {samples}.")
    check_comparable(baseline, references)
    check_comparable(system, references)
    test = PairedTest(
        [("baseline", baseline), ("system", system)],
        {"BLEU": BLEU(), "chrF": CHRF()},
        [references],
        test_type=_METHODS[method],
        n_samples=samples or 0,
    )
    signatures, results = test()
    bleu, chrf = (
        _difference(results[name], str(signature))
        for name, signature in signatures.items()
    )
    return Comparison(method=method, samples=test.n_samples, bleu=bleu, chrf=chrf)


def _difference(results: Sequence[Any], signature: str) -> Difference:
    baseline, system = results
    theirs, ours = float(baseline.score), float(system.score)
    # sacrebleu counts the samples that differ by *more* than observed, and so gives
    # two equal systems the smallest p-value there is.
    p_value = 1.0 if ours == theirs else float(system.p_value)
    return Difference(theirs, ours, p_value, signature)
