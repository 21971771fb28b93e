"""Published scores are reproduced, digit for digit.

They are from mteval-v13a.pl, multi-bleu.perl, a log of fairseq, the tests of
tensorflow/nmt, and Mozilla's evaluation of its models. The texts are not part of the
repository; without them these tests are skipped.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SHARED_DATA

from fairseq_plugins.evaluation.checks import check_comparable
from fairseq_plugins.evaluation.metrics import (
    bleu,
    compound_split_bleu,
    tokenize_by_moses,
    tokenized_bleu,
)
from fairseq_plugins.evaluation.test_sets import select_lines
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_lines

CHECK = SHARED_DATA / "bleu_check"
NEWSTEST = SHARED_DATA / "newstest"
COMPOUNDS = CHECK / "compound_split"

pytestmark = pytest.mark.skipif(not CHECK.is_dir(), reason="no ../shared/data")


def precisions(values: list[float]) -> str:
    return "/".join(f"{value:.1f}" for value in values)


@pytest.mark.parametrize(
    ("system", "score", "penalty"),
    [
        ("uedin-nmt.4722", "28.30", "1.000"),
        ("xmu.4910", "26.69", "1.000"),
        ("C-3MA.4959", "22.67", "0.985"),
        ("online-G.0", "18.16", "1.000"),
    ],
)
def test_wmt17_by_mteval_v13a(system: str, score: str, penalty: str) -> None:
    hypotheses = read_lines(CHECK / f"wmt17-en-de/newstest2017.{system}.de.xz")
    references = read_lines(NEWSTEST / "newstest2017-en-de.de.xz")
    check_comparable(hypotheses, references)
    result, signature = bleu(hypotheses, references)
    assert (f"{result.score:.2f}", f"{result.bp:.3f}") == (score, penalty)
    assert "tok:13a" in signature


@pytest.mark.parametrize(
    ("name", "reference", "published", "score", "of_n_grams"),
    [
        ("2014-en-fr", "2014-en-fr.fr", "41.1", "41.06", "68.2/47.2/34.6/25.6"),
        (
            "2014-en-de.filtered2737", "2014-en-de.de",
            "29.8", "29.82", "60.2/35.6/23.3/15.8",
        ),
        ("2016-en-de", "2016-en-de.de", "39.4", "39.40", None),
    ],
)  # fmt: skip
def test_mozillas_models(
    name: str, reference: str, published: str, score: str, of_n_grams: str | None
) -> None:
    language = reference[-2:]
    file = f"firefox/newstest{name}.bergamot-base-memory.{language}.xz"
    hypotheses = read_lines(CHECK / file)
    references = read_lines(NEWSTEST / f"newstest{reference}.xz")
    if "filtered" in name:
        references = select_lines("newstest2014/2737", references)
    check_comparable(hypotheses, references)
    result, _ = bleu(hypotheses, references)
    assert (f"{result.score:.1f}", f"{result.score:.2f}") == (published, score)
    assert of_n_grams in (None, precisions(result.precisions))


def fairseq_log() -> tuple[list[str], list[str]]:
    found: dict[str, dict[int, str]] = {"H": {}, "T": {}}
    for line in read_lines(CHECK / "fairseq-wmt14-fr-en.generate.log.xz"):
        match = re.match(r"([HT])-(\d+)\t", line)
        if match:
            found[match[1]][int(match[2])] = line.split("\t")[-1]
    order = sorted(found["T"])
    return [found["H"][i] for i in order], [found["T"][i] for i in order]


def test_the_last_line_of_fairseqs_log() -> None:
    """It is 13a BLEU of tokenized text, which is refused unless forced."""
    hypotheses, references = fairseq_log()
    with pytest.raises(UserError, match="tokenized"):
        check_comparable(hypotheses, references)
    result, _ = bleu(hypotheses, references)
    assert f"{result.score:.2f}" == "39.69"
    assert precisions(result.precisions) == "69.4/46.3/33.3/24.6"
    assert f"{result.bp:.3f} {result.sys_len / result.ref_len:.3f}" == "0.986 0.986"
    assert (result.sys_len, result.ref_len) == (74884, 75945)


def test_fairseqs_log_by_multi_bleu() -> None:
    assert str(tokenized_bleu(*fairseq_log())) == (
        "BLEU = 39.13, 69.7/45.7/32.2/23.3 "
        "(BP=0.994, ratio=0.994, hyp_len=72031, ref_len=72446)"
    )


def test_tensorflow_nmt() -> None:
    folder = CHECK / "tensorflow-nmt"
    hypotheses = read_lines(folder / "deen_output.xz")
    of_bpe = read_lines(folder / "deen_ref_bpe.xz")
    of_spm = read_lines(folder / "deen_ref_spm.xz")
    references = [line.replace("@@ ", "") for line in of_bpe]
    assert references == [
        line.replace(" ", "").replace("▁", " ").strip() for line in of_spm
    ]
    result = tokenized_bleu(hypotheses, references, only_spaces=True)
    assert f"{result.bleu:.12f}"[:13] == "22.5855084573"
    # multi-bleu.perl also splits at other white space and has no empty tokens.
    assert f"{tokenized_bleu(hypotheses, references).bleu:.2f}" == "22.58"


@pytest.mark.parametrize(
    ("system", "whole", "split"),
    [
        (
            "sennrich2016",
            "BLEU = 24.47, 56.6/30.5/18.4/11.3 "
            "(BP=1.000, ratio=1.025, hyp_len=64693, ref_len=63086)",
            "BLEU = 24.99, 57.0/30.9/18.8/11.7 "
            "(BP=1.000, ratio=1.029, hyp_len=66391, ref_len=64504)",
        ),
        (
            "bpe2bpe",
            "BLEU = 19.34, 50.9/24.8/13.8/8.0 "
            "(BP=1.000, ratio=1.047, hyp_len=66065, ref_len=63086)",
            "BLEU = 19.86, 51.5/25.3/14.3/8.4 "
            "(BP=1.000, ratio=1.042, hyp_len=67233, ref_len=64504)",
        ),
    ],
)
def test_compounds_by_multi_bleu(system: str, whole: str, split: str) -> None:
    hypotheses = read_lines(COMPOUNDS / f"newstest2014-en-de.{system}.tok.de.xz")
    references = read_lines(COMPOUNDS / "newstest2014-en-de.ref.tok.de.xz")
    assert str(tokenized_bleu(hypotheses, references)) == whole
    assert str(compound_split_bleu(hypotheses, references)) == split


def test_the_tokenizer_is_that_of_moses() -> None:
    pytest.importorskip("sacremoses")
    raw = read_lines(NEWSTEST / "newstest2014-en-de.de.xz")[:500]
    # tokenizer.perl -l de -no-escape, Moses 34452895.
    perl = read_lines(COMPOUNDS / "newstest2014-en-de.ref.tok.de.xz")[:500]
    ours = tokenize_by_moses(raw, "de")
    differing = sum(a.split() != b.split() for a, b in zip(ours, perl))
    assert differing <= 5


def score(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "score.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_the_two_sets_called_newstest2014_are_never_confused() -> None:
    file = "newstest2014-en-de.filtered2737.bergamot-base-memory.de.xz"
    hypotheses = CHECK / "firefox" / file
    references = NEWSTEST / "newstest2014-en-de.de.xz"
    mixed = score(hypotheses, references)
    assert mixed.returncode == 2
    assert "is `newstest2014/2737` and the other `newstest2014`" in mixed.stderr
    whole = score(hypotheses, references, "--test-set", "newstest2014")
    assert "must have the 3,003 lines of `newstest2014`, but has 2,737" in whole.stderr
    part = score(hypotheses, references, "--test-set", "newstest2014/2737", "--json")
    scores = json.loads(part.stdout)
    assert (scores["test_set"], scores["sentences"]) == ("newstest2014/2737", 2737)
    assert f"{scores['bleu']:.2f} {scores['chrf']:.2f}" == "29.82 60.54"
    assert scores["forced"] is False
