"""Scores of a run are kept and reused until their inputs change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from fairseq_plugins.corpus.manifest import FORMAT
from fairseq_plugins.evaluation import evaluate, test_sets
from fairseq_plugins.evaluation.comet import Comet
from fairseq_plugins.evaluation.evaluate import ScoreStore, Scoring, evaluate_run
from fairseq_plugins.evaluation.test_sets import TestSet
from fairseq_plugins.evaluation.translate import (
    Hypothesis,
    Reference,
    Subset,
    Translations,
    Translator,
)
from fairseq_plugins.training.config import pin_inputs
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_lines

TEXT = ["two men walk", "a dog runs fast", "the red house"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two checkpoints, on a corpus with two test sets."""
    corpus = tmp_path / "corpus"
    (corpus / "bin").mkdir(parents=True)
    (corpus / "bin" / "dict.xx.txt").write_text("a 1\n")
    for name in ("test.xx", "test.yy"):
        (corpus / name).write_text("".join(line + "\n" for line in TEXT))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 10),
        model_prefix=str(corpus / "spm"),
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    part = {"source": "test.xx", "target": "test.yy", "pairs": 3}
    manifest = {
        "format": FORMAT,
        "recipe": "tiny",
        "source_lang": "xx",
        "target_lang": "yy",
        "spm_model": "spm.model",
        "bin_dir": "bin",
        "subsets": {
            "test": {"title": "first_set", **part},
            "test1": {"title": "second_set", **part},
        },
    }
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    folder = RunFolder(tmp_path / "run")
    config = {"data": str(corpus), "run": str(folder.path)}
    folder.record_start(pin_inputs(config, recorded=None), "command")
    folder.checkpoints.mkdir()
    folder.last_checkpoint.write_text("last")
    (folder.checkpoints / "checkpoint_best.pt").write_text("best")
    return folder.path


@pytest.fixture
def calls(run: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the search with perfect translations; list the calls."""
    calls: list[dict[str, Any]] = []
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(run.parent / "corpus" / "spm.model")
    )

    class StandIn(Translator):
        def __init__(self, *setup: Any, **options: Any) -> None:
            super().__init__(*setup, **options)
            self.setup = {"checkpoint": setup[0], "languages": setup[2]}

        def translate(self, subset: Subset, **options: Any) -> Translations:
            calls.append({**self.setup, "subset": subset, **options})
            pieces = [" ".join(model.encode(line, out_type=str)) for line in TEXT]
            nbest = [[Hypothesis(-1.0, line)] for line in pieces]
            return Translations(nbest, tokens=40, seconds=0.5)

        def score_references(self, subset: Subset, **options: Any) -> list[Reference]:
            # The search found -1: better than the first and worse than the others.
            return [Reference(-2 * 4.0, 4), Reference(-3.0, 4), Reference(-2.0, 4)]

    monkeypatch.setattr(evaluate, "Translator", StandIn)
    return calls


def stored(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "eval" / "scores.json").read_text())


def test_each_beam_is_decoded_scored_and_stored(
    run: Path, calls: list[dict[str, Any]]
) -> None:
    rows = evaluate_run(run, beams=[5, 1])
    assert [row["beam"] for row in rows] == [5, 1]
    assert stored(run) == [rows[1], rows[0]]
    assert read_lines(run / "eval" / "test.beam5.hyp.txt") == TEXT
    row = rows[0]
    assert (round(row["bleu"]), round(row["chrf"])) == (100, 100)
    assert (row["subset"], row["title"]) == ("test", "first_set")
    assert (row["sentences"], row["seconds"], row["tokens_per_second"]) == (3, 0.5, 80)
    assert row["checkpoint"] == "checkpoint_best.pt"
    assert row["hypotheses"] == "test.beam5.hyp.txt"
    assert calls[0]["languages"] == ("xx", "yy")
    assert calls[0]["subset"].sentences == 3
    assert row["search_errors"] == pytest.approx(2 / 3)
    assert round(row["oracle_bleu"]) == 100


def test_a_second_call_does_nothing(run: Path, calls: list[dict[str, Any]]) -> None:
    rows = evaluate_run(run, beams=[1, 5])
    assert evaluate_run(run, beams=[1, 5]) == rows
    assert len(calls) == 2
    evaluate_run(run, beams=[1, 2])
    assert [call["beam"] for call in calls] == [1, 5, 2]
    assert [row["beam"] for row in stored(run)] == [1, 2, 5]


@pytest.mark.parametrize(
    "changed",
    [
        "run/checkpoints/checkpoint_best.pt",
        "run/eval/test.beam1.hyp.txt",
        "corpus/test.yy",
        "corpus/bin/test.xx-yy.xx.bin",
    ],
)
def test_a_changed_input_of_a_score_is_noticed(
    run: Path, calls: list[dict[str, Any]], changed: str
) -> None:
    evaluate_run(run, beams=[1])
    (run.parent / changed).write_text("one\nother\ntext\n")
    evaluate_run(run, beams=[1])
    assert len(calls) == 2
    assert len(stored(run)) == 1


def test_each_setting_has_separate_rows_and_files(
    run: Path, calls: list[dict[str, Any]]
) -> None:
    elsewhere = run.parent / "checkpoint_best.pt"
    elsewhere.write_text("from elsewhere")
    evaluate_run(run, beams=[2])
    evaluate_run(run, beams=[2], lenpen=0.6)
    evaluate_run(run, beams=[2], checkpoint="last")
    evaluate_run(run, beams=[2], checkpoint=str(elsewhere))
    evaluate_run(run, beams=[2], subset="second_set")
    names = {row["hypotheses"] for row in stored(run)}
    assert len(names) == 5
    assert {
        "test.beam2.hyp.txt",
        "test.lenpen0.6.beam2.hyp.txt",
        "test.checkpoint_last.beam2.hyp.txt",
        "test1.beam2.hyp.txt",
    } < names
    assert [call["checkpoint"].read_text() for call in calls[2:4]] == [
        "last",
        "from elsewhere",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": "tset"}, "no subset `tset`. Did you mean `test`"),
        ({"checkpoint": "avg"}, "`avg`; it has checkpoint_best.pt, checkpoint_last.pt"),
    ],
)
def test_a_missing_subset_or_checkpoint_is_named(
    run: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        evaluate_run(run, **options)
    assert message in str(error.value)


def test_data_that_changed_after_training_is_refused(run: Path) -> None:
    (run.parent / "corpus" / "bin" / "dict.xx.txt").write_text("b 1\n")
    with pytest.raises(UserError, match="has changed since"):
        evaluate_run(run)


def test_any_other_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a run folder of scripts/train.py"):
        evaluate_run(tmp_path / "nowhere")


def test_several_checkpoints_are_averaged_once(
    run: Path, calls: list[dict[str, Any]]
) -> None:
    for name, value in (("best", 1.0), ("last", 4.0)):
        path = run / "checkpoints" / f"checkpoint_{name}.pt"
        torch.save({"model": {"w": torch.tensor([value])}}, path)
    (row,) = evaluate_run(run, beams=[2], checkpoint=["best", "last"])
    average = calls[0]["checkpoint"]
    assert torch.load(average)["model"]["w"].item() == 2.5
    assert average.parent == run / "eval" and row["checkpoint"] == average.name
    assert row["averaged"] == ["checkpoint_best.pt", "checkpoint_last.pt"]
    assert row["hypotheses"] == f"test.{average.stem}.beam2.hyp.txt"
    # In another order it is the same mean.
    assert evaluate_run(run, beams=[2], checkpoint=["last", "best"]) == [row]
    assert len(calls) == 1
    with pytest.raises(UserError, match="must be different"):
        evaluate_run(run, beams=[2], checkpoint=["best", "checkpoint_best.pt"])


def test_a_row_of_an_earlier_version_is_completed_without_a_search(
    run: Path, calls: list[dict[str, Any]]
) -> None:
    (row,) = evaluate_run(run, beams=[2])
    path = run / "eval" / "scores.json"
    new = {"ter", "ter_signature", "repetition", "bleu_by_length", "oracle_bleu"}
    old = {key: value for key, value in row.items() if key not in new}
    path.write_text(json.dumps([old]))
    (again,) = evaluate_run(run, beams=[2])
    assert len(calls) == 1
    assert again == {key: value for key, value in row.items() if key != "oracle_bleu"}
    assert stored(run) == [again]


def test_a_part_of_a_test_set_is_scored_with_the_translations_of_the_whole(
    run: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = TestSet("first_set", 3, {"xx": "0", "yy": "1"})
    part = TestSet("first_set/2", 2, {"xx": "2", "yy": "3"}, "first_set", "2, 0")
    monkeypatch.setattr(test_sets, "load_test_sets", lambda: (known, part))
    (row,) = evaluate_run(run, beams=[2], subset="first_set/2")
    assert (row["title"], row["sentences"], row["subset"]) == ("first_set/2", 2, "test")
    assert row["lines_of"] == "first_set"
    hypotheses = read_lines(run / "eval" / row["hypotheses"])
    assert hypotheses == [TEXT[2], TEXT[0]]
    assert row["search_errors"] == 1 / 2  # of the last two sentences
    whole, same = sorted(stored(run), key=lambda row: -row["sentences"])
    assert (whole["title"], same) == ("first_set", row)
    assert whole["reference_sha256"] != row["reference_sha256"]
    evaluate_run(run, beams=[2], subset="test")
    assert len(calls) == 1
    with pytest.raises(
        UserError, match="`first_set/3` is not a known test set. Did you"
    ):
        evaluate_run(run, subset="first_set/3")


def test_a_search_is_kept_if_a_score_fails(
    run: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*texts: Any) -> float:
        raise UserError("COMET ended with status 1")

    monkeypatch.setattr(evaluate, "comet_score", fail)
    scoring = Scoring(comet=Comet("comet-score"))
    for _ in range(2):
        with pytest.raises(UserError, match="COMET ended"):
            evaluate_run(run, beams=[2], scoring=scoring)
    assert len(calls) == 1 and "comet" not in stored(run)[0]
    monkeypatch.setattr(evaluate, "comet_score", lambda *texts: 0.5)
    (row,) = evaluate_run(run, beams=[2], scoring=scoring)
    assert len(calls) == 1 and row["comet"] == 0.5 and stored(run) == [row]


def test_a_row_that_another_process_adds_is_kept(tmp_path: Path) -> None:
    row = {"subset": "test", "title": "", "checkpoint": "a", "lenpen": 1.0, "beam": 1}
    ours, theirs = ScoreStore(tmp_path), ScoreStore(tmp_path)
    assert ours.find(row) is None and theirs.find(row) is None
    theirs.add(row)
    ours.add({**row, "beam": 2})
    rows = json.loads((tmp_path / "scores.json").read_text())
    assert [row["beam"] for row in rows] == [1, 2]


@pytest.mark.parametrize("max_empty", [0.1, 0.5])
def test_the_allowed_fraction_of_empty_references_can_be_set(
    run: Path, calls: list[dict[str, Any]], max_empty: float
) -> None:
    (run.parent / "corpus" / "test.yy").write_text("two men walk\n\nthe red house\n")
    scoring = Scoring(max_empty=max_empty)
    if max_empty > 1 / 3:
        (row,) = evaluate_run(run, beams=[1], scoring=scoring)
        assert row["sentences"] == 3
        return
    with pytest.raises(UserError, match="at most 10% of the hypotheses may be empty"):
        evaluate_run(run, beams=[1], scoring=scoring)
    assert not calls


def test_forced_scores_are_marked_and_refused_later_without_force(
    run: Path, calls: list[dict[str, Any]]
) -> None:
    lines = ["two men walk .", "a dog , fast", "the red house ."]
    (run.parent / "corpus" / "test.yy").write_text("\n".join(lines) + "\n")
    (row,) = evaluate_run(run, beams=[1], scoring=Scoring(force=True))
    assert not row["forced"]  # three lines are too few to be called tokenized
    marked = ["two men@@ walk", *lines[1:]]
    (run.parent / "corpus" / "test.yy").write_text("\n".join(marked) + "\n")
    (row,) = evaluate_run(run, beams=[1], scoring=Scoring(force=True))
    assert row["forced"] and stored(run) == [row]
    for beams in ([1], [2]):  # with a known row, and before a search
        with pytest.raises(UserError, match="reference 1 must be plain text"):
            evaluate_run(run, beams=beams)
    assert [call["beam"] for call in calls] == [1, 1]


def test_pieces_that_cannot_be_detokenized_are_refused_before_the_search(
    run: Path, calls: list[dict[str, Any]]
) -> None:
    path = run.parent / "corpus" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["spm_model"]
    path.write_text(json.dumps({**manifest, "bpe_codes": "codes"}))
    with pytest.raises(UserError, match="`model_type: subword-nmt`"):
        evaluate_run(run, beams=[1])
    assert not calls


def test_duplicate_beams_and_test_sets_are_scored_once(
    run: Path, calls: list[dict[str, Any]]
) -> None:
    rows = evaluate_run(run, beams=[2, 1, 2], subset=["test", "first_set"])
    assert [row["beam"] for row in rows] == [2, 1]


def test_a_known_name_with_another_number_of_sentences_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [TestSet(name, n, {"xx": "", "yy": ""}) for name, n in
            (("first_set", 4), ("first_set/3", 3))]  # fmt: skip
    monkeypatch.setattr(test_sets, "load_test_sets", lambda: tuple(sets))
    with pytest.raises(
        UserError, match="has 4 sentences, but .* has 3. This is the size of"
    ):
        evaluate_run(run)
