"""Short names of runs and files that are told apart by them.

Which sentences one system translates better than another, and which worse.

A system beside its baseline: what the rows of ``scripts/compare.py`` say of it.

Compare runs with their control: the scores side by side, and what is chance.
"""

from __future__ import annotations

import os
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.evaluation.checks import MAX_EMPTY
from fairseq_plugins.evaluation.evaluate import Row, evaluate_run
from fairseq_plugins.evaluation.metrics import score
from fairseq_plugins.evaluation.significance import PooledCHRF, Trainings, pooled_test
from fairseq_plugins.evaluation.test_sets import read_references
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, read_lines

__all__ = [
    "Change",
    "changes",
    "check_runs",
    "compare_files",
    "compare_runs",
    "compared",
    "distinct_names",
    "mean_row",
    "short_names",
    "system_names",
]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of different paths, as many as make them different."""
    paths = [Path(os.path.abspath(path)) for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = [os.path.join(*path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    raise AssertionError("different paths must have different names")


def short_names(names: Sequence[str]) -> list[str]:
    """Return names without the words that all of them begin with.

    Example:
        ``de-en_lstm_control`` and ``de-en_lstm_soft`` are ``control`` and ``soft``.
    """
    shared = len(_shared_words(names))
    return ["".join(_words(name)[shared:]) for name in names]


def system_names(systems: Sequence[Sequence[Path]]) -> list[str]:
    """Return a short name for each system, given the paths of its trainings.

    Example:
        ``soft_1`` and ``soft_2`` of one system are ``soft``. Where this would not tell
        systems apart, their names have all trainings in them.
    """
    flat = short_names(distinct_names([path for paths in systems for path in paths]))
    rest = iter(flat)
    groups = [[next(rest) for _ in paths] for paths in systems]
    common = [_common(names) for names in groups]
    if all(common) and len(set(common)) == len(common):
        return common
    return [",".join(names) for names in groups]


def _common(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return "".join(_shared_words(names)).rstrip("_/.-")


def _words(name: str) -> list[str]:
    return re.split(r"(?<=[_/.-])", name)


def _shared_words(names: Sequence[str]) -> list[str]:
    """Return the words that all begin with; of each at least one is left."""
    words = [_words(name) for name in names]
    shared = 0
    if len(names) > 1:
        fewest = min(map(len, words))
        while shared < fewest - 1 and len({each[shared] for each in words}) == 1:
            shared += 1
    return words[0][:shared]


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


def compared(baseline: Trainings, system: Trainings, *, shown: int) -> dict[str, Any]:
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


def compare_runs(
    control: Sequence[Path],
    systems: Sequence[Sequence[Path]],
    *,
    shown: int = 3,
    **evaluation: Any,
) -> list[Row]:
    """Evaluate runs where that is not done yet, and test each against the control.

    Args:
        control: run folders, one for each training of the system to compare with.
        systems: the same for each of the other systems; as many of each.
        shown: how many sentences of the greatest gain and loss to list.
        evaluation: options of :func:`evaluate_run`, the same for all runs.

    Returns:
        a row for each system and beam, the control's first: the scores, how long it
        was trained, and for the others what :func:`compared` says.

    Raises:
        UserError: a run is missing or unfinished, or was scored on other sentences, or
            a system has another number of trainings.
    """
    for runs in (control, *systems):
        check_runs(runs, control)
    lengths = {run: _length(run) for runs in (control, *systems) for run in runs}
    # For each beam the control's texts.
    known: dict[int, Trainings] = {}
    rows: list[Row] = []
    for runs in (control, *systems):
        of_runs = [evaluate_run(run, **evaluation) for run in runs]
        for of_beam in zip(*of_runs):
            texts = [_hypotheses(run, row) for run, row in zip(runs, of_beam)]
            trainings = Trainings(texts, _references(runs[0], of_beam[0]))
            scored = [
                {"run": str(run), **lengths[run], **row}
                for run, row in zip(runs, of_beam)
            ]
            for row in scored:
                _check_same_test_set(row, (rows or scored)[0])
            merged = mean_row(scored)
            if runs is control:
                known[merged["beam"]] = trainings
            else:
                merged |= compared(known[merged["beam"]], trainings, shown=shown)
            rows.append(merged)
    return rows


def check_runs(runs: Sequence[Path], control: Sequence[Path]) -> None:
    """Refuse runs of a system that are no match for the control's.

    Raises:
        UserError: they are more or fewer, or one of them is given twice.
    """
    if len(runs) != len(control):
        raise UserError(
            f"every system must have as many runs as the control, {len(control)}, but "
            f"`{','.join(map(str, runs))}` are {len(runs)}."
        )
    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError(
            f"runs of a system must be different ones: `{','.join(map(str, runs))}`."
        )


def _length(run: Path) -> dict[str, Any]:
    """Return how long a run was trained."""
    path = run / "finished.json"
    if not path.is_file():
        raise UserError(f"`{run}` must be a finished run of scripts/train.py.")
    finished = read_json(path)
    return {"updates": finished["updates"], "train_seconds": finished["seconds"]}


def _hypotheses(run: Path, row: Row) -> list[str]:
    return read_lines(run / "eval" / row["hypotheses"])


def _check_same_test_set(row: Row, other: Row) -> None:
    if row["reference_sha256"] != other["reference_sha256"]:
        raise UserError(
            f"`{row['run']}` was evaluated on `{row['title']}`, which is not the same "
            f"text as `{other['title']}` of `{other['run']}`."
        )


def _references(run: Path, row: Row) -> list[str]:
    corpus = PreparedCorpus.load(Path(RunFolder(run).read_config()["data"]))
    return read_references(corpus, row["title"])
