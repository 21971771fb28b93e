"""Every form in which text is published, complete and damaged."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import pytest

from fairseq_plugins.corpus.readers import Text, form_of, read_pairs, read_segments
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


WMT = """<?xml version='1.0' encoding='utf-8'?>
<!-- <doc id="old"><src lang="en"><seg id="1">old</seg></src></doc> -->
<dataset id="newstest2021.en-fr">
<doc origlang="en" id="news.1">
<src lang="en"><p><seg id="1">One &amp; only&#8230;</seg></p>
<p><seg id="2">Two</seg></p></src>
<ref lang="fr" translator="A">
<p><seg id="1">Un (A)</seg><seg id="2">Deux (A)</seg></p></ref>
<ref lang="fr" translator="B">
<p><seg id="1">Un (B)</seg><seg id="2">Deux (B)</seg></p></ref>
<hyp lang="fr" system="X">
<p><seg id="1">Un (X)</seg><seg id="2">Deux (X)</seg></p></hyp>
</doc>
<doc origlang="en" id="news.2">
<src lang="en"><p><seg id="1">Three</seg></p></src>
<ref lang="fr" translator="A"><p><seg id="1">Trois (A)</seg></p></ref>
<hyp lang="fr" system="X"><p><seg id="1">Trois (X)</seg></p></hyp>
</doc>
<doc id="suite" testsuite="S"><src lang="en"><p><seg id="1">Untranslated</seg></p></src>
</doc>
</dataset>
""".encode()


def nist(kind: str, *documents: str, attributes: str = 'srclang="any"') -> bytes:
    body = "\n".join(documents)
    return f'<{kind} setid="n" {attributes}>\n{body}\n</{kind}>\n'.encode()


def document(name: str, *segments: str, attributes: str = "") -> str:
    body = "\n".join(
        f'<seg id="{number}">{segment}</seg>'
        for number, segment in enumerate(segments, start=1)
    )
    return f'<doc {attributes} docid="{name}">\n<p>\n{body}\n</p>\n</doc>'


def pairs(
    source: Path, target: Path, languages: tuple[str, str] = ("en", "fr"), **choice: str
) -> list[tuple[str, str]]:
    texts = (
        Text(source, (), form_of(source.name)),
        Text(target, (), form_of(target.name), **choice),
    )
    found = read_pairs(*texts, languages)
    return [(first.decode(), second.decode()) for first, second in found]


def write(folder: Path, **files: bytes | str) -> list[Path]:
    paths = []
    for name, content in files.items():
        paths.append(folder / name.replace("_", "."))
        raw = content.encode() if isinstance(content, str) else content
        paths[-1].write_bytes(raw)
    return paths


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
    with pytest.raises(UserError, match="t.tmx` has no text in `de`, but has EN-us"):
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


@pytest.mark.parametrize("damage", ["none", "cut", "changed", "other"])
def test_a_zstandard_file_is_read_to_its_end_or_refused(tmp_path, damage):
    zstandard = pytest.importorskip("zstandard")
    lines = b"".join(b"%d %d\n" % (i, i * i % 977) for i in range(20_000))
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(lines)
    middle = len(frame) // 2
    (path,) = write(tmp_path, t_en_zst={
        "none": frame + frame,
        "cut": frame + frame[:middle],
        "changed": frame[:middle] + bytes(99) + frame[middle + 99 :],
        "other": b"no archive",
    }[damage])  # fmt: skip
    if damage == "none":
        assert "".join(line + "\n" for line in read(path)).encode() == 2 * lines
    else:
        with pytest.raises(UserError, match="t.en.zst` is a damaged archive"):
            read(path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.sgm", SGM[: SGM.index(b"four")], "has a <seg> element that does not end"),
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


@pytest.mark.parametrize(
    "choice, targets",
    [
        ({"translator": "A"}, ["Un (A)", "Deux (A)", "Trois (A)"]),
        ({"translator": "B"}, ["Un (B)", "Deux (B)"]),
        ({"system": "X"}, ["Un (X)", "Deux (X)", "Trois (X)"]),
    ],
)
def test_a_wmt_xml_file_holds_both_sides_and_the_recipe_chooses_the_reference(
    tmp_path, caplog, choice, targets
):
    (path,) = write(tmp_path, t_xml=WMT)
    sources = ["One & only…", "Two", "Three"]
    assert pairs(path, path, **choice) == list(zip(sources, targets))
    skipped = 4 - len(targets)
    assert f"{skipped} of 4 segments of `{path}` are skipped" in caplog.text


def test_several_references_are_refused_and_listed(tmp_path):
    (path,) = write(tmp_path, t_xml=WMT)
    with pytest.raises(UserError, match=r"document `news.1` \(ref fr A, ref fr B\)"):
        pairs(path, path)
    with pytest.raises(UserError, match="no text in `fr` with `translator: C`, but"):
        pairs(path, path, translator="C")
    with pytest.raises(UserError, match="no text in `de` with `translator: A`, but"):
        pairs(path, path, ("en", "de"), translator="A")
    # Without an ambiguity, no choice is necessary.
    (one,) = write(
        tmp_path, one_xml=WMT.replace(b'lang="fr" translator="B"', b'lang="de"')
    )
    assert [target for _, target in pairs(one, one)][0] == "Un (A)"
    assert pairs(one, one, lang="de") == [
        ("One & only…", "Un (B)"),
        ("Two", "Deux (B)"),
    ]


def test_two_references_without_names_are_refused(tmp_path):
    (path,) = write(tmp_path, t_xml=WMT.replace(b' translator="A"', b"")
                    .replace(b' translator="B"', b""))  # fmt: skip
    with pytest.raises(UserError, match="several texts of document `news.1`"):
        pairs(path, path)


def test_an_xml_file_with_one_text_is_not_both_sides(tmp_path):
    (path,) = write(tmp_path, t_sgm=nist("srcset", document("a", "one")))
    with pytest.raises(UserError, match="must hold a text for each side"):
        pairs(path, path)


def test_documents_of_sgml_are_paired_by_their_identifiers(tmp_path, caplog):
    a, b = document("a", "1", "2"), document("b", "3")
    source, target, same = write(
        tmp_path,
        s_sgm=nist("srcset", a, b),
        t_sgm=nist("refset", document("b", "III"), document("a", "I", "II")),
        u_sgm=nist("refset", document("a", "I", "II"), document("b", "III")),
    )
    expected = [("1", "I"), ("2", "II"), ("3", "III")]
    assert pairs(source, same) == expected
    assert not caplog.records
    assert pairs(source, target) == expected
    assert "paired by their identifiers" in caplog.text


def test_segments_of_sgml_are_paired_by_their_numbers(tmp_path):
    source, target = write(
        tmp_path,
        s_sgm=nist("srcset", '<doc><seg id="1">1</seg><seg id=2>2</seg></doc>'),
        t_sgm=nist("refset", "<DOC><SEG ID='2'>II</SEG><seg id='1'>I</seg></DOC>"),
    )
    assert pairs(source, target) == [("1", "I"), ("2", "II")]


def test_without_identifiers_the_order_pairs_segments(tmp_path):
    source, target, short = write(
        tmp_path,
        s_sgm="<doc><seg>1</seg><seg>2</seg></doc>",
        t_sgm=nist("refset", document("a", "I", "II")),
        u_sgm="<doc><seg>I</seg></doc>",
    )
    assert pairs(source, target) == [("1", "I"), ("2", "II")]
    with pytest.raises(UserError, match="equally many lines, but have 2 and 1"):
        pairs(source, short)


def test_two_sgml_files_with_different_segments_are_refused(tmp_path):
    source, target = write(
        tmp_path,
        s_sgm=nist("srcset", document("a", "1", "2"), document("b", "3")),
        t_sgm=nist("refset", document("a", "I"), document("b", "III", "IV")),
    )
    with pytest.raises(UserError, match="2 are only in one of them, such as segment "
                       "`2` of document `a`"):  # fmt: skip
        pairs(source, target)


def test_a_system_of_an_sgml_file_is_chosen_by_its_sysid(tmp_path):
    documents = [
        document("a", f"I {name}", attributes=f'sysid="{name}"') for name in ("x", "y")
    ]
    source, refs, outputs = write(
        tmp_path,
        s_sgm=nist("srcset", document("a", "1")),
        r_sgm=nist("refset", *documents),
        o_sgm=nist("tstset", *documents),
    )
    with pytest.raises(UserError, match="several texts of document `a`"):
        pairs(source, refs)
    assert pairs(source, refs, translator="y") == [("1", "I y")]
    assert pairs(source, outputs, system="x") == [("1", "I x")]


def test_comments_of_sgml_are_not_text_and_entities_are_decoded(tmp_path):
    content = (
        '<!-- <seg id="1">old</seg> -->\n'
        "<seg id='1'>It&#39;s &#x201C;x&#x201d; &lt;b&gt;<!-- no --></seg>\n"
        '<seg id="2"/><seg id="3">a&nbsp;b &amp;#39; R&D &unknown;</seg>'
        '<seg id="4"><![CDATA[x < &amp;]]>&#10;y</seg>'
    )
    (path,) = write(tmp_path, t_sgm=content)
    assert read(path) == [
        "It's “x” <b>", "", "a\u00a0b &#39; R&D &unknown;", "x < &amp; y"
    ]  # fmt: skip
    (path,) = write(tmp_path, t_sgm="<seg>a</seg><!-- <seg>b</seg>")
    with pytest.raises(UserError, match="ends within a comment"):
        read(path)
    (path,) = write(tmp_path, t_sgm="<seg>a <seg>b</seg>")
    with pytest.raises(UserError, match="<seg> element that does not end"):
        read(path)


@pytest.mark.parametrize("encoding", ["iso-8859-1", "utf-16"])
def test_the_declared_encoding_of_xml_is_honoured(tmp_path, encoding):
    content = f"<?xml version='1.0' encoding='{encoding}'?><doc><seg>é</seg></doc>"
    (path,) = write(tmp_path, t_xml=content.encode(encoding))
    assert read(path) == ["é"]


def tmx(*units: str, namespace: str = "") -> str:
    body = "".join(f"<tu>{unit}</tu>" for unit in units)
    return f'<tmx version="1.4"{namespace}><header/><body>{body}</body></tmx>'


def variant(code: str, segment: str) -> str:
    return f'<tuv xml:lang="{code}"><seg>{segment}</seg></tuv>'


def test_codes_of_tmx_are_dropped_and_highlighted_text_is_kept(tmp_path):
    segment = (
        'Click <bpt i="1" x="1">&lt;b&gt;</bpt><hi type="ui">Save <hi>all</hi></hi>'
        '<ept i="1">&lt;/b&gt;</ept> now<it pos="begin">&lt;i&gt;</it>.<ph>&lt;img '
        'alt="<sub>A picture</sub>"/&gt;</ph><ut>{\\b}</ut>'
        '<ph type="lb">&lt;br/&gt;</ph>End'
    )
    (path,) = write(tmp_path, t_tmx=tmx(variant("en", segment)))
    assert read(path) == ["Click Save all now. End"]


def test_units_of_tmx_that_lack_a_language_are_skipped_and_counted(tmp_path, caplog):
    units = [
        variant("en", "1") + variant("fr", "I"),
        variant("en", "2"),
        variant("fr", "III"),
        variant("en", "4") + variant("fr", ""),
        variant("de", "5"),
        variant("fr", "VI") + variant("en", "6"),
    ]
    (path,) = write(tmp_path, t_tmx=tmx(*units))
    assert pairs(path, path) == [("1", "I"), ("6", "VI")]
    assert f"4 of 6 segments of `{path}` are skipped" in caplog.text
    (path,) = write(tmp_path, u_tmx=tmx(*units[1:3]))
    with pytest.raises(UserError, match="in `en` and `fr` in the same segments"):
        pairs(path, path)


@pytest.mark.parametrize(
    "codes, language, expected",
    [
        (["EN"], "en", "EN"),
        (["fr", "en-GB"], "en", "en-GB"),
        (["en-GB", "en"], "en", "en"),
        (["pt-PT", "pt-br"], "pt_BR", "pt-br"),
        (["pt-PT", "pt"], "pt_BR", "pt"),
        (["zh-Hans-CN", "zh-Hant-TW"], "zh_TW", "zh-Hant-TW"),
        (["zh-Hans", "zh_hant"], "zh_Hant", "zh_hant"),
        (["pt-PT", "enm"], "pt_BR", None),
        (["enm"], "en", None),
    ],
)
def test_language_codes_are_compared_as_bcp_47(tmp_path, codes, language, expected):
    unit = "".join(variant(code, code) for code in codes)
    (path,) = write(tmp_path, t_tmx=tmx(unit))
    if expected is None:
        with pytest.raises(UserError, match=f"has no text in `{language}`"):
            read(path, language)
    else:
        assert read(path, language) == [expected]


def test_tmx_in_a_namespace_and_in_utf_16_is_read(tmp_path):
    content = tmx(variant("en", "é"), namespace=' xmlns="http://www.lisa.org/tmx14"')
    header = '<?xml version="1.0" encoding="utf-16"?>'
    (path,) = write(tmp_path, t_tmx=(header + content).encode("utf-16"))
    assert read(path) == ["é"]


@pytest.mark.parametrize("form", ["plain", "ted"])
@pytest.mark.parametrize(
    "content, lines, notice",
    [
        (b"a\nb\n", ["a", "b"], None),
        (b"a\r\nb\r\n", ["a", "b"], None),
        (b"a\rb\r", ["a", "b"], "carriage return ends a line"),
        (b"a\rb", ["a", "b"], "carriage return ends a line"),
        (b"\xef\xbb\xbfa\r\n\xef\xbb\xbfb\n", ["a", "b"], "byte order marks"),
    ],
)
def test_line_ends_and_byte_order_marks_of_every_system_give_the_same_lines(
    tmp_path, caplog, form, content, lines, notice
):
    (path,) = write(tmp_path, t_en=content)
    assert read(path, form=form) == lines
    assert (notice in caplog.text) if notice else not caplog.records


def test_metadata_of_ted_talks_is_skipped_in_every_edition(tmp_path):
    (path,) = write(tmp_path, t='<doc docid="1">\n<reviewer href="x">R</reviewer>\nHi\n'
                    "</doc>\n")  # fmt: skip
    assert read(path, form="ted") == ["Hi"]


@pytest.mark.parametrize("content", ["<seg>" * 50_000, "<seg " * 50_000,
                                     "<!--" * 50_000, "<seg>" + "<!--" * 50_000
                                     + "</seg>"])  # fmt: skip
def test_broken_sgml_is_read_in_linear_time(tmp_path, content):
    (path,) = write(tmp_path, t_sgm=content)
    with contextlib.suppress(UserError):
        read(path)
