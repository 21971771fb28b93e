"""The scores of a test set: intervals, significance against the control, by length.

The scores of a system over its seeds, as scripts/compare.py pools them.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

from sacrebleu.metrics import BLEU

from fairseq_plugins.evaluation.compare import mean_row
from fairseq_plugins.evaluation.metrics import corpus_bleu
from fairseq_plugins.evaluation.report.runs import Evaluated, ReportRun, Row
from fairseq_plugins.evaluation.significance import Comparison, Trainings, pooled_test
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, write_json

__all__ = [
    "KnownTests",
    "System",
    "bleu_by_length",
    "headline_beam",
    "length_buckets",
    "pooled_rows",
    "score_rows",
    "shown_of",
]

logger = logging.getLogger(__name__)

_BOOTSTRAP_SAMPLES = 1000
_MOST_BUCKETS = 6
_FEWEST_IN_BUCKET = 40  # BLEU of fewer sentences says little
# What is shown of a row of scores.json where it has it; the rest is left alone.
_EXTRA = {"ter": "TER", "comet": "COMET"}


def headline_beam(runs: Sequence[ReportRun], subset: str) -> int:
    """Return the beam that runs are judged by: 5, or what all have that is nearest.

    Raises:
        UserError: the runs have no beam in common.
    """
    shared = set.intersection(*(set(run.scores[subset]) for run in runs))
    if not shared:
        raise UserError(
            f"the runs must share a beam size on `{subset}`, but do not: evaluate them "
            "by scripts/compare.py."
        )
    return min(shared, key=lambda beam: (abs(beam - 5), beam))


def score_rows(
    runs: Sequence[ReportRun],
    subset: str,
    references: Sequence[str],
    known: KnownTests,
    *,
    seeds: int = 1,
) -> list[dict[str, Any]]:
    """Return a row for each run and beam, the control's first.

    ``p_bleu`` and ``p_chrf`` are there for runs that are not the control, at beams that
    the control has too: of a paired approximate randomisation test. A system's runs,
    which are ``seeds`` neighbours, are compared with the control's in their order.
    """
    rows = []
    for number, run in enumerate(runs):
        control = runs[number % seeds].scores[subset]
        for beam, evaluated in run.scores[subset].items():
            row = shown_of(evaluated.row) | {"run": number, "beam": beam}
            row["ci"] = known.interval(run, evaluated, references)
            if number >= seeds and beam in control:
                row |= known.test(run, control[beam], evaluated, references)
                row["change"] = row["bleu"] - control[beam].row["bleu"]
            rows.append(row)
    return rows


def length_buckets(references: Sequence[str]) -> list[tuple[int, int]]:
    """Return ranges of words, both ends included, of about equally many sentences."""
    lengths = sorted(len(line.split()) for line in references)
    wanted = max(1, min(_MOST_BUCKETS, len(lengths) // _FEWEST_IN_BUCKET))
    ends = {lengths[len(lengths) * part // wanted - 1] for part in range(1, wanted)}
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
    """Return corpus BLEU of the sentences whose references are in each bucket."""
    scores: list[float | None] = []
    for first, last in buckets:
        pairs = [
            pair
            for pair in zip(hypotheses, references, strict=True)
            if first <= len(pair[1].split()) <= last
        ]
        ours, gold = [list(side) for side in zip(*pairs)] if pairs else ([], [])
        scores.append(corpus_bleu(ours, gold) if pairs else None)
    return scores


def shown_of(row: Row) -> dict[str, Any]:
    """Return what the page shows of a row of ``scores.json``."""
    shown = {
        name: row.get(name)
        for name in (
            "bleu", "chrf", "checkpoint", "brevity_penalty", "sentences",
            "tokens_per_second", "bleu_signature", "chrf_signature",
        )
    }  # fmt: skip
    extra = {label: row.get(name) for name, label in _EXTRA.items()}
    # Such as {"score": 42.0, "signature": ...}: the number is what the table has.
    extra = {k: v.get("score") if isinstance(v, dict) else v for k, v in extra.items()}
    shown["extra"] = {k: v for k, v in extra.items() if isinstance(v, (int, float))}
    return shown


class KnownTests:
    """Tests and intervals, kept in ``RUN/eval/report.json``: each takes seconds."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, Any]] = {}

    def test(
        self,
        run: ReportRun,
        control: Evaluated,
        system: Evaluated,
        references: Sequence[str],
    ) -> dict[str, Any]:
        """Return ``p_bleu``, ``p_chrf`` and the test's ``signature``."""

        def compute() -> dict[str, Any]:
            return _p_values(_tested(run, [control], [system], references))

        key = f"test {_key(control)} {_key(system)} {system.row['reference_sha256']}"
        result: dict[str, Any] = self._known(run, key, compute)
        return result

    def pooled(
        self,
        run: ReportRun,
        control: Sequence[Evaluated],
        system: Sequence[Evaluated],
        references: Sequence[str],
    ) -> dict[str, Any]:
        """Return the same over seeds, and ``change`` with its ``change_interval``."""

        def compute() -> dict[str, Any]:
            found = _tested(run, control, system, references)
            change = found.bleu.system - found.bleu.baseline
            interval = list(found.bleu.interval)
            return {
                **_p_values(found), "change": change, "change_interval": interval
            }  # fmt: skip

        keys = " ".join(_key(each) for each in (*control, *system))
        key = f"pooled test {keys} {system[0].row['reference_sha256']}"
        result: dict[str, Any] = self._known(run, key, compute)
        return result

    def interval(
        self, run: ReportRun, evaluated: Evaluated, references: Sequence[str]
    ) -> list[float]:
        """Return the ends of BLEU's 95 % confidence interval, by bootstrap."""

        def compute() -> list[float]:
            score = BLEU().corpus_score(
                evaluated.hypotheses, [list(references)], n_bootstrap=_BOOTSTRAP_SAMPLES
            )
            return [score._mean - score._ci, score._mean + score._ci]

        key = f"interval {_key(evaluated)} {evaluated.row['reference_sha256']}"
        result: list[float] = self._known(run, key, compute)
        return result

    def _known(self, run: ReportRun, key: str, compute: Callable[[], Any]) -> Any:
        path = run.path / "eval" / "report.json"
        if path not in self._files:
            found = read_json(path) if path.is_file() else {}
            self._files[path] = found if isinstance(found, dict) else {}
        known = self._files[path]
        if key not in known:
            known[key] = compute()
            try:
                write_json(path, known)
            except PermissionError:  # someone else's run: computed anew each time
                logger.info("`%s` cannot be written: going on without.", path)
        return known[key]


def _tested(
    run: ReportRun,
    control: Sequence[Evaluated],
    system: Sequence[Evaluated],
    references: Sequence[str],
) -> Comparison:
    logger.info("%s, beam %d: significance", run.name, system[0].beam)
    ours, theirs = (
        Trainings([each.hypotheses for each in trainings], references)
        for trainings in (control, system)
    )
    return pooled_test(ours, theirs)


def _p_values(found: Comparison) -> dict[str, Any]:
    return {
        "p_bleu": found.bleu.p_value,
        "p_chrf": found.chrf.p_value,
        "signature": found.bleu.signature,
    }


def _key(evaluated: Evaluated) -> str:
    text = "\n".join(evaluated.hypotheses).encode()
    return hashlib.sha256(text).hexdigest()[:16]


@dataclass(frozen=True)
class System:
    """A system of the report.

    Attributes:
        label: what the page calls it.
        runs: one for each seed.
    """

    label: str
    runs: Sequence[ReportRun]

    def evaluated(self, subset: str) -> dict[int, list[Evaluated]]:
        """Return by beam the evaluations of all runs, for beams that all have."""
        first, *others = [run.scores[subset] for run in self.runs]
        beams = [beam for beam in first if all(beam in other for other in others)]
        return {beam: [run.scores[subset][beam] for run in self.runs] for beam in beams}


def pooled_rows(
    systems: Sequence[System],
    subset: str,
    references: Sequence[str],
    known: KnownTests,
) -> list[dict[str, Any]]:
    """Return a row for each system and beam, the control's first.

    Scores are means over seeds, ``deviation`` is BLEU's between them. ``change`` and
    its ``change_interval`` and the p-values, which the control has none of, are those
    of :func:`significance.pooled_test`.
    """
    control = systems[0].evaluated(subset)
    rows = []
    for number, system in enumerate(systems):
        for beam, evaluated in system.evaluated(subset).items():
            scored = [
                {**each.row, "run": run.name}
                for run, each in zip(system.runs, evaluated)
            ]
            merged = mean_row(scored)
            row = shown_of(merged) | {"system": number, "beam": beam}
            row["deviation"] = merged["bleu_deviation"]
            if number and beam in control:
                row |= known.pooled(
                    system.runs[0], control[beam], evaluated, references
                )
            rows.append(row)
    return rows
