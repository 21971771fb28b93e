"""By which checkpoint a report compares runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_report import evaluated

from fairseq_plugins.evaluation.report.runs import load_runs
from fairseq_plugins.utils.errors import UserError

BEST, LAST = "checkpoint_best", "checkpoint_last"


def of_checkpoint(name: str, *beams: int, **more: Any) -> list[dict[str, Any]]:
    return [{"checkpoint": f"{name}.pt", "beam": beam, **more} for beam in beams]


def compared(folder: Path, *runs: list[dict[str, Any]], **options: Any) -> list[Any]:
    """Return the checkpoint of each run that a report compares on the test set."""
    paths = [evaluated(folder / str(n), rows) for n, rows in enumerate(runs)]
    loaded = load_runs(paths, **options)
    first = [next(iter(run.scores["test"].values())) for run in loaded]
    return [evaluated.row["checkpoint"] for evaluated in first]


def test_runs_are_compared_by_a_checkpoint_that_all_have(tmp_path: Path):
    one = of_checkpoint(BEST, 1) + of_checkpoint(LAST, 1)
    two = of_checkpoint("average2-0", 1, 5, averaged=["a", "b"])
    two += of_checkpoint(LAST, 1)
    assert compared(tmp_path, one, two) == ["checkpoint_last.pt"] * 2


def test_of_the_shared_checkpoints_that_with_most_rows_is_compared_then_the_best(
    tmp_path: Path,
):
    both = of_checkpoint(BEST, 1) + of_checkpoint(LAST, 1)
    more = both + of_checkpoint(LAST, 5)
    assert compared(tmp_path / "1", both, both) == ["checkpoint_best.pt"] * 2
    assert compared(tmp_path / "2", both, more) == ["checkpoint_last.pt"] * 2


def test_runs_that_share_no_checkpoint_are_refused_with_those_they_have(tmp_path: Path):
    average = of_checkpoint("average2-0", 1, averaged=["a", "b"])
    for number, other in enumerate([average, of_checkpoint(LAST, 1)]):
        name = other[0]["checkpoint"]
        listed = f"by checkpoint_best.pt; .* by {name}.*--checkpoint"
        with pytest.raises(UserError, match=listed):
            compared(tmp_path / str(number), of_checkpoint(BEST, 1), other)


def test_averages_are_compared_with_averages_of_as_many_if_there_are(tmp_path: Path):
    two, five = ["a", "b"], list("abcde")
    of_two = of_checkpoint("average2-0", 1, averaged=two)
    both = of_two + of_checkpoint("average5-1", 1, averaged=five)
    other = of_checkpoint("average5-2", 1, averaged=five)
    chosen = compared(tmp_path / "1", both, other)
    assert chosen == ["average5-1.pt", "average5-2.pt"]
    chosen = compared(tmp_path / "2", of_two, other)
    assert chosen == ["average2-0.pt", "average5-2.pt"]


def test_a_test_set_that_one_run_lacks_needs_no_shared_checkpoint(tmp_path: Path):
    more = of_checkpoint(BEST, 1) + of_checkpoint(BEST, 1, subset="valid")
    last = of_checkpoint(BEST, 1) + of_checkpoint(LAST, 1, subset="valid")
    chosen = compared(tmp_path, more, last, of_checkpoint(BEST, 1))
    assert chosen == ["checkpoint_best.pt"] * 3


def test_scores_that_were_forced_are_in_no_report(tmp_path: Path):
    forced = of_checkpoint(BEST, 1, forced=True)
    with pytest.raises(UserError, match="must be comparable, but those of .* --force"):
        compared(tmp_path, of_checkpoint(BEST, 1), forced)
