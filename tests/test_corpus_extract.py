"""Finding the texts of a recipe, and writing them as aligned text."""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import lzma
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from test_corpus_recipe import GOOD, make_part, write_recipe

from fairseq_plugins.corpus.extract import (
    LocatedPart,
    extract,
    locate,
    source_folder,
)
from fairseq_plugins.corpus.readers import Text
from fairseq_plugins.corpus.recipe import Part, Recipe, TextFile, load_recipe
from fairseq_plugins.utils.errors import UserError

COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
LANGUAGES = ("de", "en")


def write_located(
    folder: Path,
    source: bytes,
    target: bytes,
    *,
    ending: str = "",
    sha256: tuple[str | None, str | None] = (None, None),
    **facts: Any,
) -> LocatedPart:
    texts = []
    for language, content in zip(LANGUAGES, (source, target)):
        path = folder / f"part.{language}{ending}"
        path.write_bytes(COMPRESS[ending](content))
        texts.append(Text(path, (), "plain"))
    files = [TextFile("x", digest) for digest in sha256]
    return LocatedPart(Part("part", *files, **facts), *texts)


def numbered(folder: Path, count: int, **facts: Any) -> LocatedPart:
    text = "".join(f"{number}\n" for number in range(count)).encode()
    return write_located(folder, text, text, **facts)


def run(folder: Path, located: LocatedPart, **options: Any) -> list[list[str]]:
    outputs = folder / "out" / "s", folder / "out" / "t"
    extract(located, outputs, languages=LANGUAGES, **options)
    return [path.read_bytes().decode().split("\n")[:-1] for path in outputs]


def refuse(folder: Path, located: LocatedPart, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        run(folder, located)
    assert not any((folder / "out").iterdir())


@pytest.mark.parametrize("ending", COMPRESS)
def test_only_a_line_feed_ends_a_line_and_the_last_one_may_lack_it(tmp_path, ending):
    located = write_located(
        tmp_path, "a\r\n\u2028b\x85".encode(), b"1\n2\n", ending=ending
    )
    assert run(tmp_path, located) == [["a", "\u2028b\x85"], ["1", "2"]]


@pytest.mark.parametrize(
    "source, target, message",
    [
        (b"", b"", "part.de` is empty."),
        (b"", b"a\n", "part.de` is empty."),
        (b"a\nb\n", b"a\n", "must have equally many lines, but have 2 and 1."),
        (b"a\n", b"a\n" * 1200, "must have equally many lines, but have 1 and 1,200."),
        (b"a\nb\xff\n", b"a\nb\n", "part.de` must be UTF-8 text, but line 2 is not"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_nothing_is_written(
    tmp_path, source, target, message
):
    refuse(tmp_path, write_located(tmp_path, source, target), message)


@pytest.mark.parametrize("ending", [".gz", ".xz"])
@pytest.mark.parametrize("damage", ["cut", "changed", "broken", "no archive"])
def test_a_damaged_archive_is_refused_by_name(tmp_path, ending, damage):
    lines = "".join(hashlib.sha256(bytes([i])).hexdigest() + "\n" for i in range(200))
    located = write_located(tmp_path, lines.encode(), lines.encode(), ending=ending)
    content = located.target.path.read_bytes()
    middle = len(content) // 2
    located.target.path.write_bytes(
        {
            "cut": content[:middle],
            "changed": content[:middle] + bytes(99) + content[middle + 99 :],
            "broken": content[:10] + b"\xff" * 4 + content[14:],
            "no archive": lines.encode(),
        }[damage]
    )
    refuse(tmp_path, located, f"part.en{ending}` is a damaged archive")


def test_the_text_must_be_the_one_that_the_recipe_names(tmp_path):
    digests = tuple(hashlib.sha256(text).hexdigest() for text in (b"a\n", b"1\n"))
    for ending in COMPRESS:
        good = write_located(
            tmp_path, b"a\n", b"1\n", ending=ending, sha256=digests, lines=1
        )
        assert run(tmp_path, good) == [["a"], ["1"]]
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    other = write_located(tmp_path, b"a\n", b"2\n", sha256=digests)
    refuse(tmp_path, other, f"must hold the text with sha256 {digests[1]}")
    short = write_located(tmp_path, b"a\n", b"1\n", lines=2)
    refuse(tmp_path, short, "must have 2 lines, but have 1")


def test_names_in_an_archive_never_become_files(tmp_path):
    members = {"../evil": b"x\n", "/tmp/evil": b"x\n", "t.de": b"1\n", "t.en": b"2\n"}
    with tarfile.open(tmp_path / "t.tgz", "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    part = Part("p", TextFile("t.de"), TextFile("t.en"))
    texts = [Text(tmp_path / "t.tgz", (f"t.{each}",), "plain") for each in LANGUAGES]
    assert run(tmp_path, LocatedPart(part, *texts)) == [["1"], ["2"]]
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"t.tgz", "out/s", "out/t"}


def test_the_recipe_chooses_the_texts_of_an_xml_file(tmp_path):
    elements = "".join(
        f'<{kind}><p><seg id="1">{text}</seg></p></{kind.split()[0]}>'
        for kind, text in (
            ('src lang="de"', "eins"),
            ('ref lang="en" translator="A"', "one"),
            ('ref lang="en" translator="B"', "a one"),
            ('hyp lang="en" system="X"', "won"),
        )
    )
    xml = f'<dataset><doc id="d">{elements}</doc></dataset>'
    (tmp_path / "dev.xml").write_text(xml)
    for choice, expected in (({"translator": "B"}, "a one"), ({"system": "X"}, "won")):
        part = make_part("dev")
        part["source"] = {"file": "dev.xml"}
        part["target"] = {"file": "dev.xml", **choice}
        recipe = load(tmp_path, {**GOOD, "train": [part], "valid": [part],
                                 "test": [part]})  # fmt: skip
        located = locate(recipe, tmp_path).subsets["valid"][0]
        assert run(tmp_path, located) == [["eins"], [expected]]


def test_every_nth_line_and_the_others_make_up_the_whole(tmp_path):
    taken, _ = run(tmp_path, numbered(tmp_path, 50, every=23))
    rest, other_side = run(tmp_path, numbered(tmp_path, 50, but_every=23))
    assert taken == ["22", "45"]
    assert sorted(taken + rest, key=int) == [str(number) for number in range(50)]
    assert rest == other_side


def test_line_numbers_pick_and_order(tmp_path):
    index = tmp_path / "index"
    located = numbered(tmp_path, 5, lines=2)._replace(line_numbers=index)
    index.write_text("3\n0\n")
    assert run(tmp_path, located) == [["3", "0"], ["3", "0"]]
    index.write_text("3\n5\n")
    with pytest.raises(UserError, match="line number 5 in its line 2, but the text"):
        run(tmp_path, located)


def test_the_digest_of_a_part_is_not_compared_with_the_longer_text(tmp_path):
    located = numbered(tmp_path, 5, sha256=("0" * 64, None))
    with pytest.raises(UserError, match="with sha256 000"):
        run(tmp_path, located)
    (tmp_path / "index").write_text("3\n0\n")
    picked = located._replace(line_numbers=tmp_path / "index")
    assert run(tmp_path, picked)[0] == ["3", "0"]


def test_a_limit_takes_the_beginning_without_checks_of_the_whole(tmp_path):
    assert run(tmp_path, numbered(tmp_path, 5, lines=9), limit=2)[0] == ["0", "1"]


def test_text_that_is_published_in_moses_tokens_is_detokenized(tmp_path):
    pytest.importorskip("sacremoses")
    text = b"It &apos;s a dog , please .\n"
    located = write_located(tmp_path, text, text, tokenised=True)
    assert run(tmp_path, located)[1] == ["It's a dog, please."]
    assert run(tmp_path, located._replace(is_sample=True))[1] == [text.decode()[:-1]]


def load(folder: Path, content: dict[str, Any]) -> Recipe:
    return load_recipe(str(write_recipe(folder, content)))[1]


def test_all_missing_files_are_named_at_once_with_their_origin(tmp_path):
    (tmp_path / "one.de").write_text("x\n")
    with pytest.raises(UserError) as error:
        locate(load(tmp_path, GOOD), tmp_path)
    message = str(error.value)
    assert "lacks one.en, two.de, two.en, dev.de, dev.en, old.de" in message
    assert "two.de, two.en (7 lines each)" in message
    assert "published in a place" in message


def test_a_recipe_s_own_folder_is_relative_to_its_file_and_source_wins(tmp_path):
    recipe_file = tmp_path / "recipes" / "mine.yaml"
    recipe = load(tmp_path, {**GOOD, "folder": "../text"})
    assert source_folder(recipe_file, recipe, None) == tmp_path / "text"
    assert source_folder(recipe_file, recipe, tmp_path) == tmp_path


def test_a_longer_text_with_a_similar_name_is_not_the_part_itself(tmp_path):
    part = make_part("one", local_index="numbers")
    for side in (part["source"], part["target"]):
        side["local"] = [side["file"] + ".long"]
    recipe = load(tmp_path, {**copy.deepcopy(GOOD), "train": [part]})
    for name in ("one.de.long", "one.en.long", "numbers", "dev.de", "dev.en", "old.de",
                 "old.en", "new.de", "new.en"):  # fmt: skip
        (tmp_path / name).write_text("x\n")
    located = locate(recipe, tmp_path).subsets["train"][0]
    assert located.line_numbers == tmp_path / "numbers"
    for name in ("one.de", "one.en.gz"):
        (tmp_path / name).write_text("x\n")
    located = locate(recipe, tmp_path).subsets["train"][0]
    assert located.source.path == tmp_path / "one.de"
    assert located.line_numbers is None
