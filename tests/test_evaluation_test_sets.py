"""A name identifies one text, and a part has the right lines."""

from __future__ import annotations

import pytest
from conftest import SHARED_DATA

from fairseq_plugins.evaluation.test_sets import (
    check_size,
    find_part,
    identify_test_set,
    load_test_sets,
    select_lines,
)
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_lines

NEWSTEST = SHARED_DATA / "newstest"
needs_data = pytest.mark.skipif(not NEWSTEST.is_dir(), reason="no ../shared/data")


def test_no_two_sets_of_one_name_share_a_pair_or_a_text() -> None:
    pairs, digests = set(), []
    for known in load_test_sets():
        pair = (known.name, *sorted(known.sha256))
        assert pair not in pairs
        pairs.add(pair)
        digests += known.sha256.values()
    assert len(set(digests)) == len(digests)


def test_a_part_has_distinct_lines_of_the_whole() -> None:
    part = find_part("newstest2014/2737", ("en", "de"))
    numbers = part.numbers()
    assert len(set(numbers)) == len(numbers) == part.sentences == 2737
    assert 0 <= min(numbers) and max(numbers) < 3003


@needs_data
@pytest.mark.parametrize("language", ["en", "de"])
def test_the_part_is_the_published_one(language: str) -> None:
    whole = read_lines(NEWSTEST / f"newstest2014-en-de.{language}.xz")
    index = read_lines(NEWSTEST / "newstest2014-en-de.filtered2737.idx.xz")
    part = select_lines("newstest2014/2737", whole)
    assert part == [whole[int(number)] for number in index]
    assert select_lines("newstest2014/2737", part) == part
    found = identify_test_set(part), identify_test_set(whole)
    assert [known and known.name for known in found] == [
        "newstest2014/2737",
        "newstest2014",
    ]


@needs_data
def test_the_sets_of_two_language_pairs_are_distinguished() -> None:
    french = identify_test_set(read_lines(NEWSTEST / "newstest2014-en-fr.en.xz"))
    german = identify_test_set(read_lines(NEWSTEST / "newstest2014-en-de.en.xz"))
    assert french is not None and german is not None
    assert (set(french.sha256), set(german.sha256)) == ({"en", "fr"}, {"en", "de"})
    assert identify_test_set(["some", "other", "text"]) is None


def test_sizes_and_names_are_checked() -> None:
    check_size("newstest2014", ("de", "en"), 3003)
    check_size("my_own_set", ("de", "en"), 5)
    with pytest.raises(
        UserError, match="has 2,737. This is the size of `newstest2014/2"
    ):
        check_size("newstest2014", ("en", "de"), 2737)
    with pytest.raises(
        UserError, match="2,737 .* has 3,003. This is the size of `newstest20"
    ):
        check_size("newstest2014/2737", ("en", "de"), 3003)
    with pytest.raises(UserError, match="Did you mean `newstest2014/2737`"):
        find_part("newstest2014/273")
    with pytest.raises(UserError, match="is not a known test set"):
        find_part("newstest2014/2737", ("en", "fr"))
    with pytest.raises(UserError, match="2,737 lines of .* or the 3,003 of"):
        select_lines("newstest2014/2737", ["one"])
