"""Which training pairs are dropped, and that nothing else is."""

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
    find_first,
    has_text,
    hash_pair,
    join_whole_text,
    normalize_line,
)
from fairseq_plugins.corpus.recipe import Cleaning
from fairseq_plugins.utils.errors import UserError

SOURCE = ["eins", "zwei Wörter", "", "vier", "fünf \u2028 \x85 Trenner"]
TARGET = ["one", "two words", "three", "\u200b\u00a0", "five"]
Pairs = list[tuple[str, str]]


def write_part(folder: Path, name: str, pairs: Pairs) -> PlainPart:
    paths = [folder / f"{name}.{language}" for language in ("de", "en")]
    for side, path in enumerate(paths):
        text = "".join(pair[side] + "\n" for pair in pairs)
        path.write_text(text, encoding="utf-8", newline="\n")
    return PlainPart(paths[0], paths[1], (paths[0].name, paths[1].name))


def read_output(folder: Path) -> Pairs:
    paths = [folder / "out" / name for name in ("source", "target")]
    assert sorted((folder / "out").iterdir()) == paths
    sides = [path.read_text(encoding="utf-8").split("\n")[:-1] for path in paths]
    return list(zip(*sides))


def clean(folder: Path, pairs: Pairs, *, workers: int = 1, **rules: object) -> tuple:
    counts = clean_training_text(
        [write_part(folder, "part", pairs)],
        folder / "out" / "source",
        folder / "out" / "target",
        workers=workers,
        cleaning=Cleaning(**{"max_words": 100, **rules}),  # type: ignore[arg-type]
    )
    return counts, read_output(folder)


def join(folder: Path, *parts: PlainPart) -> dict[str, int]:
    return join_whole_text(parts, folder / "out" / "source", folder / "out" / "target")


def test_pairs_with_an_empty_or_long_side_are_dropped_and_counted(tmp_path):
    pairs = list(zip(SOURCE, TARGET))
    counts, kept = clean(tmp_path, pairs, max_words=2)
    assert counts == {
        "read": 5,
        "dropped_empty": 2,
        "dropped_too_long": 0,
        "pairs": 3,
    }
    assert kept == [pairs[i] for i in (0, 1, 4)]
    counts, _ = clean(tmp_path, pairs, max_words=1)
    assert (counts["dropped_too_long"], counts["pairs"]) == (2, 1)


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
def test_each_rule_counts_the_pairs_that_it_drops(
    tmp_path, rule, value, name, dropped, kept
):
    again = [dropped] if name != "duplicate" else [dropped, dropped]
    counts, left = clean(tmp_path, [*again, kept], **{rule: value})
    assert counts[f"dropped_{name}"] == 1
    assert left == ([dropped, kept] if name == "duplicate" else [kept])


def test_marks_count_as_letters():
    keep = PairFilter(Cleaning(max_words=9, min_letters=0.9))
    assert not isinstance(keep("हिन्दी", "Hindi"), str)
    assert keep("१२३ १२३", "numbers") == "dropped_few_letters"


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
def test_normalizing_changes_the_form_and_not_the_words(line, expected):
    assert normalize_line(line) == expected == normalize_line(expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_of_equal_pairs_stays_and_the_order_is_kept(
    tmp_path, monkeypatch, workers
):
    monkeypatch.setattr("fairseq_plugins.corpus.blocks.LINES_PER_BLOCK", 50)
    rng = random.Random(3)
    pairs = [(f"s{rng.randint(0, 40)}", f"ü{rng.randint(0, 9)}") for _ in range(500)]
    counts, kept = clean(tmp_path, pairs, drop_duplicates=True, workers=workers)
    assert kept == list(dict.fromkeys(pairs))
    assert counts["dropped_duplicate"] == 500 - len(kept)
    assert counts["pairs"] == len(kept)


@pytest.mark.parametrize("at_once", [1, 7, 100, 10**6])
def test_the_first_of_equal_digests_is_found_with_any_memory(tmp_path, at_once):
    rng = random.Random(at_once)
    pairs = [(str(rng.randint(0, 60)), str(rng.randint(0, 2))) for _ in range(300)]
    expected = [pair not in pairs[:number] for number, pair in enumerate(pairs)]
    (tmp_path / "digests").write_bytes(b"".join(hash_pair(*pair) for pair in pairs))
    found = find_first(tmp_path / "digests", at_once=at_once)
    assert found.tolist() == expected


def test_the_sides_of_a_pair_are_kept_apart_in_its_digest():
    assert hash_pair("a b", "c") != hash_pair("a", "b c")


def test_memory_for_duplicates_hardly_grows_with_the_corpus(tmp_path):
    peaks = []
    for total in (50_000, 400_000):
        rng = np.random.default_rng(1)
        (tmp_path / "digests").write_bytes(rng.bytes(16 * total))
        tracemalloc.start()
        find_first(tmp_path / "digests", at_once=20_000)
        peaks.append(tracemalloc.get_traced_memory()[1] - total)  # a byte per digest
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_training_text_of_which_nothing_is_left_is_refused(tmp_path):
    with pytest.raises(UserError, match="of 2: 1 dropped empty, 1 dropped too long."):
        clean(tmp_path, [("a b c", "1"), ("", "2")], max_words=2)
    assert not list((tmp_path / "out").iterdir())


def test_parts_are_joined_in_their_order(tmp_path):
    pairs = [("a", "1"), ("b", "2"), ("c", "3")]
    parts = [
        write_part(tmp_path, name, some)
        for name, some in (("x", pairs[:1]), ("y", pairs[1:]))
    ]
    assert join(tmp_path, *parts) == {"pairs": 3}
    assert read_output(tmp_path) == pairs


@pytest.mark.parametrize("line", ["", " ", "\u200b", "\ufffd", "\u2581" * 4])
def test_outside_training_one_empty_line_is_reported_and_more_are_refused(
    tmp_path, caplog, line
):
    pairs = [("a", "b"), ("c", line), ("d", "e"), ("f", line)]
    assert join(tmp_path, write_part(tmp_path, "dev", pairs[:3])) == {"pairs": 3}
    assert read_output(tmp_path) == pairs[:3]
    assert "`dev.en` is empty in line 2 of 3; it stays." in caplog.text
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="`dev.en` is empty in line 2, .* 2 of 4 are"):
        join(tmp_path, write_part(tmp_path, "dev", pairs))
    assert not list((tmp_path / "out").iterdir())
    many = [("a", "b")] * 198 + [("c", line)] * 2  # 1 %
    assert join(tmp_path, write_part(tmp_path, "dev", many)) == {"pairs": 200}


@pytest.mark.parametrize("line", ["\ue000", "\U0001fae9", "\U0010fffd", "\U0001fadf"])
def test_private_and_new_characters_are_text(line):
    assert has_text(line)
