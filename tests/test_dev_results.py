"""Measurements are kept in CSV files, from which the tables of docs/ are generated."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import results_tables
import study
from conftest import ROOT
from results_tables import choose_on_validation, merge_rows, read_rows, write_between
from study import SCORE_KEY, STUDIES, list_runs

from fairseq_plugins.utils.files import write_json


@pytest.mark.parametrize("document, name", results_tables.TABLES)
def test_a_documents_table_shows_what_was_measured(document, name):
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.search(f"<!-- {name}-begin -->\n(.*)\n<!-- {name}-end -->", text, re.S)
    assert found, f"`{document}` must have the marks `{name}-begin` and `-end`."
    assert (
        found[1] == results_tables.TABLES[document, name]()
    ), "run scripts/dev/results_tables.py"


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (ROOT / "results").glob("*.csv"))
)
def test_a_file_of_results_is_complete_and_described(name):
    rows = read_rows(ROOT / "results" / name)
    assert rows and all(None not in row and None not in row.values() for row in rows)
    readme = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert f"`{name}`" in readme


def test_the_gain_of_a_seed_is_averaged_over_both_tests(tmp_path, monkeypatch):
    bleu = {("control", 1): 40, ("control", 2): 41, ("control", 3): 42,
            ("soft", 1): 41, ("soft", 2): 41, ("soft", 3): 44}  # fmt: skip
    rows = [
        {"pair": "de-en", "model": "lstm", "start": "30 epochs", "system": system,
         "seed": seed, "test": test, "beam": 5, "bleu": score + offset}
        for (system, seed), score in bleu.items()
        for test, offset in zip(results_tables.TESTS, (-5.0, 5.0))
    ]  # fmt: skip
    merge_rows(tmp_path / "beam_training.csv", rows, SCORE_KEY)
    monkeypatch.setattr(results_tables, "RESULTS", tmp_path)
    line = results_tables.TABLES["docs/results.md", "gains"]().splitlines()[2]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells == [
        "LSTM",
        "German-English",
        "41.00",
        "42.00",
        "+1.00",
        "+0.00 to +2.00",
    ]


def test_rows_with_the_same_key_are_replaced_and_others_kept(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    merge_rows(
        path, [{"seed": 1, "bleu": 40.12345678}, {"seed": 2, "bleu": 41.0}], ["seed"]
    )
    merge_rows(path, [{"seed": 2, "bleu": 42.5, "chrf": None}], ["seed"])
    with open(path, newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["seed", "bleu", "chrf"],
            ["1", "40.1235", ""],
            ["2", "42.5", ""],
        ]
    assert read_rows(path, seed=2) == [{"seed": "2", "bleu": "42.5", "chrf": ""}]
    assert [file.name for file in path.parent.iterdir()] == ["rows.csv"]


def test_text_between_marks_is_replaced_and_a_document_without_them_refused(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("a\n<!-- x-begin -->\nold\n<!-- x-end -->\nb\n")
    write_between(path, "x", "new")
    assert path.read_text() == "a\n<!-- x-begin -->\nnew\n<!-- x-end -->\nb\n"
    with pytest.raises(ValueError, match="must have the marks <!-- y-begin -->"):
        write_between(path, "y", "new")


def test_a_study_runs_the_control_before_the_systems_compared_with_it():
    cell = STUDIES["beam_training"][0]
    runs = list(list_runs(cell, ["mrt", "soft"], [1, 2]))
    assert [system for system, _ in runs] == [
        "baseline", *["control", "soft", "mrt"] * 2,
    ]  # fmt: skip


def test_every_system_of_a_study_has_a_configuration():
    for cells in STUDIES.values():
        for cell in cells:
            for config in cell.configs.values():
                assert (ROOT / "configs" / config.split()[0]).is_file()


def test_validation_chooses_by_the_widest_beam_and_common_seeds():
    scores = [
        ("a", 1, 5, 30.0), ("b", 1, 5, 31.0),
        ("a", 2, 5, 99.0),  # b has no seed 2
        ("a", 1, 1, 50.0),  # not the widest beam
        ("other", 1, 5, 60.0),
    ]  # fmt: skip
    rows = [
        {"system": system, "test": "valid", "seed": str(seed), "beam": str(beam),
         "bleu": str(bleu)}
        for system, seed, beam, bleu in scores
    ]  # fmt: skip
    assert choose_on_validation(rows, ["a", "b"]) == "b"


def test_accuracies_and_translations_with_neighbors_are_added_from_json(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(results_tables, "RESULTS", tmp_path)
    monkeypatch.setattr(results_tables, "TABLES", {})
    value = {"value": 0.95, "low": 0.9, "high": 1.0}
    knn = {
        "on": "test",
        "settings": {"data": "digits", "epsilons": {"soft": 10.0}},
        "results": [
            {"method": "soft", "title": "SOFT", "accuracy": value, "by_seed": [0.9, 1],
             "difference_from_raw": value, "seconds_per_training": 2.0}
        ],
    }  # fmt: skip
    knn_mt = [
        {"system": "alone", "title": "test_2016_flickr", "beam": 5, "bleu": 41.0,
         "chrf": 60.0, "hypothesis_tokens": 50, "reference_tokens": 40, "seconds": 1.0}
    ]  # fmt: skip
    write_json(tmp_path / "knn.json", knn)
    write_json(tmp_path / "knn_mt.json", knn_mt)
    arguments = ["--knn", tmp_path / "knn.json", "--knn-mt", tmp_path / "knn_mt.json"]
    monkeypatch.setattr(sys, "argv", ["results_tables.py", *map(str, arguments)])
    results_tables.main()
    (line,) = results_tables.knn_digits().splitlines()[2:]
    assert line == (
        "| SOFT | 95.00 | 90.00 to 100.00 | 90.00 100.00 | - | - | +95.00 "
        "| +90.00 to +100.00 |"
    )
    (line,) = results_tables.knn_translation().splitlines()[2:]
    assert line == "| 2016 | model alone | 41.00 | 60.00 |  |  |"


def test_a_study_keeps_scores_and_comparisons_of_seeds_and_of_the_pooled_seeds(
    tmp_path, monkeypatch
):
    commands = []

    def run_script(command, **_):
        name, arguments = Path(command[1]).name, command[2:]
        commands.append((name, arguments))
        if name == "train.py":
            values = dict(a.split("=", 1) for a in arguments if "=" in a)
            write_json(Path(values["run"]) / "finished.json",
                       {"updates": 3, "seconds": 1.5})  # fmt: skip
        if "--json" in arguments:
            row = {"title": "valid", "beam": 5, "bleu": 40.0, "chrf": 60.0,
                   "ter": 41.0, "length_ratio": 1.0}  # fmt: skip
            found = {"bleu_difference": 1.0, "bleu_interval": [0, 2],
                     "bleu_p_value": 0.1, "chrf_difference": 1.0,
                     "chrf_interval": [0, 2], "chrf_p_value": 0.2}  # fmt: skip
            rows = [row] if name == "evaluate.py" else [row, {**row, **found}]
            write_json(Path(arguments[arguments.index("--json") + 1]), rows)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(study.subprocess, "run", run_script)
    monkeypatch.setattr(
        sys, "argv",
        ["study.py", "beam_training", "--source", "m30k", "--only", "de-en/lstm",
         "--systems", "soft", "--seeds", "1", "2", "--out", str(tmp_path / "runs"),
         "--results", str(tmp_path)],
    )  # fmt: skip
    study.main()
    scores = read_rows(tmp_path / "beam_training.csv")
    assert [(row["system"], row["seed"]) for row in scores] == [
        ("baseline", "1"), ("control", "1"), ("soft", "1"), ("control", "2"),
        ("soft", "2"),
    ]  # fmt: skip
    assert {row["updates"] for row in scores} == {"3"}
    compared = read_rows(tmp_path / "comparisons.csv", system="soft", control="control")
    assert [row["seeds"] for row in compared] == ["1", "2", "1 2"]
    assert {(row["bleu_low"], row["bleu_high"]) for row in compared} == {("0", "2")}
    checkpoints = [
        arguments[arguments.index("--checkpoint") + 1]
        for name, arguments in commands
        if name == "evaluate.py"
    ]
    assert checkpoints == ["best", "last", "last", "last", "last"]
    starts = [a for _, arguments in commands for a in arguments if "start_from=" in a]
    assert len(starts) == 4 and len(set(starts)) == 1
