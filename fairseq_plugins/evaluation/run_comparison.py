"""Compare runs with their control: the scores side by side, and what is chance."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from fairseq_plugins.evaluation.run_scores import Row, evaluate_run
from fairseq_plugins.evaluation.run_test_set import read_references
from fairseq_plugins.evaluation.significance import paired_test
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import read_json, read_lines
from fairseq_plugins.pipeline.manifest import PreparedCorpus
from fairseq_plugins.pipeline.run_folder import RunFolder

__all__ = ["compare_runs"]


def compare_runs(
    control: Path, systems: Sequence[Path], **evaluation: Any
) -> list[Row]:
    """Evaluate runs where that is not done yet, and test each against the control.

    Args:
        control: run folder that the others are compared with.
        systems: the other run folders.
        evaluation: options of :func:`evaluate_run`, the same for all runs.

    Returns:
        a row for each run and beam, the control's first: the scores, how long the run
        was trained, and for the others p-values of a paired randomisation test.

    Raises:
        UserError: a run is missing or unfinished, or was scored on other sentences.
    """
    rows = []
    known: dict[int, tuple[Row, list[str]]] = {}
    for run in (control, *systems):
        length = _length(run)
        for scores in evaluate_run(run, **evaluation):
            hypotheses = read_lines(run / "eval" / scores["hypotheses"])
            row = {"run": str(run), **length, **scores}
            if run == control:
                known[scores["beam"]] = (scores, hypotheses)
            else:
                baseline, baseline_hypotheses = known[scores["beam"]]
                _check_same_test_set(run, scores, control, baseline)
                references = _references(run, row)
                test = paired_test(baseline_hypotheses, hypotheses, references)
                row["bleu_p_value"] = test.bleu.p_value
                row["chrf_p_value"] = test.chrf.p_value
                row["test_signature"] = test.bleu.signature
            rows.append(row)
    return rows


def _length(run: Path) -> dict[str, Any]:
    """Return how long a run was trained."""
    path = run / "finished.json"
    if not path.is_file():
        raise UserError(f"`{run}` must be a finished run of scripts/train.py.")
    finished = read_json(path)
    return {"updates": finished["updates"], "train_seconds": finished["seconds"]}


def _check_same_test_set(run: Path, row: Row, control: Path, other: Row) -> None:
    if row["reference_sha256"] != other["reference_sha256"]:
        raise UserError(
            f"`{run}` was evaluated on `{row['title']}`, which is not the same text as "
            f"`{other['title']}` of `{control}`."
        )


def _references(run: Path, row: Row) -> list[str]:
    corpus = PreparedCorpus.load(Path(RunFolder(run).read_config()["data"]))
    return read_references(corpus, row["title"])
