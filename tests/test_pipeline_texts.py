"""Every form in which text is published, whole and damaged."""

from __future__ import annotations

import dataclasses
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import pytest

from fairseq_plugins.corpus.extract import LocatedPart, extract
from fairseq_plugins.corpus.readers import Text, form_of, segments
from fairseq_plugins.corpus.recipe import Part, TextFile
from fairseq_plugins.utils.errors import UserError

SGM = b"""<srcset setid="n" srclang="any">
<doc docid="1"><p>
<seg id="1">One &amp; two &quot;x&quot;</seg>
<SEG id="2"> Three
 four </SEG><seg id="3">five</seg>
</p></doc></srcset>
"""
TMX = """<?xml version="1.0" encoding="utf-8"?>
<tmx version="1.4"><header/><body>
<tu><tuv xml:lang="EN-us"><seg>One <b>big</b> cat</seg></tuv>
<tuv xml:lang="fr"><seg>Un gros\n chat é</seg></tuv></tu>
<tu><tuv lang="fr"><seg>deux</seg></tuv><tuv lang="en"><seg>two</seg></tuv></tu>
</body></tmx>
""".encode()
TED = b"""<url>http://x</url>
<keywords>a, b</keywords>
<title>My talk</title>
<description>About <x></description>
 Hello.
"""


def read(path: Path, language: str = "en", *, members=(), form="") -> list[str]:
    text = Text(path, tuple(members), form or form_of(path.name))
    return [segment.decode() for segment in segments(text, language)]


def pack(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("t.sgm", SGM, ['One & two "x"', "Three four", "five"]),
        ("t.xml", SGM, ['One & two "x"', "Three four", "five"]),
        ("t.tmx", TMX, ["One big cat", "two"]),
        ("t.en", b"a\r\nb", ["a", "b"]),
    ],
)
def test_the_ending_says_the_form(tmp_path, name, content, expected, compress):
    ending = {bytes: "", gzip.compress: ".gz", lzma.compress: ".xz"}[compress]
    path = tmp_path / (name + ending)
    path.write_bytes(compress(content))
    assert read(path) == expected


def test_both_languages_of_a_tmx_are_aligned(tmp_path):
    (tmp_path / "t.tmx").write_bytes(TMX)
    assert read(tmp_path / "t.tmx", "fr") == ["Un gros chat é", "deux"]
    with pytest.raises(UserError, match="t.tmx` has no `de` in its unit 1"):
        read(tmp_path / "t.tmx", "de")


def test_ted_s_tags_are_no_text(tmp_path):
    (tmp_path / "t").write_bytes(TED)
    assert read(tmp_path / "t", form="ted") == ["My talk", "About <x>", "Hello."]


@pytest.mark.parametrize("mode, ending", [("w:gz", "tgz"), ("w", "tar"), ("w:xz", "x")])
def test_members_are_read_one_after_the_other_packed_or_not(tmp_path, mode, ending):
    content = {"./d/b": b"2\n", "d/a.gz": gzip.compress(b"1\n"), "c.sgm": SGM}
    path = pack(tmp_path / f"t.{ending}", content, mode)
    assert read(path, members=["d/a.gz", "d/b"], form="plain") == ["1", "2"]
    assert len(read(path, members=["c.sgm"], form="sgm")) == 3


def test_an_archive_s_names_never_become_files(tmp_path):
    evil = {"../evil": b"x\n", "/tmp/evil": b"x\n", "t.en": b"1\n", "t.fr": b"2\n"}
    (tmp_path / "in").mkdir()
    path = pack(tmp_path / "in" / "t.tgz", evil)
    part = Part("p", TextFile("t.en"), TextFile("t.fr"))
    texts = [Text(path, (name,), "plain") for name in ("t.en", "t.fr")]
    outs = tmp_path / "out" / "a", tmp_path / "out" / "b"
    extract(LocatedPart(part, *texts), outs, languages=("en", "fr"))
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"in/t.tgz", "out/a", "out/b"}
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        link = tarfile.TarInfo("t.en")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UserError, match="must hold a plain file `t.en`"):
        read(tmp_path / "l.tar", members=["t.en"], form="plain")


def test_a_missing_member_is_named(tmp_path):
    path = pack(tmp_path / "t.tgz", {"a": b"1\n"})
    with pytest.raises(UserError, match="t.tgz:b` must be an archive that holds `b`"):
        read(path, members=["b"], form="plain")


@pytest.mark.parametrize("damage", ["cut", "changed", "none"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    lines = b"".join(b"%d %d\n" % (i, i * i % 977) for i in range(20_000))
    path = pack(tmp_path / "t.tgz", {"a": lines})
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes({
        "cut": content[:middle],
        "changed": content[:middle] + bytes(99) + content[middle + 99 :],
        "none": b"no archive",
    }[damage])  # fmt: skip
    with pytest.raises(UserError, match="t.tgz:a` is a damaged archive, after line"):
        read(path, members=["a"], form="plain")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.sgm", SGM[: SGM.index(b"four")], "ends within a <seg> element"),
        ("t.tmx", TMX[:-30], "is not well-formed XML"),
        ("t.sgm", SGM.replace(b"five", b"f\xff"), "UTF-8 text, but line 3 is not"),
        ("t.en", b"a\nb\nc\xc3\n", "UTF-8 text, but line 3 is not: .* at its byte 2"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"(?s){name}` .*{message}"):
        read(tmp_path / name)


def located(folder: Path, count: int, **facts) -> LocatedPart:
    for language in ("en", "fr"):
        text = "".join(f"{language}{number}\n" for number in range(count))
        (folder / f"t.{language}").write_text(text)
    part = Part("p", TextFile("t.en"), TextFile("t.fr"), **facts)
    texts = [Text(folder / f"t.{each}", (), "plain") for each in ("en", "fr")]
    return LocatedPart(part, *texts)


def extracted(folder: Path, where: LocatedPart, **options) -> list[str]:
    outs = folder / "o.en", folder / "o.fr"
    extract(where, outs, languages=("en", "fr"), **options)
    sides = [path.read_text().split() for path in outs]
    assert [line[2:] for line in sides[0]] == [line[2:] for line in sides[1]]
    return [line[2:] for line in sides[0]]


def test_every_nth_line_and_the_others_make_up_the_whole(tmp_path):
    taken = extracted(tmp_path, located(tmp_path, 50, every=23))
    rest = extracted(tmp_path, located(tmp_path, 50, but_every=23))
    assert taken == ["22", "45"]
    assert sorted(taken + rest, key=int) == [str(number) for number in range(50)]


def test_line_numbers_pick_and_order(tmp_path):
    (tmp_path / "idx").write_text("3\n0\n")
    where = located(tmp_path, 5, lines=2)._replace(line_numbers=tmp_path / "idx")
    assert extracted(tmp_path, where) == ["3", "0"]
    (tmp_path / "idx").write_text("3\n5\n")
    with pytest.raises(UserError, match="line number 5 in its line 2, but the text"):
        extracted(tmp_path, where)


def test_a_digest_of_the_part_is_not_held_against_the_longer_text(tmp_path):
    (tmp_path / "idx").write_text("3\n0\n")
    where = located(tmp_path, 5)
    digested = dataclasses.replace(where.part.source, sha256="0" * 64)
    where = where._replace(part=dataclasses.replace(where.part, source=digested))
    with pytest.raises(UserError, match="with sha256 000"):
        extracted(tmp_path, where)
    picked = where._replace(line_numbers=tmp_path / "idx")
    assert extracted(tmp_path, picked) == ["3", "0"]


def test_a_limit_takes_the_beginning_and_asks_for_no_more(tmp_path):
    assert extracted(tmp_path, located(tmp_path, 5, lines=9), limit=2) == ["0", "1"]


def test_moses_tokens_are_joined(tmp_path):
    pytest.importorskip("sacremoses")
    for language in ("en", "fr"):
        (tmp_path / f"t.{language}").write_text("It &apos;s a dog , please .\n")
    part = Part("p", TextFile("t.en"), TextFile("t.fr"), tokenised=True)
    texts = [Text(tmp_path / f"t.{x}", (), "plain") for x in ("en", "fr")]
    outs = tmp_path / "a", tmp_path / "b"
    extract(LocatedPart(part, *texts), outs, languages=("en", "fr"))
    assert outs[0].read_text() == "It's a dog, please.\n"
