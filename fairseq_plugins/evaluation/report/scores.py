"""Scores of a test set: intervals, tests against the control, means over seeds."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

from sacrebleu.metrics import BLEU

from fairseq_plugins.evaluation.compare import mean_row
from fairseq_plugins.evaluation.metrics import SystemOutputs, corpus_bleu
from fairseq_plugins.evaluation.report.runs import Evaluation, ReportRun, Row
from fairseq_plugins.evaluation.significance import pooled_test
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, write_json

__all__ = [
    "StatisticsCache",
    "System",
    "bleu_by_length",
    "common_beam",
    "length_buckets",
    "pooled_rows",
    "score_rows",
]

logger = logging.getLogger(__name__)

_BOOTSTRAP_SAMPLES = 1000
_MAX_BUCKETS = 6
_MIN_BUCKET_SIZE = 40  # BLEU of fewer sentences is too noisy
_SHOWN_KEYS = (
    "bleu", "chrf", "checkpoint", "brevity_penalty", "sentences", "tokens_per_second",
    "bleu_signature", "chrf_signature",
)  # fmt: skip
_OPTIONAL_METRICS = {"ter": "TER", "comet": "COMET"}


@dataclass(frozen=True)
class System:
    """A system of the report: one run for each seed."""

    label: str
    runs: Sequence[ReportRun]

    def evaluations(self, subset: str) -> dict[int, list[Evaluation]]:
        """Return the evaluations of all runs at the beam sizes that they share."""
        first, *others = [run.scores[subset] for run in self.runs]
        beams = [beam for beam in first if all(beam in other for other in others)]
        return {beam: [run.scores[subset][beam] for run in self.runs] for beam in beams}


def common_beam(runs: Sequence[ReportRun], subset: str) -> int:
    """Return the beam size at which runs are compared: 5, or the nearest shared one.

    Raises:
        UserError: the runs have no beam size in common.
    """
    shared = set.intersection(*(set(run.scores[subset]) for run in runs))
    if not shared:
        raise UserError(
            f"the runs must share a beam size on `{subset}`, but do not: evaluate them "
            "with scripts/compare.py."
        )
    return min(shared, key=lambda beam: (abs(beam - 5), beam))


def score_rows(
    runs: Sequence[ReportRun],
    subset: str,
    references: Sequence[str],
    cache: StatisticsCache,
    *,
    seeds: int = 1,
) -> list[dict[str, Any]]:
    """Return a row for each run and beam size, those of the control first.

    Each run is compared with the control's run of the same seed, at the beam sizes
    that both have: ``change``, and ``p_bleu`` and ``p_chrf`` of a paired approximate
    randomization test.

    Args:
        runs: ``seeds`` runs of each system, the control first.
    """
    rows = []
    for number, run in enumerate(runs):
        control = runs[number % seeds].scores[subset]
        for beam, evaluated in run.scores[subset].items():
            row = _select_shown(evaluated.row) | {"run": number, "beam": beam}
            row["ci"] = cache.bleu_interval(run, evaluated, references)
            if number >= seeds and beam in control:
                row |= cache.test(run, [control[beam]], [evaluated], references)
                row["change"] = row["bleu"] - control[beam].row["bleu"]
            rows.append(row)
    return rows


def pooled_rows(
    systems: Sequence[System],
    subset: str,
    references: Sequence[str],
    cache: StatisticsCache,
) -> list[dict[str, Any]]:
    """Return a row for each system and beam size, those of the control first.

    Scores are means over seeds, and ``deviation`` is the standard deviation of BLEU
    between seeds. All systems except the control have ``change``, its
    ``change_interval`` and the p-values of `significance.pooled_test`.
    """
    control = systems[0].evaluations(subset)
    rows = []
    for number, system in enumerate(systems):
        for beam, evaluated in system.evaluations(subset).items():
            mean = mean_row(
                [
                    {**each.row, "run": run.name}
                    for run, each in zip(system.runs, evaluated)
                ]
            )
            row = _select_shown(mean) | {"system": number, "beam": beam}
            row["deviation"] = mean["bleu_deviation"]
            if number and beam in control:
                row |= cache.test(
                    system.runs[0], control[beam], evaluated, references, is_pooled=True
                )
            rows.append(row)
    return rows


def length_buckets(references: Sequence[str]) -> list[tuple[int, int]]:
    """Return ranges of words, both ends included, of about equally many sentences."""
    lengths = sorted(len(line.split()) for line in references)
    count = max(1, min(_MAX_BUCKETS, len(lengths) // _MIN_BUCKET_SIZE))
    ends = {lengths[len(lengths) * part // count - 1] for part in range(1, count)}
    ends = {end for end in ends if end < lengths[-1]} | {lengths[-1]}
    buckets, start = [], lengths[0]
    for end in sorted(ends):
        buckets.append((start, end))
        start = end + 1
    return buckets


def bleu_by_length(
    hypotheses: Sequence[str],
    references: Sequence[str],
    buckets: Sequence[tuple[int, int]],
) -> list[float | None]:
    """Return corpus BLEU of the sentences with references in each bucket."""
    scores: list[float | None] = []
    for first, last in buckets:
        pairs = [
            pair
            for pair in zip(hypotheses, references, strict=True)
            if first <= len(pair[1].split()) <= last
        ]
        scores.append(corpus_bleu(*map(list, zip(*pairs))) if pairs else None)
    return scores


class StatisticsCache:
    """Keeps intervals and tests in ``RUN/eval/report.json``, as each takes seconds."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, Any]] = {}

    def bleu_interval(
        self, run: ReportRun, evaluated: Evaluation, references: Sequence[str]
    ) -> list[float]:
        """Return the ends of the 95 % bootstrap interval of BLEU."""

        def compute() -> list[float]:
            score = BLEU().corpus_score(
                evaluated.hypotheses, [list(references)], n_bootstrap=_BOOTSTRAP_SAMPLES
            )
            return [score._mean - score._ci, score._mean + score._ci]

        key = f"interval {_digest(evaluated)} {evaluated.row['reference_sha256']}"
        result: list[float] = self._get(run, key, compute)
        return result

    def test(
        self,
        run: ReportRun,
        control: Sequence[Evaluation],
        system: Sequence[Evaluation],
        references: Sequence[str],
        *,
        is_pooled: bool = False,
    ) -> dict[str, Any]:
        """Return ``p_bleu``, ``p_chrf`` and the ``signature`` of the test.

        If ``is_pooled``, also ``change`` and ``change_interval`` over seeds.

        Args:
            run: its folder keeps the result.
            control, system: one evaluation for each seed.
        """

        def compute() -> dict[str, Any]:
            logger.info("%s, beam %d: significance", run.name, system[0].row["beam"])
            one, other = (
                SystemOutputs([each.hypotheses for each in evaluations], references)
                for evaluations in (control, system)
            )
            found = pooled_test(one, other)
            result = {
                "p_bleu": found.bleu.p_value,
                "p_chrf": found.chrf.p_value,
                "signature": found.bleu.signature,
            }
            if is_pooled:
                result["change"] = found.bleu.system - found.bleu.baseline
                result["change_interval"] = list(found.bleu.interval)
            return result

        digests = " ".join(map(_digest, (*control, *system)))
        name = "pooled test" if is_pooled else "test"
        key = f"{name} {digests} {system[0].row['reference_sha256']}"
        result: dict[str, Any] = self._get(run, key, compute)
        return result

    def _get(self, run: ReportRun, key: str, compute: Callable[[], Any]) -> Any:
        path = run.path / "eval" / "report.json"
        if path not in self._files:
            kept = read_json(path) if path.is_file() else {}
            self._files[path] = kept if isinstance(kept, dict) else {}
        kept = self._files[path]
        if key not in kept:
            kept[key] = compute()
            try:
                write_json(path, kept)
            except PermissionError:  # the run of another user
                logger.info("`%s` cannot be written, so nothing is kept.", path)
        return kept[key]


def _select_shown(row: Row) -> dict[str, Any]:
    """Return the part of a row of ``scores.json`` that the report shows."""
    shown = {name: row.get(name) for name in _SHOWN_KEYS}
    extra: dict[str, float] = {}
    shown["extra"] = extra
    for name, label in _OPTIONAL_METRICS.items():
        value = row.get(name)
        if isinstance(value, dict):  # such as {"score": 42.0, "signature": ...}
            value = value.get("score")
        if isinstance(value, (int, float)):
            extra[label] = value
    return shown


def _digest(evaluated: Evaluation) -> str:
    text = "\n".join(evaluated.hypotheses).encode()
    return hashlib.sha256(text).hexdigest()[:16]
