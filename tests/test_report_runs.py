"""Reading run folders for a report, and the checkpoint by which it compares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairseq_plugins.corpus.manifest import FORMAT
from fairseq_plugins.evaluation.report.runs import load_runs
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import sha256_of

BEST, LAST = "checkpoint_best", "checkpoint_last"


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a run folder with these rows, on a corpus of two sentences."""
    corpus, run = folder / "corpus", folder / "run"
    (corpus / "bin").mkdir(parents=True)
    (run / "eval").mkdir(parents=True)
    (run / "config.yaml").write_text(f"data: {corpus}\nrun: {run}\n")
    part = {"title": "whole", "source": "t.x", "target": "t.y", "pairs": 2}
    manifest = {
        "format": FORMAT, "recipe": "tiny", "source_lang": "x", "target_lang": "y",
        "spm_model": "spm", "bin_dir": "bin", "subsets": {"test": part},
    }  # fmt: skip
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    for name in (corpus / "t.x", corpus / "t.y", run / "eval" / "hyp.txt"):
        name.write_text("one\ntwo\n")
    row = {
        "subset": "test", "title": "whole", "checkpoint": "checkpoint_best.pt",
        "lenpen": 1.0, "beam": 1, "hypotheses": "hyp.txt", "sentences": 2,
        "reference_sha256": sha256_of(corpus / "t.y"), "bleu": 1.0, "chrf": 1.0,
        "bleu_signature": "", "chrf_signature": "",
    }  # fmt: skip
    (run / "eval" / "scores.json").write_text(json.dumps([row | more for more in rows]))
    return run


def test_a_part_of_a_test_set_does_not_take_the_place_of_the_whole(tmp_path: Path):
    part = {"title": "whole/1", "lines_of": "whole", "reference_sha256": "0", "bleu": 2}
    (run,) = load_runs([write_run(tmp_path, [{}, part, part | {"beam": 5}])])
    assert list(run.scores["test"]) == [1] and run.scores["test"][1].row["bleu"] == 1
    assert run.references("test") == ["one", "two"]


def test_of_checkpoints_with_as_many_scores_the_best_is_shown(tmp_path: Path):
    others = ["average2-0.pt", "checkpoint_average.pt", "checkpoint_last.pt"]
    rows: list[dict[str, Any]] = [{"checkpoint": name} for name in others]
    folder = write_run(tmp_path, [*rows, {}])
    (run,) = load_runs([folder])
    assert run.scores["test"][1].row["checkpoint"] == "checkpoint_best.pt"
    (run,) = load_runs([folder], checkpoint="last")
    assert run.scores["test"][1].row["checkpoint"] == "checkpoint_last.pt"


def test_an_average_is_looked_for_where_evaluating_puts_it(tmp_path: Path):
    row = {"checkpoint": "average2-0.pt", "averaged": ["a.pt", "b.pt"]}
    (run,) = load_runs([write_run(tmp_path, [row])])
    with pytest.raises(UserError, match="average2-0.pt` does not exist"):
        run.checkpoint("test")
    average = run.path / "eval" / "average2-0.pt"
    average.write_text("")
    assert run.checkpoint("test") == average


def test_a_missing_run_and_a_run_given_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a run folder"):
        load_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="is given 2 times"):
        load_runs([tmp_path, tmp_path])


def of_checkpoint(name: str, *beams: int, **more: Any) -> list[dict[str, Any]]:
    return [{"checkpoint": f"{name}.pt", "beam": beam, **more} for beam in beams]


def compared_checkpoints(
    folder: Path, *runs: list[dict[str, Any]], **options: Any
) -> list[Any]:
    """Return the checkpoint of each run that a report compares on the test set."""
    paths = [write_run(folder / str(n), rows) for n, rows in enumerate(runs)]
    loaded = load_runs(paths, **options)
    first = [next(iter(run.scores["test"].values())) for run in loaded]
    return [each.row["checkpoint"] for each in first]


def test_runs_are_compared_by_a_checkpoint_that_all_have(tmp_path: Path):
    one = of_checkpoint(BEST, 1) + of_checkpoint(LAST, 1)
    two = of_checkpoint("average2-0", 1, 5, averaged=["a", "b"])
    two += of_checkpoint(LAST, 1)
    assert compared_checkpoints(tmp_path, one, two) == ["checkpoint_last.pt"] * 2


def test_of_the_shared_checkpoints_that_with_most_rows_is_compared_then_the_best(
    tmp_path: Path,
):
    both = of_checkpoint(BEST, 1) + of_checkpoint(LAST, 1)
    more = both + of_checkpoint(LAST, 5)
    assert (
        compared_checkpoints(tmp_path / "1", both, both) == ["checkpoint_best.pt"] * 2
    )
    assert (
        compared_checkpoints(tmp_path / "2", both, more) == ["checkpoint_last.pt"] * 2
    )


def test_runs_that_share_no_checkpoint_are_refused_with_those_they_have(tmp_path: Path):
    average = of_checkpoint("average2-0", 1, averaged=["a", "b"])
    for number, other in enumerate([average, of_checkpoint(LAST, 1)]):
        name = other[0]["checkpoint"]
        listed = f"by checkpoint_best.pt; .* by {name}.*--checkpoint"
        with pytest.raises(UserError, match=listed):
            compared_checkpoints(tmp_path / str(number), of_checkpoint(BEST, 1), other)


def test_averages_are_compared_with_averages_of_as_many_if_there_are(tmp_path: Path):
    two, five = ["a", "b"], list("abcde")
    of_two = of_checkpoint("average2-0", 1, averaged=two)
    both = of_two + of_checkpoint("average5-1", 1, averaged=five)
    other = of_checkpoint("average5-2", 1, averaged=five)
    chosen = compared_checkpoints(tmp_path / "1", both, other)
    assert chosen == ["average5-1.pt", "average5-2.pt"]
    chosen = compared_checkpoints(tmp_path / "2", of_two, other)
    assert chosen == ["average2-0.pt", "average5-2.pt"]


def test_a_test_set_that_one_run_lacks_needs_no_shared_checkpoint(tmp_path: Path):
    more = of_checkpoint(BEST, 1) + of_checkpoint(BEST, 1, subset="valid")
    last = of_checkpoint(BEST, 1) + of_checkpoint(LAST, 1, subset="valid")
    chosen = compared_checkpoints(tmp_path, more, last, of_checkpoint(BEST, 1))
    assert chosen == ["checkpoint_best.pt"] * 3


def test_scores_that_were_forced_are_in_no_report(tmp_path: Path):
    forced = of_checkpoint(BEST, 1, forced=True)
    with pytest.raises(UserError, match="must be comparable, but those of .* --force"):
        compared_checkpoints(tmp_path, of_checkpoint(BEST, 1), forced)


def test_runs_without_a_common_test_set_or_text_are_refused(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / str(n), [{"subset": name, "reference_sha256": name}])
        for n, name in enumerate(["test", "test1", "test"])
    ]
    with pytest.raises(UserError, match="run has test; .* has test1"):
        load_runs(runs[:2])
    rows = json.loads((runs[2] / "eval" / "scores.json").read_text())
    rows[0]["reference_sha256"] = "another"
    (runs[2] / "eval" / "scores.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="`test` is a different text in each"):
        load_runs([runs[0], runs[2]])
