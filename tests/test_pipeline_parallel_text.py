"""Both sides of a text: what is read, what is dropped and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
from pathlib import Path
from typing import Any

import pytest

from fairseq_plugins.corpus.clean import PlainPart, clean_training_text, join_whole_text
from fairseq_plugins.corpus.extract import LocatedPart, extract
from fairseq_plugins.corpus.readers import Text
from fairseq_plugins.corpus.recipe import Cleaning, Part, TextFile
from fairseq_plugins.utils.errors import UserError

COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
SOURCE = ["eins", "zwei Wörter", "", "vier", "fünf \u2028 \x85 Trenner"]
TARGET = ["one", "two words", "three", "\u200b\u00a0", "five"]


class Corpus:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def part(
        self, source: bytes, target: bytes, *, ending: str = "", **facts: Any
    ) -> LocatedPart:
        digests = facts.pop("sha256", (None, None))
        number = len(list(self.folder.iterdir()))
        paths = []
        for language, content in (("de", source), ("en", target)):
            path = self.folder / f"part{number}.{language}{ending}"
            path.write_bytes(COMPRESS[ending](content))
            paths.append(path)
        files = [TextFile("x", digest) for digest in digests]
        texts = [Text(path, (), "plain") for path in paths]
        return LocatedPart(Part("part", *files, **facts), *texts)

    def write(self, *parts: LocatedPart, max_words: int | None = None) -> dict:
        out = [self.folder / "out" / name for name in ("s", "t")]
        plain = []
        for part in parts:
            stem = self.folder / "plain" / part.source.path.name
            sides = stem.with_suffix(".de"), stem.with_suffix(".en")
            extract(part, sides, languages=("de", "en"))
            plain.append(PlainPart(*sides, (str(part.source), str(part.target))))
        if max_words is None:
            return join_whole_text(plain, *out)
        return clean_training_text(plain, *out, cleaning=Cleaning(max_words), workers=1)

    def written(self) -> list[list[str]]:
        out = [self.folder / "out" / name for name in ("s", "t")]
        return [path.read_bytes().decode().split("\n")[:-1] for path in out]

    def is_untouched(self) -> bool:
        return not any((self.folder / "out").glob("*"))

    def nothing_was_extracted(self) -> bool:
        return not any((self.folder / "plain").glob("*"))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def text(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


@pytest.mark.parametrize("ending", COMPRESS)
def test_pairs_with_an_empty_or_long_side_are_dropped_and_counted(corpus, ending):
    part = corpus.part(text(SOURCE), text(TARGET), ending=ending)
    assert corpus.write(part, max_words=2) == {
        "read": 5,
        "dropped_empty": 2,
        "dropped_too_long": 0,
        "pairs": 3,
    }
    kept = (0, 1, 4)
    assert corpus.written() == [[side[i] for i in kept] for side in (SOURCE, TARGET)]
    counts = corpus.write(part, max_words=1)
    assert (counts["dropped_too_long"], counts["pairs"]) == (2, 1)


def test_parts_are_joined_in_their_order(corpus):
    parts = [corpus.part(b"a\n", b"1\n"), corpus.part(b"b\nc\n", b"2\n3\n")]
    assert corpus.write(*parts) == {"pairs": 3}
    assert corpus.written() == [["a", "b", "c"], ["1", "2", "3"]]


def test_carriage_returns_and_a_missing_last_line_feed_are_no_text(corpus):
    corpus.write(corpus.part(b"a\r\nb", b"1\n2\n"))
    assert corpus.written() == [["a", "b"], ["1", "2"]]


def test_outside_training_an_empty_side_is_an_error_that_names_the_line(corpus):
    with pytest.raises(UserError, match=r"part0.de` is empty in line 3"):
        corpus.write(corpus.part(text(SOURCE), text(TARGET)))
    assert corpus.is_untouched()


@pytest.mark.parametrize("line", [" ", "\u200b", "\ufffd", "\u2581"])
def test_what_sentencepiece_would_drop_is_empty(corpus, line):
    with pytest.raises(UserError, match=r"part0.en` is empty in line 1"):
        corpus.write(corpus.part(b"a\n", text([line])))


@pytest.mark.parametrize("max_words", [None, 9])
@pytest.mark.parametrize(
    "source, target, message",
    [
        (b"", b"", "part0.de` is empty."),
        (b"", b"a\n", "part0.de` is empty."),
        (b"a\nb\n", b"a\n", "must have equally many lines, but have 2 and 1."),
        (b"a\n", b"a\n" * 1200, "must have equally many lines, but have 1 and 1,200."),
        (b"a\nb\xff\n", b"a\nb\n", "part0.de` must be UTF-8 text, but line 2 is not"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_nothing_is_written(
    corpus, source, target, message, max_words
):
    with pytest.raises(UserError, match=re.escape(message)):
        corpus.write(corpus.part(source, target), max_words=max_words)
    assert corpus.is_untouched() and corpus.nothing_was_extracted()


@pytest.mark.parametrize("ending", [".gz", ".xz"])
@pytest.mark.parametrize("damage", ["cut", "changed", "broken", "no archive"])
def test_a_damaged_archive_is_refused_by_name(corpus, ending, damage):
    lines = text([hashlib.sha256(bytes([i])).hexdigest() for i in range(200)])
    part = corpus.part(lines, lines, ending=ending)
    content = part.target.path.read_bytes()
    middle = len(content) // 2
    part.target.path.write_bytes(
        {
            "cut": content[:middle],
            "changed": content[:middle] + bytes(99) + content[middle + 99 :],
            "broken": content[:10] + b"\xff" * 4 + content[14:],
            "no archive": lines,
        }[damage]
    )
    with pytest.raises(UserError, match=f"part0.en{ending}` is a damaged archive"):
        corpus.write(part, max_words=9)
    assert corpus.is_untouched() and corpus.nothing_was_extracted()


def test_the_text_must_be_the_one_that_the_recipe_names(corpus):
    digests = [hashlib.sha256(content).hexdigest() for content in (b"a\n", b"1\n")]
    for ending in COMPRESS:
        good = corpus.part(b"a\n", b"1\n", ending=ending, sha256=digests, lines=1)
        assert corpus.write(good) == {"pairs": 1}
    other = corpus.part(b"a\n", b"2\n", sha256=digests)
    with pytest.raises(UserError, match=f"must hold the text with sha256 {digests[1]}"):
        corpus.write(other)
    with pytest.raises(UserError, match="must have 2 lines, but have 1"):
        corpus.write(corpus.part(b"a\n", b"1\n", lines=2))


def test_training_text_of_which_nothing_is_left_is_refused(corpus):
    with pytest.raises(UserError, match="left of 2: 1 have an empty side and 1"):
        corpus.write(corpus.part(b"a b c\n\n", b"1\n2\n"), max_words=2)
