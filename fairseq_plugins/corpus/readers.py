"""Read the segments of a text in any published form, as bytes of one line each.

Forms: plain text, ``<seg>`` elements of NIST's SGML, of IWSLT's XML and of WMT's XML
since 2021, TMX, and IWSLT's training text with its tags. Files may be plain, ``.gz``,
``.xz`` or ``.zst``, or members of a tar archive. Archives are read as streams: nothing
is unpacked under a name that an archive chooses. docs/data.md lists which parts of each
format are honoured.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import gzip
import html
import io
import itertools
import logging
import lzma
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Iterator, NamedTuple, Sequence
from xml.etree import ElementTree

from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import DAMAGED_ARCHIVE

__all__ = ["Text", "form_of", "read_pairs", "read_segments"]

logger = logging.getLogger(__name__)

_FORMS = {".sgm": "sgm", ".xml": "sgm", ".tmx": "tmx"}
_BUFFER = 1 << 20
_PACKED_BUFFER = 1 << 14  # small, because zstandard may expand it a thousandfold
_GZIP_MAGIC, _XZ_MAGIC = b"\x1f\x8b", b"\xfd7zXZ\x00"
_BOM = "\ufeff".encode()
# SGML is seldom well-formed XML, so no parser of XML can read it.
_SGML = re.compile(
    rb"<!--.*?(?P<end_of_comment>-->|\Z)"
    rb"|<(?P<tag>/?(?:srcset|refset|tstset|doc|src|ref|hyp))\b(?P<attributes>[^<>]*)>"
    rb"|<seg\b(?P<seg>[^<>]*?)"
    rb"(?:/>|>(?P<content>[^<]*(?:<(?!/?seg\b)[^<]*)*)</seg\s*>)"
    rb"|(?P<open><seg\b)",
    re.DOTALL | re.IGNORECASE,
)
_ATTRIBUTE = re.compile(rb"""([\w:.-]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+)""")
_ESCAPED = re.compile(
    rb"<!--.*?(?:-->|\Z)|<!\[CDATA\[(?P<cdata>.*?)(?:\]\]>|\Z)"
    rb"|&(?:\#[0-9]+|\#x[0-9a-f]+|[a-z][a-z0-9]*);",
    re.DOTALL | re.IGNORECASE,
)
_ENCODING = re.compile(rb"""\s*<\?xml[^>]*\bencoding\s*=\s*["']([\w.-]+)""")
# TMX 1.4b: codes of the original's markup, whose content is not text, unlike `hi`.
_TMX_CODES = ("bpt", "ept", "it", "ph", "ut")
_TMX_BREAKS = ("lb", "pb")  # types of codes that stand for a line or page break
# IWSLT's training text: lines that are not text, and tags around text.
_TED_METADATA = re.compile(
    rb"\s*<(/?doc|url|talkid|keywords|speaker|reviewer|translator)\b"
)
_TED_TAGS = re.compile(rb"</?(title|description)>")
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


@dataclass(frozen=True)
class Text:
    """Where a text is.

    Attributes:
        path: a file or an archive.
        members: of the archive, read one after the other; none for a file.
        form, lang, translator, system: see
            :class:`fairseq_plugins.corpus.recipe.TextFile`.
    """

    path: Path
    members: tuple[str, ...]
    form: str
    lang: str | None = None
    translator: str | None = None
    system: str | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.members[0]}" if self.members else str(self.path)


class _FormError(Exception):
    pass


class _Segment(NamedTuple):
    """``text`` is empty if a unit of a TMX file lacks the language."""

    text: bytes
    document: str = ""  # identifiers in the file, if it has any
    number: str = ""


def form_of(name: str) -> str:
    """Return the form that the ending of a file's name stands for."""
    for ending in (".gz", ".xz", ".zst"):
        name = name.removesuffix(ending)
    return _FORMS.get(Path(name).suffix, "plain")


def read_segments(text: Text, language: str) -> Iterator[bytes]:
    """Yield the segments, as UTF-8 without line ends and byte order marks.

    Args:
        language: which language of a TMX or WMT XML file to read.

    Raises:
        UserError: the file cannot be read, is damaged, is not UTF-8, lacks a member or
            does not have the expected form; the message names file and line.
    """
    for segment in _read(text, language):
        if segment.text or text.form != "tmx":
            yield segment.text


def read_pairs(
    source: Text, target: Text, languages: tuple[str, str]
) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pairs of segments that are translations of each other.

    SGML and XML give documents and segments identifiers, which decide. Otherwise the
    order does. Units of a TMX file, and segments of one XML file for both sides, are
    skipped and counted if one side is missing or empty.

    Raises:
        UserError: a side is empty, the sides have different segments, or see
            :func:`read_segments`.
    """
    counts = [0, 0]

    def read(side: int) -> Iterator[_Segment]:
        for segment in _read((source, target)[side], languages[side]):
            counts[side] += 1
            yield segment

    is_one_file = (source.path, source.members) == (target.path, target.members)
    if source.form == target.form == "sgm":
        names = (str(source), str(target))
        pairs = _pair_by_identifiers(list(read(0)), list(read(1)), names, is_one_file)
    else:
        pairs = itertools.zip_longest(read(0), read(1))
    may_lack = is_one_file or "tmx" in (source.form, target.form)
    num_pairs = num_skipped = 0
    for first, second in pairs:
        if may_lack and not (first and second and first.text and second.text):
            num_skipped += 1
        elif first is not None and second is not None:
            num_pairs += 1
            yield first.text, second.text
    for text, count in zip((source, target), counts):
        if not count:
            raise UserError(f"`{text}` is empty.")
    if counts[0] != counts[1] and not is_one_file:
        raise UserError(
            f"`{source}` and `{target}` must have equally many lines, but have "
            f"{counts[0]:,} and {counts[1]:,}."
        )
    if not num_pairs:
        raise UserError(
            f"`{source}` must have text in `{languages[0]}` and `{languages[1]}` in "
            "the same segments, but has none."
        )
    if num_skipped:
        _notify(
            f"{num_skipped:,} of {num_pairs + num_skipped:,} segments of `{source}` "
            "are skipped, because one side is missing or empty."
        )


_Pairs = Iterator["tuple[_Segment | None, _Segment | None]"]


def _pair_by_identifiers(
    first: list[_Segment],
    second: list[_Segment],
    names: tuple[str, str],
    is_one_file: bool,
) -> _Pairs:
    """Pair segments of equal document and number, in the order of the first list.

    Equal identifiers are paired in their order, and those that a side lacks are not
    compared.
    """
    if is_one_file and first == second:
        raise UserError(f"`{names[0]}` must hold a text for each side, but has one.")
    everything = [*first, *second]
    has_documents = all(each.document for each in everything)
    has_numbers = all(each.number for each in everything)
    if not (has_documents or has_numbers):
        return itertools.zip_longest(first, second)
    sources, targets = (
        _number(segments, has_documents, has_numbers) for segments in (first, second)
    )
    unpaired = sources.keys() ^ targets.keys()
    if unpaired and not is_one_file:
        document, number, _ = min(unpaired)
        raise UserError(
            f"`{names[0]}` and `{names[1]}` must have the same segments, but "
            f"{len(unpaired):,} are only in one of them, such as segment `{number}` of "
            f"document `{document}` ({len(sources):,} and {len(targets):,} segments)."
        )
    if not unpaired and list(sources) != list(targets):
        _notify(
            f"`{names[1]}` has another order than `{names[0]}`: its segments are "
            "paired by their identifiers."
        )
    unpaired_targets = ((None, targets[key]) for key in targets if key not in sources)
    return itertools.chain(
        ((segment, targets.get(key)) for key, segment in sources.items()),
        unpaired_targets,
    )


def _number(
    segments: list[_Segment], has_documents: bool, has_numbers: bool
) -> dict[tuple[str, str, int], _Segment]:
    """Return the segments by identifiers and by their number among equal ones."""
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    numbered = {}
    for segment in segments:
        document = segment.document if has_documents else ""
        number = segment.number if has_numbers else ""
        numbered[document, number, seen[document, number]] = segment
        seen[document, number] += 1
    return numbered


@functools.cache  # A text may be read several times.
def _notify(message: str) -> None:
    logger.warning("Notice: %s", message)


def _read(text: Text, language: str) -> Iterator[_Segment]:
    number = 0
    try:
        for stream in _open_streams(text):
            with contextlib.closing(stream):
                for segment in _read_form(stream, text, text.lang or language):
                    number += 1
                    if segment.text.startswith(_BOM):
                        segment = segment._replace(text=segment.text.removeprefix(_BOM))
                        _notify(f"`{text}` has byte order marks, which are removed.")
                    segment.text.decode("utf-8")
                    yield segment
    except UnicodeDecodeError as error:
        raise UserError(
            f"`{text}` must be UTF-8 text, but line {number} is not: {error.reason} at "
            f"its byte {error.start + 1}."
        ) from None
    except (*DAMAGED_ARCHIVE, tarfile.TarError) as error:
        raise UserError(
            f"`{text}` is a damaged archive, after line {number}: {error}."
        ) from None
    except _FormError as error:
        raise UserError(f"`{text}` {error}, after segment {number:,}.") from None
    except PermissionError as error:
        raise UserError(f"`{text}` cannot be read: {error.strerror}.") from None


def _open_streams(text: Text) -> Iterator[IO[bytes]]:
    if not text.members:
        yield _decompress(open(text.path, "rb"), text.path.name)
    for member in text.members:
        with open(text.path, "rb") as packed:
            magic = packed.read(len(_XZ_MAGIC))
            packed.seek(0)
            ending = ".gz" if magic.startswith(_GZIP_MAGIC) else ""
            stream = _decompress(packed, ".xz" if magic == _XZ_MAGIC else ending)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                yield _decompress(_open_member(archive, member), member)
            # The checksum is at the end; tarfile's own gzip reader ignores it.
            while stream.read(_BUFFER):
                pass


def _open_member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    for entry in archive:
        if entry.name.removeprefix("./") == name:
            stream = archive.extractfile(entry) if entry.isfile() else None
            if stream is None:
                raise _FormError(f"must hold a plain file `{name}`, but it is no file")
            return stream
    raise _FormError(f"must be an archive that holds `{name}`, but does not")


def _decompress(stream: IO[bytes], name: str) -> IO[bytes]:
    if name.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=stream), _BUFFER)
    if name.endswith(".xz"):
        return io.BufferedReader(lzma.LZMAFile(stream), _BUFFER)
    if name.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise UserError(
                f"`{name}` can only be read if zstandard is installed: pip install "
                "zstandard."
            ) from None
        return io.BufferedReader(_ZstdFile(stream, zstandard), _BUFFER)
    return stream


class _ZstdFile(io.RawIOBase):
    """All frames of a file; zstandard's own reader takes a cut frame for the end.

    Raises:
        EOFError: the file is damaged or ends within a frame.
    """

    def __init__(self, stream: IO[bytes], zstandard: Any) -> None:
        self._stream = stream
        self._zstandard = zstandard
        self._frame: Any = None
        self._packed = self._text = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            self._packed = self._packed or self._stream.read(_PACKED_BUFFER)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            if self._frame is None:
                self._frame = self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._text = self._frame.decompress(self._packed)
            except self._zstandard.ZstdError as error:
                raise EOFError(error) from None
            self._packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._text))
        buffer[:size], self._text = self._text[:size], self._text[size:]
        return size


def _read_form(stream: IO[bytes], text: Text, language: str) -> Iterator[_Segment]:
    if text.form == "sgm":
        return _read_sgm(stream.read(), text, language)
    if text.form == "tmx":
        return map(_Segment, _read_tmx(stream, language))
    read = _read_ted if text.form == "ted" else _read_plain
    return map(_Segment, read(stream, text))


def _read_plain(stream: IO[bytes], text: Text) -> Iterator[bytes]:
    lines = iter(stream)
    first, second = next(lines, None), next(lines, None)
    if first is None:
        return
    if second is None and b"\r" in first.rstrip(b"\r\n"):
        _notify(f"`{text}` has no line feeds: a carriage return ends a line.")
        yield from first.removesuffix(b"\n").removesuffix(b"\r").split(b"\r")
        return
    for line in itertools.chain([first], [] if second is None else [second], lines):
        yield line.rstrip(b"\r\n")


def _read_ted(stream: IO[bytes], text: Text) -> Iterator[bytes]:
    for line in _read_plain(stream, text):
        if not _TED_METADATA.match(line.removeprefix(_BOM)):
            yield _TED_TAGS.sub(b"", line).strip()


class _Label(NamedTuple):
    """Which text of an SGML or XML file a segment belongs to.

    ``kind`` is the name of its set (NIST, IWSLT) or element (WMT), ``name`` its
    translator or system.
    """

    kind: str = ""
    lang: str = ""
    name: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, self))


class _Place(NamedTuple):
    """A segment, its text's label, and the number of the element that holds it."""

    segment: _Segment
    label: _Label
    document: str  # its identifier, otherwise its place in the file
    element: int


def _read_sgm(content: bytes, text: Text, language: str) -> Iterator[_Segment]:
    """Yield the ``<seg>`` elements of one text of the file, in order."""
    places = list(_scan_sgm(_recode(content)))
    labels = list(dict.fromkeys(place.label for place in places))
    chosen = set(_choose_labels(labels, text, language))
    if places and not chosen:
        key = next((k for k in ("translator", "system") if getattr(text, k)), None)
        name = f" with `{key}: {getattr(text, key)}`" if key else ""
        held = ", ".join(map(str, labels))
        raise _FormError(f"has no text in `{language}`{name}, but has {held}")
    texts: dict[str, dict[tuple[_Label, int], None]] = {}
    for place in places:
        if place.label in chosen:
            found = texts.setdefault(place.document, {})
            found[place.label, place.element] = None
            if len(found) > 1:
                held = ", ".join(str(label) for label, _ in found)
                raise _FormError(
                    f"holds several texts of document `{place.document}` ({held}): "
                    "choose one with `translator`, `system` or `lang` in the recipe"
                )
    return (place.segment for place in places if place.label in chosen)


def _choose_labels(
    labels: Sequence[_Label], text: Text, language: str
) -> Sequence[_Label]:
    """Return the labels that fit the recipe and the language."""
    if text.system is not None:
        labels = [
            each
            for each in labels
            if each.name == text.system and each.kind not in ("src", "ref", "srcset")
        ]
    elif text.translator is not None:
        labels = [
            each
            for each in labels
            if each.name == text.translator and each.kind in ("ref", "refset")
        ]
    else:
        no_output = [each for each in labels if each.kind not in ("hyp", "tstset")]
        if no_output or any(each.kind == "hyp" for each in labels):
            labels = no_output
    if len({each.kind for each in labels}) == 1 and labels[0].kind.endswith("set"):
        return labels  # NIST: a file for each side, often with languages such as `any`
    if all(not each.kind for each in labels):
        return labels
    matching = [each for each in labels if _rank_code(each.lang, language)]
    return matching or [each for each in labels if each.lang in ("", "any")]


def _scan_sgm(content: bytes) -> Iterator[_Place]:
    set_kind = element_kind = ""
    num_elements = num_documents = 0
    of_set: dict[str, str] = {}
    of_document: dict[str, str] = {}
    of_element: dict[str, str] = {}
    for match in _SGML.finditer(content):
        tag = (match["tag"] or b"").decode().lower()
        if match["end_of_comment"] == b"":
            raise _FormError("ends within a comment")
        if match["open"]:
            raise _FormError("has a <seg> element that does not end")
        if tag.startswith("/"):
            if tag in ("/src", "/ref", "/hyp"):
                element_kind, of_element = "", {}
            elif tag == "/doc":
                of_document = {}
            else:
                set_kind, of_set = "", {}
        elif tag:
            attributes = _parse_attributes(match["attributes"])
            if tag.endswith("set"):
                set_kind, of_set = tag, attributes
            elif tag == "doc":
                num_documents += 1
                of_document = attributes
            elif not match["attributes"].endswith(b"/"):
                num_elements += 1
                element_kind, of_element = tag, attributes
        elif match["seg"] is not None:
            segment = match["content"] or b""
            document = of_document.get("docid") or of_document.get("id", "")
            if element_kind:
                lang = of_element.get("lang") or of_element.get("language", "")
                name = of_element.get("translator") or of_element.get("system", "")
                label = _Label(element_kind, lang, name)
            else:
                language_of = "srclang" if set_kind == "srcset" else "trglang"
                name = of_document.get("sysid") or of_set.get("sysid", "")
                label = _Label(set_kind, of_set.get(language_of, ""), name)
            yield _Place(
                _Segment(
                    b" ".join(_unescape(segment).split()),
                    document,
                    _parse_attributes(match["seg"]).get("id", ""),
                ),
                label,
                document or str(num_documents),
                num_elements if element_kind else 0,
            )


def _parse_attributes(tag: bytes) -> dict[str, str]:
    return {
        name.decode().lower(): html.unescape(value.decode().strip("\"'"))
        for name, value in _ATTRIBUTE.findall(tag)
    }


def _unescape(content: bytes) -> bytes:
    """Replace entities and CDATA sections by their text, remove comments."""

    def replace(match: re.Match[bytes]) -> bytes:
        if match["cdata"] is not None:
            return match["cdata"]
        if match[0].startswith(b"&"):
            return html.unescape(match[0].decode()).encode("utf-8", "replace")
        return b""

    return _ESCAPED.sub(replace, content)


def _recode(content: bytes) -> bytes:
    """Return UTF-8, given any encoding that the byte order or the header declares."""
    declared = _ENCODING.match(content.removeprefix(_BOM))
    encoding = declared[1].decode() if declared else "utf-8"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    if encoding.lower() in ("utf-8", "utf8"):
        return content
    try:
        return content.decode(encoding).encode()
    except (LookupError, UnicodeError) as error:
        raise _FormError(f"cannot be read as `{encoding}` ({error})") from None


def _read_tmx(stream: IO[bytes], language: str) -> Iterator[bytes]:
    """Yield one segment per unit; it is empty if the unit lacks the language."""
    parents: list[ElementTree.Element] = []
    codes: dict[str, None] = {}
    num_found = 0
    try:
        for event, element in ElementTree.iterparse(stream, ("start", "end")):
            if event == "start":
                parents.append(element)
                continue
            parents.pop()
            if _local_name(element) == "tu":
                segment = _find_translation(element, language, codes)
                num_found += bool(segment)
                yield segment
                if parents:  # not if it is the root
                    parents[-1].remove(element)
    except ElementTree.ParseError as error:
        raise _FormError(f"is not well-formed XML ({error})") from None
    if codes and not num_found:
        raise _FormError(f"has no text in `{language}`, but has {', '.join(codes)}")


def _find_translation(
    unit: ElementTree.Element, language: str, codes: dict[str, None]
) -> bytes:
    """Return the text of the variant whose language fits best; add all to ``codes``."""
    best, best_rank = b"", 0
    for variant in unit.iter():
        if _local_name(variant) != "tuv":
            continue
        code = variant.get(_XML_LANG) or variant.get("lang") or ""
        codes[code] = None
        rank = _rank_code(code, language)
        segment = next((e for e in variant if _local_name(e) == "seg"), None)
        if rank > best_rank and segment is not None:
            best, best_rank = _read_tmx_segment(segment), rank
    return best


def _read_tmx_segment(segment: ElementTree.Element) -> bytes:
    for element in list(segment.iter()):
        if _local_name(element) in _TMX_CODES:
            tail = element.tail or ""
            is_break = element.get("type") in _TMX_BREAKS
            element.clear()
            element.tail = f" {tail}" if is_break else tail
    return " ".join("".join(segment.itertext()).split()).encode()


def _local_name(element: ElementTree.Element) -> str:
    """Return the name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]


def _rank_code(code: str, language: str) -> int:
    """Tell how well a language code fits: 3 equal, 2 narrower, 1 wider, 0 another one.

    Codes are compared as BCP 47: without case, with ``_`` as ``-``. As in the extended
    filtering of RFC 4647, ``zh-Hant-TW`` fits ``zh-TW``.
    """
    parts, expected = (
        re.split("[-_]", each.strip().lower()) for each in (code, language)
    )
    if parts == expected:
        return 3
    if parts[0] != expected[0]:
        return 0
    rest = iter(parts[1:])
    if all(part in rest for part in expected[1:]):
        return 2
    return 1 if parts == expected[: len(parts)] else 0
