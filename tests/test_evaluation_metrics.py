"""Scores have signatures, and texts that would make them wrong are refused."""

from __future__ import annotations

import random
from importlib.metadata import version

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from sacrebleu.metrics import BLEU

from fairseq_plugins.evaluation.metrics import (
    TESTED_SACREBLEU,
    oracle_bleu,
    repetition,
    score,
)
from fairseq_plugins.utils.errors import UserError


def test_the_installed_sacrebleu_is_a_tested_version() -> None:
    installed = version("sacrebleu")
    assert installed in SpecifierSet(TESTED_SACREBLEU), (
        f"sacrebleu {installed} is not in the tested range {TESTED_SACREBLEU}: check "
        "the private functions that evaluation/metrics.py uses, run the tests of "
        "evaluation, and extend the range there and in setup.cfg."
    )
    assert f"sacrebleu{TESTED_SACREBLEU}" in (ROOT / "setup.cfg").read_text()


def test_signatures_describe_the_scores() -> None:
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


def test_an_address_is_not_a_subword_mark() -> None:
    score(["write to a@b.org or @@home"], ["write to a@b.org"])


@pytest.mark.parametrize(("hypotheses", "references"), [(1, 2), (2, 1), (0, 0)])
def test_unequal_or_no_lines_are_refused(hypotheses: int, references: int) -> None:
    with pytest.raises(UserError, match=f"but have {hypotheses} and {references}"):
        score(["a"] * hypotheses, ["a"] * references)


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def prose(*, seed: int, lines: int = 60, words: int = 10) -> list[str]:
    """Lines in an artificial language."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices(LETTERS, k=5)) for _ in range(400)]
    return [" ".join(rng.choices(vocabulary, k=words)) + "." for _ in range(lines)]


def refused(hypotheses: list[str], references: list[str], **options: object) -> str:
    with pytest.raises(UserError) as error:
        score(hypotheses, references, **options)  # type: ignore[arg-type]
    # Users can score such texts nevertheless.
    if len(hypotheses) == len(references):
        score(hypotheses, references, force=True)
    return str(error.value)


def test_tokenized_text_is_refused_and_shown() -> None:
    plain = prose(seed=1)
    tokenized = [line.replace(".", " .") for line in plain]
    message = refused(plain[:5] + tokenized[5:], plain)
    assert "55 of 60 are tokenized, such as line 6" in message
    assert f"`{tokenized[5][:80]}" in message
    assert message.startswith("hypothesis lines")
    assert refused(plain, tokenized).startswith("reference lines")
    entities = [f"{line} &quot; yes &quot;" for line in prose(seed=1)]
    entities = [line.replace(".", "") for line in entities]
    assert "60 of 60 are tokenized" in refused(entities, plain)


def test_french_spaces_and_a_few_slips_are_not_tokenized_text() -> None:
    french = ["Il dit : « Venez ! » Pourquoi ?"] * 50 + ["Non ."] * 9
    score(french, french)
    slips = ["Yes."] * 50 + ["A , b ."] * 20
    score(slips, slips)


def test_the_first_line_without_counterpart_is_shown() -> None:
    lines = ["one", "two", "three", "four"]
    message = refused(lines[:2], lines)
    assert "but have 2 and 4. The first line without hypothesis is line 3" in message
    assert "`three`" in message
    assert "without reference is line 4: `four`" in refused(lines, lines[:3])


def test_too_many_empty_hypotheses_are_refused() -> None:
    references = prose(seed=1, lines=20)
    hypotheses = ["", " ", "", *references[3:]]
    message = refused(hypotheses, references)
    assert "at most 10% of the hypotheses may be empty, but 3 of 20 are" in message
    assert "such as line 1" in message and references[0][:20] in message
    assert score(hypotheses, references, max_empty=0.15).empty == 3
    assert "of the references may be empty" in refused(references, hypotheses)


def test_a_reference_in_another_language_is_refused_and_shown() -> None:
    ours, theirs = prose(seed=1), prose(seed=2)
    message = refused(ours, theirs)
    assert "must have the same language and order, but share 0%" in message
    assert ours[0][:30] in message and theirs[0][:30] in message
    # Bad translations are in the right language.
    bad = [
        " ".join(w if n % 3 else "x" for n, w in enumerate(line.split()))
        for line in theirs
    ]
    score(bad, theirs)


def test_exchanged_sides_are_detected_with_the_source() -> None:
    source, target = prose(seed=1), prose(seed=2)
    score(target, target, sources=source)
    message = refused(target, source, sources=target)
    assert "0% of their words with the references and 100% with the sources" in message
    assert "source and reference are exchanged, or nothing was translated" in message
    # The output of an untrained model has no language, which is not a user error.
    score(prose(seed=3), target, sources=source)


def test_other_line_separators_do_not_change_a_score() -> None:
    lines = ["one\u2028two three four", "five\x85six seven eight"]
    assert score(lines, lines).bleu == pytest.approx(100)


@settings(deadline=None)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=20))
def test_every_sentence_is_in_the_bucket_of_its_length(lengths: list[int]) -> None:
    references = [" ".join(["w"] * length) for length in lengths]
    buckets = score(references, references, force=True).bleu_by_length
    assert sum(bucket["sentences"] for bucket in buckets) == len(lengths)
    for bucket in buckets:
        first, last = bucket["from_words"], bucket["to_words"] or 1000
        assert bucket["sentences"] == sum(first <= n <= last for n in lengths) > 0


def test_bleu_of_a_bucket_is_that_of_its_sentences() -> None:
    rng = random.Random(3)
    references = [
        " ".join(rng.choices("abcdefgh", k=rng.randint(4, 30))) for _ in range(60)
    ]
    hypotheses = [line.replace("a", "b") for line in references]
    for bucket in score(hypotheses, references, force=True).bleu_by_length:
        inside = [
            (h, r)
            for h, r in zip(hypotheses, references)
            if bucket["from_words"] <= len(r.split()) <= (bucket["to_words"] or 1000)
        ]
        ours, theirs = map(list, zip(*inside))
        assert bucket["bleu"] == BLEU().corpus_score(ours, [theirs]).score


def test_repetition_counts_earlier_pairs() -> None:
    assert repetition(["a b c", "a b c"]) == 0
    # a a, a a, a a, a b: four pairs, two of them new.
    assert repetition(["a a a a b"]) == 0.5
    assert repetition(["", "a"]) == 0


def test_oracle_bleu_is_that_of_sacrebleu_per_sentence() -> None:
    rng = random.Random(4)

    def text() -> str:
        return " ".join(rng.choices("abc", k=rng.randint(0, 12)))

    references = [text() for _ in range(80)]
    nbest = [[text() for _ in range(rng.randint(1, 6))] for _ in references]
    judge = BLEU(effective_order=True)
    chosen = [
        max(texts, key=lambda each: judge.sentence_score(each, [reference]).score)
        for texts, reference in zip(nbest, references)
    ]
    expected = BLEU().corpus_score(chosen, [references]).score
    assert oracle_bleu(nbest, references) == expected
    assert expected > BLEU().corpus_score([t[0] for t in nbest], [references]).score
