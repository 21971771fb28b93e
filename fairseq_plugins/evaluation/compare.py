"""Compare systems with a control: their scores, and the significance of differences."""

from __future__ import annotations

import os
import re
import statistics
from pathlib import Path
from typing import Any, Sequence

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.evaluation.checks import MAX_EMPTY
from fairseq_plugins.evaluation.evaluate import Row, evaluate_run
from fairseq_plugins.evaluation.metrics import PooledCHRF, SystemOutputs, score
from fairseq_plugins.evaluation.significance import pooled_test
from fairseq_plugins.evaluation.test_sets import find_test_set
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, read_lines

__all__ = [
    "check_runs",
    "compare_files",
    "compare_runs",
    "compare_with_baseline",
    "distinct_names",
    "mean_row",
    "short_names",
    "system_names",
]

_MEANS = ("bleu", "chrf", "ter", "oracle_bleu", "search_errors", "length_ratio")
_COSTS = ("seconds", "tokens_per_second", "train_seconds")
# The scores of a file that its row contains.
_FILE_SCORES = (
    *("bleu", "bleu_signature", "chrf", "chrf_signature", "ter", "ter_signature"),
    "forced",
)


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
    """Compare files of translations, one sentence per line.

    Args:
        baseline: a file for each training run of the baseline.
        systems: the same for each of the other systems.
        reference: raw text.
        source: source text, used in checks only.
        shown: how many sentences with the greatest gain and loss to list.
        max_empty: see :func:`fairseq_plugins.evaluation.metrics.score`.
        force: likewise.

    Returns:
        a row for each system, the baseline's first; see :func:`mean_row` and
        :func:`compare_with_baseline`.

    Raises:
        UserError: a file is missing, or the texts are not comparable.
    """
    references = read_lines(reference)
    sources = None if source is None else read_lines(source)
    known: SystemOutputs | None = None
    rows: list[Row] = []
    for files in (baseline, *systems):
        texts = [read_lines(file) for file in files]
        scores = []
        for file, text in zip(files, texts):
            found = score(
                text, references, sources=sources, max_empty=max_empty, force=force
            )
            of_file = {key: getattr(found, key) for key in _FILE_SCORES}
            scores.append({"run": str(file), "sentences": len(text), **of_file})
        row, outputs = mean_row(scores), SystemOutputs(texts, references)
        if known is None:
            known = outputs
        else:
            row |= compare_with_baseline(known, outputs, shown=shown)
        rows.append(row)
    return rows


def compare_runs(
    control: Sequence[Path],
    systems: Sequence[Sequence[Path]],
    *,
    shown: int = 3,
    **evaluation: Any,
) -> list[Row]:
    """Evaluate runs where necessary, and test each system against the control.

    Args:
        control: run folders, one for each training run of the control.
        systems: the same for each of the other systems, with as many runs each.
        shown: how many sentences with the greatest gain and loss to list.
        evaluation: options of :func:`evaluate_run`, the same for all runs.

    Returns:
        a row for each system and beam, the control's first: the scores, the length of
        the training, and for the others the result of :func:`compare_with_baseline`.

    Raises:
        UserError: a run is missing or unfinished, or was scored on other sentences, or
            a system has another number of runs.
    """
    for runs in (control, *systems):
        check_runs(runs, control)
    lengths = {
        run: _training_length(run) for runs in (control, *systems) for run in runs
    }
    controls: dict[int, SystemOutputs] = {}  # by beam
    rows: list[Row] = []
    for runs in (control, *systems):
        for of_beam in zip(*(evaluate_run(run, **evaluation) for run in runs)):
            texts = [
                read_lines(run / "eval" / row["hypotheses"])
                for run, row in zip(runs, of_beam)
            ]
            outputs = SystemOutputs(texts, _read_references(runs[0], of_beam[0]))
            scored = [
                {"run": str(run), **lengths[run], **row}
                for run, row in zip(runs, of_beam)
            ]
            for row in scored:
                _check_same_test_set(row, (rows or scored)[0])
            merged = mean_row(scored)
            if runs is control:
                controls[merged["beam"]] = outputs
            else:
                merged |= compare_with_baseline(
                    controls[merged["beam"]], outputs, shown=shown
                )
            rows.append(merged)
    return rows


def check_runs(runs: Sequence[Path], control: Sequence[Path]) -> None:
    """Refuse runs of a system that cannot be compared with the control's.

    Raises:
        UserError: their numbers differ, or a run is given twice.
    """
    if len(runs) != len(control):
        raise UserError(
            f"every system must have as many runs as the control, {len(control)}, but "
            f"`{','.join(map(str, runs))}` has {len(runs)}."
        )
    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError(
            f"the runs of a system must be different, but are "
            f"`{','.join(map(str, runs))}`."
        )


def compare_with_baseline(
    baseline: SystemOutputs, system: SystemOutputs, *, shown: int
) -> dict[str, Any]:
    """Return the entries of a system's row that compare it with the baseline.

    The texts must have been checked before.

    Returns:
        for ``bleu`` and ``chrf`` each the ``_difference`` of the pooled scores, its
        ``_interval``, and the p-values ``_p_value`` (approximate randomization) and
        ``_p_bootstrap``; the signatures of the tests for BLEU; and ``gains`` and
        ``losses``, the sentences with the greatest changes.

    Raises:
        UserError: the systems have different numbers of runs.
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
    # Sentence BLEU of a short sentence without a match of four words is 0 or depends on
    # smoothing, so sentences are compared by chrF.
    metric = PooledCHRF()
    before, after = (each.sentence_scores(metric) for each in (baseline, system))
    order = sorted(
        range(len(system)), key=lambda number: before[number] - after[number]
    )

    def entry(number: int) -> dict[str, Any]:
        return {
            "line": number + 1,
            "chrf_baseline": before[number],
            "chrf": after[number],
            "reference": baseline.references[number],
            "baseline": baseline.texts[0][number],
            "system": system.texts[0][number],
        }

    gains = [number for number in order if after[number] > before[number]]
    losses = [number for number in reversed(order) if after[number] < before[number]]
    row["gains"] = [entry(number) for number in gains[:shown]]
    row["losses"] = [entry(number) for number in losses[:shown]]
    return row


def mean_row(rows: Sequence[Row]) -> Row:
    """Return one row for all training runs of a system.

    Scores and costs of several runs are averaged. ``run`` has all names, separated by
    commas, ``runs`` a list of them, and ``bleu_of_runs`` and ``bleu_deviation`` (of the
    sample) show how BLEU depends on the training. Other entries are the first run's.
    """
    merged = dict(rows[0])
    if len(rows) == 1:
        return merged
    for key in (*_MEANS, *_COSTS):
        if key in merged:
            values = [row.get(key) for row in rows]
            numbers = [value for value in values if value is not None]
            is_complete = len(numbers) == len(values)
            merged[key] = statistics.mean(numbers) if is_complete else None
    merged["forced"] = any(row.get("forced") for row in rows)
    merged["runs"] = [row["run"] for row in rows]
    merged["run"] = ",".join(merged["runs"])
    merged["bleu_of_runs"] = [row["bleu"] for row in rows]
    merged["bleu_deviation"] = statistics.stdev(merged["bleu_of_runs"])
    return merged


def _training_length(run: Path) -> dict[str, Any]:
    path = run / "finished.json"
    if not path.is_file():
        raise UserError(f"`{run}` must be a finished run of scripts/train.py.")
    finished = read_json(path)
    return {"updates": finished["updates"], "train_seconds": finished["seconds"]}


def _read_references(run: Path, row: Row) -> list[str]:
    corpus = PreparedCorpus.load(Path(RunFolder(run).read_config()["data"]))
    return find_test_set(corpus, row["title"]).references


def _check_same_test_set(row: Row, other: Row) -> None:
    if row["reference_sha256"] != other["reference_sha256"]:
        raise UserError(
            f"`{row['run']}` was evaluated on `{row['title']}`, which is not the same "
            f"text as `{other['title']}` of `{other['run']}`."
        )


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of different paths that distinguish them."""
    paths = [Path(os.path.abspath(path)) for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = [os.path.join(*path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    raise AssertionError("different paths must have different names")


def short_names(names: Sequence[str]) -> list[str]:
    """Return names without the words that all of them begin with.

    Example:
        ``de-en_lstm_control`` and ``de-en_lstm_soft`` become ``control`` and ``soft``.
    """
    common = len(_common_words(names))
    return ["".join(_words(name)[common:]) for name in names]


def system_names(systems: Sequence[Sequence[Path]]) -> list[str]:
    """Return a short name for each system, given the paths of its training runs.

    Example:
        A system of ``soft_1`` and ``soft_2`` becomes ``soft``. If such names do not
        distinguish systems, they list all training runs.
    """
    flat = short_names(distinct_names([path for paths in systems for path in paths]))
    rest = iter(flat)
    groups = [[next(rest) for _ in paths] for paths in systems]
    common = [
        "".join(_common_words(names)).rstrip("_/.-") if len(names) > 1 else names[0]
        for names in groups
    ]
    if all(common) and len(set(common)) == len(common):
        return common
    return [",".join(names) for names in groups]


def _words(name: str) -> list[str]:
    return re.split(r"(?<=[_/.-])", name)


def _common_words(names: Sequence[str]) -> list[str]:
    """Return the words that all names begin with, except the last word of a name."""
    words = [_words(name) for name in names]
    common = 0
    if len(names) > 1:
        fewest = min(map(len, words))
        while common < fewest - 1 and len({each[common] for each in words}) == 1:
            common += 1
    return words[0][:common]
