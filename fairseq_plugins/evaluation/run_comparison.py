"""Compare runs with their control: the scores side by side, and what is chance."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from fairseq_plugins.evaluation.comparison import compared, mean_row
from fairseq_plugins.evaluation.pooling import Trainings
from fairseq_plugins.evaluation.run_scores import Row, evaluate_run
from fairseq_plugins.evaluation.run_test_set import read_references
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import read_json, read_lines
from fairseq_plugins.pipeline.manifest import PreparedCorpus
from fairseq_plugins.pipeline.run_folder import RunFolder

__all__ = ["check_runs", "compare_runs"]


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
