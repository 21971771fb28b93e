"""Scores are the published ones, and nothing that makes them wrong gets through."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from fairseq_plugins.evaluation.scoring import score
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import read_lines

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")

NEWSTEST2017 = "newstest/newstest2017-en-de.de.xz"
WMT17 = "bleu_check/wmt17-en-de/newstest2017.{}.de.xz"
FIREFOX = "bleu_check/firefox/newstest{}.bergamot-base-memory.{}.xz"


def texts(hypothesis: str, reference: str) -> tuple[list[str], list[str]]:
    return read_lines(DATA / hypothesis), read_lines(DATA / reference)


@needs_data
@pytest.mark.parametrize(
    ("system", "bleu", "chrf"),
    [
        # mteval-v13a.pl and chrF++.py, as in test.sh of mjpost/sacrebleu.
        ("uedin-nmt.4722", 28.30, 57.72),
        ("xmu.4910", 26.69, 55.96),
        ("C-3MA.4959", 22.67, None),
        ("online-G.0", 18.16, 51.59),
    ],
)
def test_wmt17_systems_get_their_published_scores(
    system: str, bleu: float, chrf: float | None
) -> None:
    scores = score(*texts(WMT17.format(system), NEWSTEST2017))
    assert round(scores.bleu, 2) == bleu
    if chrf is not None:
        assert round(scores.chrf, 2) == chrf


@needs_data
def test_a_brevity_penalty_is_reported() -> None:
    scores = score(*texts(WMT17.format("C-3MA.4959"), NEWSTEST2017))
    assert round(scores.brevity_penalty, 3) == 0.985
    assert scores.hypothesis_tokens < scores.reference_tokens


@needs_data
@pytest.mark.parametrize(
    ("hypothesis", "reference", "bleu", "precisions"),
    [
        (
            FIREFOX.format("2014-en-fr", "fr"),
            "newstest/newstest2014-en-fr.fr.xz",
            41.06,
            "68.2/47.2/34.6/25.6",
        ),
        (
            FIREFOX.format("2016-en-de", "de"),
            "newstest/newstest2016-en-de.de.xz",
            39.40,
            None,
        ),
    ],
)
def test_firefox_models_get_their_published_scores(
    hypothesis: str, reference: str, bleu: float, precisions: str | None
) -> None:
    scores = score(*texts(hypothesis, reference))
    assert round(scores.bleu, 2) == bleu
    if precisions is not None:
        assert "/".join(f"{value:.1f}" for value in scores.precisions) == precisions


@needs_data
def test_the_filtered_wmt14_set_gets_its_published_score() -> None:
    hypotheses = read_lines(DATA / FIREFOX.format("2014-en-de.filtered2737", "de"))
    whole = read_lines(DATA / "newstest/newstest2014-en-de.de.xz")
    indices = read_lines(DATA / "newstest/newstest2014-en-de.filtered2737.idx.xz")
    scores = score(hypotheses, [whole[int(index)] for index in indices])
    assert round(scores.bleu, 2) == 29.82
    assert "/".join(f"{value:.1f}" for value in scores.precisions) == (
        "60.2/35.6/23.3/15.8"
    )


@needs_data
def test_fairseqs_own_score_of_its_log_is_reproduced() -> None:
    lines = read_lines(DATA / "bleu_check/fairseq-wmt14-fr-en.generate.log.xz")
    found: dict[str, dict[int, str]] = {"H": {}, "T": {}}
    for line in lines:
        match = re.match(r"([HT])-(\d+)\t", line)
        if match:
            found[match[1]][int(match[2])] = line.split("\t")[-1]
    order = sorted(found["T"])
    scores = score([found["H"][i] for i in order], [found["T"][i] for i in order])
    assert round(scores.bleu, 2) == 39.69
    assert (scores.hypothesis_tokens, scores.reference_tokens) == (74884, 75945)


def test_the_signatures_say_how_it_was_scored() -> None:
    scores = score(["a b c d"], ["a b c d"])
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp" in scores.bleu_signature
    assert "nrefs:1|case:mixed|eff:yes|nc:6|nw:0" in scores.chrf_signature
    assert (round(scores.bleu), round(scores.chrf)) == (100, 100)


@pytest.mark.parametrize("line", ["▁two men", "a bi@@ cycle", "bi@@"])
def test_subword_marks_are_refused_and_shown(line: str) -> None:
    with pytest.raises(UserError, match="hypothesis 2 must be plain text") as error:
        score(["fine", line], ["fine", "two men"])
    assert line in str(error.value)
    with pytest.raises(UserError, match="reference 1 must be plain text"):
        score(["fine"], [line])


def test_an_address_is_no_subword_mark() -> None:
    score(["write to a@b.org or @@home"], ["write to a@b.org"])


@pytest.mark.parametrize(("hypotheses", "references"), [(1, 2), (2, 1), (0, 0)])
def test_unequal_or_no_lines_are_refused(hypotheses: int, references: int) -> None:
    with pytest.raises(UserError, match=f"but are {hypotheses} and {references}"):
        score(["a"] * hypotheses, ["a"] * references)
