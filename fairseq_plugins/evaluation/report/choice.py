"""Whose scores a report compares: those of one checkpoint, the same for all runs."""
from __future__ import annotations

from typing import Callable, Mapping, Sequence

from fairseq_plugins.evaluation.run_checkpoint import file_name
from fairseq_plugins.evaluation.score_store import Row
from fairseq_plugins.pipeline.errors import UserError

__all__ = ["rows_of_one_checkpoint"]


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
