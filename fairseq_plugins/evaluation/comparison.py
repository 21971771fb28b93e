"""A system beside its baseline: what the rows of ``scripts/compare.py`` say of it."""
from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Sequence

from fairseq_plugins.evaluation.changes import Change, changes
from fairseq_plugins.evaluation.comparable import MAX_EMPTY
from fairseq_plugins.evaluation.pooling import Trainings
from fairseq_plugins.evaluation.score_store import Row
from fairseq_plugins.evaluation.scoring import score
from fairseq_plugins.evaluation.significance import pooled_test
from fairseq_plugins.pipeline.files import read_lines

__all__ = ["compare_files", "compared", "mean_row"]

_MEANS = ("bleu", "chrf", "ter", "oracle_bleu", "search_errors", "length_ratio")
_COSTS = ("seconds", "tokens_per_second", "train_seconds")


def compare_files(
    baseline: Sequence[Path],
    systems: Sequence[Sequence[Path]],
    reference: Path,
    *,
    source: Path | None = None,
    shown: int = 3,
    max_empty: float = MAX_EMPTY,
    force: bool = False,
) -> list[Row]:
    """Compare files of translations, one sentence a line.

    Args:
        baseline: a file for each training of the system to compare with.
        systems: the same for each of the other systems.
        reference: raw text.
        source: what was translated, for checks only.
        max_empty, force: what is refused; see :func:`scoring.score`.
        shown: how many sentences of the greatest gain and loss to list.

    Returns:
        a row for each system, the baseline's first; see :func:`mean_row` and
        :func:`compared`.

    Raises:
        UserError: a file is missing, or the texts are not comparable.
    """
    references = read_lines(reference)
    checks: dict[str, Any] = dict(max_empty=max_empty, force=force)
    checks["sources"] = None if source is None else read_lines(source)
    known: Trainings | None = None
    rows: list[Row] = []
    for files in (baseline, *systems):
        texts = [read_lines(file) for file in files]
        trainings = Trainings(texts, references)
        row = mean_row(
            [_scores(file, t, references, checks) for file, t in zip(files, texts)]
        )
        if known is None:
            known = trainings
        else:
            row |= compared(known, trainings, shown=shown)
        rows.append(row)
    return rows


def mean_row(rows: Sequence[Row]) -> Row:
    """Return one row for all trainings of a system.

    Of one training it is that one's. Of several, scores and costs are means, ``run``
    holds all names with commas between them, ``runs`` a list of them, and
    ``bleu_of_runs`` and ``bleu_deviation`` (of the sample) say how much BLEU depends on
    the training. The rest is the first one's.
    """
    if len(rows) == 1:
        return dict(rows[0])
    merged = dict(rows[0])
    for key in (*_MEANS, *_COSTS):
        values = [row.get(key) for row in rows]
        if key in merged:
            numbers = [value for value in values if value is not None]
            whole = len(numbers) == len(values)
            merged[key] = statistics.mean(numbers) if whole else None
    merged["forced"] = any(row.get("forced") for row in rows)
    merged["runs"] = [row["run"] for row in rows]
    merged["run"] = ",".join(merged["runs"])
    merged["bleu_of_runs"] = [row["bleu"] for row in rows]
    merged["bleu_deviation"] = statistics.stdev(merged["bleu_of_runs"])
    return merged


def compared(
    baseline: Trainings, system: Trainings, *, shown: int
) -> dict[str, Any]:
    """Return what a row gets from the comparison with the baseline.

    Both were scored before, and so checked as far as the user wants them to be.

    Returns:
        for ``bleu`` and ``chrf`` each the ``_difference`` of the pooled scores, its
        ``_interval``, and the p-values of both tests: ``_p_value`` (approximate
        randomisation) and ``_p_bootstrap``; the signatures of the tests for BLEU; and
        ``gains`` and ``losses``, sentences that changed most.

    Raises:
        UserError: the systems have not as many trainings.
    """
    test = pooled_test(baseline, system, checked=True)
    bootstrap = pooled_test(
        baseline, system, method="bootstrap", known=test, checked=True
    )
    row: dict[str, Any] = {}
    for name in ("bleu", "chrf"):
        difference = getattr(test, name)
        row[f"{name}_difference"] = difference.system - difference.baseline
        row[f"{name}_interval"] = list(difference.interval)
        row[f"{name}_p_value"] = difference.p_value
        row[f"{name}_p_bootstrap"] = getattr(bootstrap, name).p_value
    row["test_signature"] = test.bleu.signature
    row["bootstrap_signature"] = bootstrap.bleu.signature

    def entry(change: Change) -> dict[str, Any]:
        number = change.line - 1
        return {
            "line": change.line,
            "chrf_baseline": change.baseline,
            "chrf": change.system,
            "reference": baseline.references[number],
            "baseline": baseline.texts[0][number],
            "system": system.texts[0][number],
        }

    found = changes(baseline, system)
    gains = [entry(change) for change in found if change.gain > 0]
    losses = [entry(change) for change in reversed(found) if change.gain < 0]
    row["gains"], row["losses"] = gains[:shown], losses[:shown]
    return row


def _scores(
    file: Path, hypotheses: list[str], references: list[str], checks: dict[str, Any]
) -> Row:
    scores = score(hypotheses, references, **checks)
    return {
        "run": str(file),
        "bleu": scores.bleu,
        "bleu_signature": scores.bleu_signature,
        "chrf": scores.chrf,
        "chrf_signature": scores.chrf_signature,
        "ter": scores.ter,
        "ter_signature": scores.ter_signature,
        "sentences": len(references),
        "forced": scores.forced,
    }
