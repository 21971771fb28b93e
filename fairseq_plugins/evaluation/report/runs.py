"""Whose scores a report compares: those of one checkpoint, the same for all runs.

What a run folder holds that a report shows.

How wide the beam of the explorer may be.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from fairseq_plugins.corpus.binarize import Dictionary
from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.evaluation.compare import distinct_names
from fairseq_plugins.evaluation.evaluate import Row, checkpoint_path, file_name
from fairseq_plugins.training.config import Config
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, read_lines, sha256_of

__all__ = [
    "Evaluated",
    "ReportRun",
    "Row",
    "check_explorer_beam",
    "load_runs",
    "references_of",
    "rows_of_one_checkpoint",
    "shared_test_sets",
]


def rows_of_one_checkpoint(
    rows: Mapping[str, Sequence[Row]], subset: str, wanted: str | None
) -> dict[str, list[Row]]:
    """Return rows of each run, by beam, that may be compared with each other's.

    Args:
        rows: of ``scores.json`` for one test set, by the names of the runs.
        subset: the test set, for messages.
        wanted: ``best``, ``last`` or a file's name. If not given, the checkpoint that
            all runs have and that has the most rows, and of equals the best. Each run's
            averages have names of their own, so averages of equally many count as one
            checkpoint, and those of other numbers if there is nothing better.

    Raises:
        UserError: there is no such checkpoint.
    """
    if wanted:
        name = file_name(wanted)
        return {
            run: _by_beam([row for row in of_run if row["checkpoint"] == name])
            for run, of_run in rows.items()
        }
    for kind_of in (_kind, _rough_kind):
        of_runs = {run: _by_kind(of_run, kind_of) for run, of_run in rows.items()}
        shared = set.intersection(*(set(kinds) for kinds in of_runs.values()))
        if shared:
            chosen = min(
                shared,
                key=lambda kind: (
                    -sum(len(kinds[kind]) for kinds in of_runs.values()),
                    kind != file_name("best"),
                    kind,
                ),
            )
            return {run: _by_beam(kinds[chosen]) for run, kinds in of_runs.items()}
    raise UserError(_no_shared(rows, subset))


def _by_kind(
    rows: Sequence[Row], kind_of: Callable[[Row], str]
) -> dict[str, list[Row]]:
    """Return the rows of each kind's one checkpoint: of several that with most rows."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["checkpoint"], []).append(row)
    found: dict[str, list[Row]] = {}
    for name in sorted(by_name, key=lambda name: (-len(by_name[name]), name)):
        found.setdefault(kind_of(by_name[name][0]), by_name[name])
    return found


def _kind(row: Row) -> str:
    if "averaged" in row:
        return f"average of {len(row['averaged'])}"
    return str(row["checkpoint"])


def _rough_kind(row: Row) -> str:
    return "average" if "averaged" in row else _kind(row)


def _by_beam(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: int(row["beam"]))


def _no_shared(rows: Mapping[str, Sequence[Row]], subset: str) -> str:
    listed = "; ".join(
        f"`{run}` by {', '.join(sorted({str(row['checkpoint']) for row in of_run}))}"
        for run, of_run in rows.items()
    )
    return (
        f"the runs of a report must be evaluated on `{subset}` by the same checkpoint, "
        f"but are not: {listed}. Evaluate all of them by one with scripts/compare.py, "
        "or give one that the test sets to be shown have with --checkpoint."
    )


# A row of scores.json without these was not written by scripts/evaluate.py.
_NEEDED = (
    "subset", "title", "checkpoint", "lenpen", "beam", "hypotheses", "reference_sha256",
    "bleu", "bleu_signature", "chrf", "chrf_signature",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of a run: a row of ``scores.json`` and its translations."""

    row: Row
    hypotheses: list[str]

    @property
    def beam(self) -> int:
        return int(self.row["beam"])


@dataclass(frozen=True)
class ReportRun:
    """A run of the report.

    Attributes:
        name: what the page calls it; no two runs of a report share it.
        path: the run folder.
        config: what it was trained by.
        command: its ``fairseq-train`` command, empty if it is not there.
        finished: ``updates`` and ``seconds``, empty while it is not finished.
        corpus: what it was trained on.
        scores: by fairseq's name of the test set, and for that by beam.
    """

    name: str
    path: Path
    config: Config
    command: str
    finished: dict[str, Any]
    corpus: PreparedCorpus
    scores: dict[str, dict[int, Evaluated]] = field(default_factory=dict)

    def checkpoint(self, subset: str) -> Path:
        """Return the checkpoint behind the scores of a test set.

        Raises:
            UserError: it is no longer there.
        """
        row = next(iter(self.scores[subset].values())).row
        path = checkpoint_path(RunFolder(self.path), row)
        if not path.is_file():
            raise UserError(
                f"`{path}` does not exist, but `{self.path}` was evaluated by it. Give "
                "--explore 0 for a report without the beam explorer."
            )
        return path


def load_runs(
    paths: Sequence[Path], *, checkpoint: str | None = None, lenpen: float = 1.0
) -> list[ReportRun]:
    """Read the runs of a report.

    Args:
        paths: run folders, the control first.
        checkpoint: ``best``, ``last`` or a file's name: whose scores to show. If not
            given, for each test set the one of all runs with the most scores; see
            :func:`rows_of_one_checkpoint`.
        lenpen: whose scores to show.

    Raises:
        UserError: a folder is given twice, is no run folder, or has no such scores; or
            the runs were evaluated by other checkpoints than each other.
    """
    folders = [path.expanduser().resolve() for path in paths]
    for path, count in Counter(folders).items():
        if count > 1:
            raise UserError(f"`{path}` is given {count} times; give each run once.")
    runs = [_load(path, name) for path, name in zip(folders, distinct_names(folders))]
    of_runs = {
        run.name: [row for row in _rows(run.path) if row["lenpen"] == lenpen]
        for run in runs
    }
    for subset in dict.fromkeys(r["subset"] for rows in of_runs.values() for r in rows):
        chosen = _chosen(of_runs, subset, checkpoint)
        for run in runs:
            if chosen.get(run.name):
                run.scores[subset] = {
                    row["beam"]: _evaluated(run.path, row) for row in chosen[run.name]
                }
    for run in runs:
        if not run.scores:
            of = f" of checkpoint `{checkpoint}`" if checkpoint else ""
            raise UserError(f"`{run.path}` has no scores{of} with lenpen {lenpen:g}.")
    return runs


def shared_test_sets(runs: Sequence[ReportRun]) -> list[str]:
    """Return the test sets that all runs were scored on, in the corpus' order.

    Raises:
        UserError: there is none, or the runs mean different texts by one name.
    """
    shared = set.intersection(*(set(run.scores) for run in runs))
    if not shared:
        listed = "; ".join(
            f"`{run.name}`: {', '.join(sorted(run.scores))}" for run in runs
        )
        raise UserError(
            f"the runs of a report must share a test set, but do not: {listed}. "
            "Evaluate them by scripts/compare.py."
        )
    for subset in shared:
        _check_same_references(runs, subset)
    # Validation data that a model was chosen on is no test, and comes last.
    return sorted(shared, key=lambda name: (name == "valid", len(name), name))


def references_of(run: ReportRun, subset: str) -> list[str]:
    """Return the text that the scores belong to.

    Raises:
        UserError: it has changed since.
    """
    path = run.corpus.subsets[subset].target
    row = next(iter(run.scores[subset].values())).row
    if not path.is_file() or sha256_of(path) != row["reference_sha256"]:
        raise UserError(
            f"`{path}` has changed since `{run.path}` was evaluated: evaluate anew."
        )
    return read_lines(path)


def _load(path: Path, name: str) -> ReportRun:
    """Read a run but for its scores."""
    folder = RunFolder(path)
    config = folder.read_config()
    return ReportRun(
        name=name,
        path=path,
        config=config,
        command=_text(path / "command.txt"),
        finished=_optional_json(path / "finished.json"),
        corpus=PreparedCorpus.load(Path(config["data"])),
    )


def _rows(path: Path) -> list[Row]:
    scores = path / "eval" / "scores.json"
    if not scores.is_file():
        raise UserError(
            f"`{path}` has no scores yet: run scripts/evaluate.py {path} first."
        )
    rows = read_json(scores)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"`{scores}` must be a list of scores.")
    for row in rows:
        missing = [key for key in _NEEDED if key not in row]
        if missing:
            raise UserError(
                f"`{scores}` must give `{missing[0]}` in every row, but one lacks it: "
                "evaluate anew."
            )
    # A part of a test set, such as newstest2014/2737, has the subset of the whole.
    return [row for row in rows if "lines_of" not in row]


def _chosen(
    of_runs: Mapping[str, Sequence[Row]], subset: str, checkpoint: str | None
) -> dict[str, list[Row]]:
    """Return the rows of a test set that a report shows, by beam, for each run."""
    here = {
        name: [row for row in rows if row["subset"] == subset]
        for name, rows in of_runs.items()
    }
    if all(here.values()):
        return rows_of_one_checkpoint(here, subset, checkpoint)
    # Some run lacks it, so that it is not shown and there is nothing to compare.
    return {
        name: rows_of_one_checkpoint({name: rows}, subset, checkpoint)[name]
        for name, rows in here.items()
        if rows
    }


def _evaluated(path: Path, row: Row) -> Evaluated:
    if row.get("forced"):
        raise UserError(
            f"scores of a report must be comparable, but those of `{path}` on "
            f"`{row['title']}` were made by --force: see scripts/compare.py --force."
        )
    hypotheses = read_lines(path / "eval" / row["hypotheses"])
    if len(hypotheses) != row.get("sentences", len(hypotheses)):
        raise UserError(
            f"`{path / 'eval' / row['hypotheses']}` has {len(hypotheses):,} lines, but "
            f"scores.json says {row['sentences']:,}: evaluate anew."
        )
    return Evaluated(row, hypotheses)


def _check_same_references(runs: Sequence[ReportRun], subset: str) -> None:
    first = runs[0]
    for run in runs:
        for evaluated in run.scores[subset].values():
            ours = next(iter(first.scores[subset].values()))
            if evaluated.row["reference_sha256"] != ours.row["reference_sha256"]:
                raise UserError(
                    f"`{run.path}` and `{first.path}` were scored on different texts "
                    f"that both call `{subset}`."
                )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _optional_json(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


# Padding and the end of sentence go on in no slot, and the first step has one prefix.
_NOT_HELD = 2


def check_explorer_beam(runs: Sequence[ReportRun], beam_size: int) -> None:
    """Refuse a beam that a first step cannot fill.

    Raises:
        UserError: a run's vocabulary is too small for it.
    """
    for run in runs:
        corpus = run.corpus
        words = len(Dictionary.load(corpus.bin_dir / f"dict.{corpus.target_lang}.txt"))
        largest = words - _NOT_HELD
        if beam_size > largest:
            raise UserError(
                f"`--explore-beam` must be at most {largest:,}, which is {_NOT_HELD} "
                f"less than the vocabulary of `{run.path}`, but is {beam_size:,}."
            )
