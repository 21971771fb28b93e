"""Means over seeds, in a document that keeps the rest of its text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from study_table import study_table

from fairseq_plugins.utils.files import read_json, write_between, write_json


def row(system: str, seed: int, beam: int, bleu: float, p: float | None) -> dict:
    return dict(
        pair="de-en", model="lstm", system=system, seed=seed, test="t", beam=beam,
        bleu=bleu, chrf=bleu + 20, p_vs_control=p, updates=600, seconds=90.0,
    )  # fmt: skip


def test_a_system_is_one_line_of_means_and_each_seeds_p_value():
    rows = [
        row("soft", 2, 5, 42.0, 0.03),
        row("soft", 1, 5, 41.0, 0.01),
        row("soft", 1, 1, 40.0, 0.5),
        row("control", 1, 5, 40.5, None),
    ]
    lines = study_table(rows).splitlines()
    assert lines[0].startswith("| pair, model | test | system |")
    assert lines[2] == (
        "| de-en, lstm | t | control | 1 | 600 | 2 | - | 40.50 | 60.50 | - |"
    )
    assert lines[3] == (
        "| de-en, lstm | t | soft | 1, 2 | 600 | 2 | 40.00 | 41.50 | 61.50 "
        "| 0.0100, 0.0300 |"
    )


def test_minutes_are_not_those_of_the_run_that_had_to_wait():
    rows = [
        row("soft", seed, 5, 41.0, 0.01) | {"seconds": seconds}
        for seed, seconds in enumerate([1200.0, 9000.0, 1260.0])
    ]
    assert "| 0, 1, 2 | 600 | 21 |" in study_table(rows).splitlines()[2]


def test_text_between_marks_is_replaced_and_a_document_without_them_refused(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("a\n<!-- x-begin -->\nold\n<!-- x-end -->\nb\n")
    write_between(path, "x", "new")
    assert path.read_text() == "a\n<!-- x-begin -->\nnew\n<!-- x-end -->\nb\n"
    with pytest.raises(ValueError, match="must have the marks <!-- y-begin -->"):
        write_between(path, "y", "new")


def test_the_study_runs_the_control_before_what_is_compared_with_it():
    from study_beam_training import _runs

    options = SimpleNamespace(
        only=["de-en/lstm"], systems=["soft", "mrt", "control"], seeds=[1, 2]
    )
    systems = [run.system for run in _runs(options)]
    assert systems == ["baseline", *["control", "soft", "mrt"] * 2]


def test_a_study_with_fewer_beams_keeps_the_scores_of_the_others(monkeypatch, tmp_path):
    import study_beam_training as study

    def evaluated(folder, *, subsets, beams, **_):
        return [{"beam": beam} for beam in beams]

    def write_result(path, folder, identity, scores):
        write_json(path, {"scores": scores})

    monkeypatch.setattr(study, "evaluated", evaluated)
    monkeypatch.setattr(study, "write_result", write_result)

    def beams_after(run: study.Run, *beams: int) -> list[int]:
        options = SimpleNamespace(out=tmp_path, results=tmp_path, beams=beams)
        study._evaluate(run, options)
        scores = read_json(tmp_path / f"{run.name}.json")["scores"]
        return [score["beam"] for score in scores]

    run = study.Run("de-en", "lstm", "control", 1)
    assert beams_after(run, 50, 1, 10) == [1, 10, 50]
    assert beams_after(run, 1, 5) == [1, 5, 10, 50]
    assert beams_after(run._replace(seed=2), 5) == [5]
