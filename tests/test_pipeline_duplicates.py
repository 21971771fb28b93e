"""Filters and duplicates: two ways must agree on what is kept."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fairseq_plugins.corpus.clean import (
    PairFilter,
    PlainPart,
    clean_training_text,
    digest_of_pair,
    mark_first,
    normalised,
)
from fairseq_plugins.corpus.recipe import Cleaning


@pytest.mark.parametrize("at_once", [1, 7, 100, 10**6])
def test_the_first_of_equal_digests_is_marked_whatever_fits_in_memory(
    tmp_path, at_once
):
    rng = random.Random(at_once)
    pairs = [(str(rng.randint(0, 60)), str(rng.randint(0, 2))) for _ in range(300)]
    seen: set[tuple[str, str]] = set()
    expected = []
    for pair in pairs:
        expected.append(pair not in seen)
        seen.add(pair)
    (tmp_path / "d").write_bytes(b"".join(digest_of_pair(*pair) for pair in pairs))
    repeated = mark_first(tmp_path / "d", tmp_path / "m", at_once=at_once)
    marks = np.frombuffer((tmp_path / "m").read_bytes(), np.uint8)
    assert marks.tolist() == expected
    assert repeated == 300 - len(seen)


def test_the_sides_of_a_pair_are_kept_apart_in_its_digest():
    assert digest_of_pair("a b", "c") != digest_of_pair("a", "b c")


def test_memory_for_duplicates_does_not_grow_with_the_corpus(tmp_path):
    peaks = []
    for total in (50_000, 400_000):
        rng = np.random.default_rng(1)
        (tmp_path / "d").write_bytes(rng.bytes(16 * total))
        tracemalloc.start()
        mark_first(tmp_path / "d", tmp_path / "m", at_once=20_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def clean(folder: Path, pairs: list[tuple[str, str]], **rules: object) -> tuple:
    for side in (0, 1):
        text = "".join(pair[side] + "\n" for pair in pairs)
        (folder / f"in{side}").write_text(text, encoding="utf-8", newline="\n")
    part = PlainPart(folder / "in0", folder / "in1", ("a", "b"))
    outs = [folder / "out" / str(side) for side in (0, 1)]
    workers = int(rules.pop("workers", 1))  # type: ignore[call-overload]
    counts = clean_training_text(
        [part], outs[0], outs[1], workers=workers,
        cleaning=Cleaning(**{"max_words": 100, **rules}),  # type: ignore[arg-type]
    )  # fmt: skip
    texts = [path.read_text(encoding="utf-8").split("\n")[:-1] for path in outs]
    assert len(list((folder / "out").iterdir())) == 2
    return counts, list(zip(*texts))


@pytest.mark.parametrize("workers", [1, 2])
def test_of_equal_pairs_the_first_stays_and_order_is_kept(
    tmp_path, monkeypatch, workers
):
    monkeypatch.setattr("fairseq_plugins.utils.workers.LINES_PER_BLOCK", 50)
    rng = random.Random(3)
    pairs = [(f"s{rng.randint(0, 40)}", f"ü{rng.randint(0, 9)}") for _ in range(500)]
    counts, kept = clean(tmp_path, pairs, drop_duplicates=True, workers=workers)
    assert kept == list(dict.fromkeys(pairs))
    assert counts["dropped_duplicate"] == 500 - len(kept)
    assert counts["pairs"] == len(kept)


@pytest.mark.parametrize(
    "rule, value, name, dropped, kept",
    [
        ("max_ratio", 2.0, "ratio", ("a b c d e", "x"), ("a b c", "x")),
        ("max_word_length", 5, "long_word", ("abcdef", "x"), ("abcde", "x")),
        ("min_letters", 0.5, "few_letters", ("12 34", "ab"), ("ab 12", "ab")),
        ("drop_copies", True, "copy", ("same", "same"), ("same", "Same")),
        ("drop_duplicates", True, "duplicate", ("a", "b"), ("b", "a")),
        ("max_words", 2, "too_long", ("a", "b c d"), ("a", "b c")),
    ],
)
def test_each_rule_counts_what_it_drops(tmp_path, rule, value, name, dropped, kept):
    again = [dropped] if name != "duplicate" else [dropped, dropped]
    counts, left = clean(tmp_path, [*again, kept], **{rule: value})
    assert counts[f"dropped_{name}"] == 1
    assert left == ([dropped, kept] if name == "duplicate" else [kept])


def test_words_of_scripts_with_marks_have_letters():
    rules = PairFilter(Cleaning(max_words=9, min_letters=0.9))
    assert not isinstance(rules("हिन्दी", "Hindi"), str)
    assert rules("१२३ १२३", "numbers") == "dropped_few_letters"


@pytest.mark.parametrize(
    "line, expected",
    [
        ("e\u0301té", "été"),
        (" a  b\t c ", "a b c"),
        ("a\x00b\u200bc\u00add\ufeff", "abcd"),
        ("a\u2028b\x85c", "a b c"),
        ("20\u00a0%", "20\u00a0%"),
        ("na\u200dm", "na\u200dm"),
    ],
)
def test_normalising_changes_the_form_and_not_the_words(line, expected):
    assert normalised(line) == expected == normalised(expected)
