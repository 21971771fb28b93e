"""Read the run folders of a report, and choose the scores that it compares.

All runs are compared by the same checkpoint, such as the best or the last one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from fairseq_plugins.corpus.binarize import Dictionary
from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.evaluation.compare import distinct_names
from fairseq_plugins.evaluation.evaluate import (
    Row,
    checkpoint_file_name,
    checkpoint_path,
)
from fairseq_plugins.training.config import Config
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, read_lines, sha256_of

__all__ = ["Evaluation", "ReportRun", "Row", "check_explorer_beam", "load_runs"]

# scripts/evaluate.py writes these keys in every row of scores.json.
_KEYS = (
    "subset", "title", "checkpoint", "lenpen", "beam", "hypotheses", "reference_sha256",
    "bleu", "bleu_signature", "chrf", "chrf_signature",
)  # fmt: skip
# No slot continues with padding or after the end of the sentence.
_NEVER_CONTINUED = 2


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: a row of ``scores.json`` and its translations."""

    row: Row
    hypotheses: list[str]


@dataclass(frozen=True)
class ReportRun:
    """A run of the report.

    Attributes:
        name: unique in the report.
        path: the run folder.
        config: the configuration that it was trained with.
        command: its ``fairseq-train`` command, empty if it was not recorded.
        finished: ``updates`` and ``seconds``, empty while the training is unfinished.
        corpus: its training corpus.
        scores: for each test set that all runs share, the evaluations by beam size.
    """

    name: str
    path: Path
    config: Config
    command: str
    finished: dict[str, Any]
    corpus: PreparedCorpus
    scores: dict[str, dict[int, Evaluation]]

    def row(self, subset: str) -> Row:
        """Return one row of a test set; all its rows share checkpoint and text."""
        return next(iter(self.scores[subset].values())).row

    def checkpoint(self, subset: str) -> Path:
        """Return the checkpoint that was scored on a test set.

        Raises:
            UserError: it does not exist.
        """
        path = checkpoint_path(RunFolder(self.path), self.row(subset))
        if not path.is_file():
            raise UserError(
                f"`{path}` does not exist, but `{self.path}` was scored with it. "
                "Give --explore 0 for a report without the beam explorer."
            )
        return path

    def references(self, subset: str) -> list[str]:
        """Return the references that the scores belong to.

        Raises:
            UserError: they have changed since.
        """
        path = self.corpus.subsets[subset].target
        expected = self.row(subset)["reference_sha256"]
        if not path.is_file() or sha256_of(path) != expected:
            raise UserError(
                f"`{path}` has changed since `{self.path}` was evaluated: run "
                "scripts/evaluate.py again."
            )
        return read_lines(path)


def load_runs(
    paths: Sequence[Path], *, checkpoint: str | None = None, lenpen: float = 1.0
) -> list[ReportRun]:
    """Read the runs of a report.

    Args:
        paths: run folders, the control first.
        checkpoint: ``best``, ``last`` or a file name. By default, for each test set,
            the checkpoint that all runs were evaluated by; see `choose_rows`.
        lenpen: only scores with this length penalty.

    Returns:
        The runs; ``scores`` has the test sets that all runs share. Validation data
        come last, because the checkpoint was chosen on them.

    Raises:
        UserError: a folder is given twice, is no run folder or has no such scores; or
            the runs cannot be compared.
    """
    folders = [path.expanduser().resolve() for path in paths]
    for path, count in Counter(folders).items():
        if count > 1:
            raise UserError(f"`{path}` is given {count} times; give each run once.")
    runs = [_read(path, name) for path, name in zip(folders, distinct_names(folders))]
    rows: dict[str, list[Row]] = {}
    for run in runs:
        rows[run.name] = [
            row
            for row in _read_rows(run.path)
            if row["lenpen"] == lenpen
            and (
                checkpoint is None
                or row["checkpoint"] == checkpoint_file_name(checkpoint)
            )
        ]
        if not rows[run.name]:
            of = f" of checkpoint `{checkpoint}`" if checkpoint else ""
            raise UserError(f"`{run.path}` has no scores{of} with lenpen {lenpen:g}.")
    for subset in _shared_test_sets(rows):
        in_subset = {
            name: [row for row in some if row["subset"] == subset]
            for name, some in rows.items()
        }
        chosen = choose_rows(in_subset, subset)
        for run in runs:
            run.scores[subset] = {
                row["beam"]: _read_hypotheses(run.path, row) for row in chosen[run.name]
            }
        _check_same_references(runs, subset)
    return runs


def choose_rows(rows: Mapping[str, Sequence[Row]], subset: str) -> dict[str, list[Row]]:
    """Return for each run the rows of one checkpoint, in the order of the beam sizes.

    Averaged checkpoints have a different name in each run. They are the same if they
    average the same number of checkpoints or, if no such average is shared, if both
    are averages. If several checkpoints are shared, the one with the most rows is
    chosen, and among equals the best one of the training.

    Args:
        rows: for each run its rows of the test set.
        subset: the test set, for the message.

    Raises:
        UserError: no checkpoint is shared by all runs.
    """
    for kind_of in (_checkpoint_kind, _rough_checkpoint_kind):
        kinds = {run: _rows_by_kind(some, kind_of) for run, some in rows.items()}
        shared = set.intersection(*map(set, kinds.values()))
        if shared:
            numbers = {k: sum(len(of[k]) for of in kinds.values()) for k in shared}
            best = checkpoint_file_name("best")
            chosen = min(shared, key=lambda k: (-numbers[k], k != best, k))
            return {
                run: sorted(of[chosen], key=lambda row: int(row["beam"]))
                for run, of in kinds.items()
            }
    listed = "; ".join(
        f"`{run}` by {', '.join(sorted({str(row['checkpoint']) for row in some}))}"
        for run, some in rows.items()
    )
    raise UserError(
        f"the runs of a report must be evaluated on `{subset}` by the same checkpoint, "
        f"but are not: {listed}. Evaluate all of them by one with scripts/compare.py, "
        "or choose a checkpoint that all of them share with --checkpoint."
    )


def check_explorer_beam(runs: Sequence[ReportRun], beam_size: int) -> None:
    """Check that the first step of a search can fill the beam.

    Raises:
        UserError: the vocabulary of a run is too small.
    """
    for run in runs:
        path = run.corpus.bin_dir / f"dict.{run.corpus.target_lang}.txt"
        largest = len(Dictionary.load(path)) - _NEVER_CONTINUED
        if beam_size > largest:
            raise UserError(
                f"`--explore-beam` must be at most {largest:,}, which is "
                f"{_NEVER_CONTINUED} less than the vocabulary of `{run.path}`, but is "
                f"{beam_size:,}."
            )


def _read(path: Path, name: str) -> ReportRun:
    config = RunFolder(path).read_config()
    command, finished = path / "command.txt", path / "finished.json"
    return ReportRun(
        name=name,
        path=path,
        config=config,
        command=command.read_text("utf-8").strip() if command.is_file() else "",
        finished=read_json(finished) if finished.is_file() else {},
        corpus=PreparedCorpus.load(Path(config["data"])),
        scores={},
    )


def _read_rows(path: Path) -> list[Row]:
    scores = path / "eval" / "scores.json"
    if not scores.is_file():
        raise UserError(
            f"`{path}` has no scores yet: run scripts/evaluate.py {path} first."
        )
    rows = read_json(scores)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"`{scores}` must be a list of scores.")
    for row in rows:
        missing = [key for key in _KEYS if key not in row]
        if missing:
            raise UserError(
                f"every row of `{scores}` must have `{missing[0]}`, but one does not: "
                "run scripts/evaluate.py again."
            )
    # A part of a test set, such as newstest2014/2737, has the subset of the whole.
    return [row for row in rows if "lines_of" not in row]


def _shared_test_sets(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    subsets = {run: {str(row["subset"]) for row in some} for run, some in rows.items()}
    shared = set.intersection(*subsets.values())
    if not shared:
        listed = "; ".join(
            f"{n} has {', '.join(sorted(s))}" for n, s in subsets.items()
        )
        raise UserError(
            f"the runs of a report must share a test set, but do not: {listed}. "
            "Evaluate them with scripts/compare.py."
        )
    return sorted(shared, key=lambda name: (name == "valid", len(name), name))


def _rows_by_kind(
    rows: Sequence[Row], kind_of: Callable[[Row], str]
) -> dict[str, list[Row]]:
    """Return the rows of one checkpoint for each kind: the one with the most rows."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["checkpoint"], []).append(row)
    found: dict[str, list[Row]] = {}
    for name in sorted(by_name, key=lambda name: (-len(by_name[name]), name)):
        found.setdefault(kind_of(by_name[name][0]), by_name[name])
    return found


def _checkpoint_kind(row: Row) -> str:
    if "averaged" in row:
        return f"average of {len(row['averaged'])}"
    return str(row["checkpoint"])


def _rough_checkpoint_kind(row: Row) -> str:
    return "average" if "averaged" in row else str(row["checkpoint"])


def _read_hypotheses(path: Path, row: Row) -> Evaluation:
    if row.get("forced"):
        raise UserError(
            f"scores of a report must be comparable, but those of `{path}` on "
            f"`{row['title']}` were made with --force: see scripts/compare.py --force."
        )
    file = path / "eval" / row["hypotheses"]
    hypotheses = read_lines(file)
    if len(hypotheses) != row.get("sentences", len(hypotheses)):
        raise UserError(
            f"`{file}` must have {row['sentences']:,} lines as in scores.json, but has "
            f"{len(hypotheses):,}: run scripts/evaluate.py again."
        )
    return Evaluation(row, hypotheses)


def _check_same_references(runs: Sequence[ReportRun], subset: str) -> None:
    expected = runs[0].row(subset)["reference_sha256"]
    for run in runs:
        for evaluated in run.scores[subset].values():
            if evaluated.row["reference_sha256"] != expected:
                raise UserError(
                    f"`{run.path}` and `{runs[0].path}` must be scored on the same "
                    f"text, but `{subset}` is a different text in each."
                )
