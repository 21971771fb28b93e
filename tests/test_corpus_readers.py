"""Every form in which text is published, complete and damaged."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from pathlib import Path

import pytest

from fairseq_plugins.corpus.readers import Text, form_of, read_segments
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
    return [segment.decode() for segment in read_segments(text, language)]


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
def test_the_ending_determines_the_form(tmp_path, name, content, expected, compress):
    ending = {bytes: "", gzip.compress: ".gz", lzma.compress: ".xz"}[compress]
    path = tmp_path / (name + ending)
    path.write_bytes(compress(content))
    assert read(path) == expected


def test_both_languages_of_a_tmx_are_aligned(tmp_path):
    (tmp_path / "t.tmx").write_bytes(TMX)
    assert read(tmp_path / "t.tmx", "fr") == ["Un gros chat é", "deux"]
    with pytest.raises(UserError, match="t.tmx` has no `de` in its unit 1"):
        read(tmp_path / "t.tmx", "de")


def test_tags_of_ted_talks_are_removed(tmp_path):
    (tmp_path / "t").write_bytes(TED)
    assert read(tmp_path / "t", form="ted") == ["My talk", "About <x>", "Hello."]


@pytest.mark.parametrize("mode, ending", [("w:gz", "tgz"), ("w", "tar"), ("w:xz", "x")])
def test_members_are_read_one_after_the_other_packed_or_not(tmp_path, mode, ending):
    content = {"./d/b": b"2\n", "d/a.gz": gzip.compress(b"1\n"), "c.sgm": SGM}
    path = pack(tmp_path / f"t.{ending}", content, mode)
    assert read(path, members=["d/a.gz", "d/b"], form="plain") == ["1", "2"]
    assert len(read(path, members=["c.sgm"], form="sgm")) == 3


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
def test_a_fault_is_named_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"(?s){name}` .*{message}"):
        read(tmp_path / name)


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        link = tarfile.TarInfo("t.en")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UserError, match="must hold a plain file `t.en`"):
        read(tmp_path / "l.tar", members=["t.en"], form="plain")
