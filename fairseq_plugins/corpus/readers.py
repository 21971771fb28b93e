"""Read the segments of a text in any published form, as bytes of one line each.

Forms: plain text, ``<seg>`` elements of NIST's SGML and of IWSLT's XML, TMX, and
IWSLT's training text with its tags. Files may be plain, ``.gz`` or ``.xz``, or members
of a tar archive. Archives are read as streams: nothing is unpacked under a name that an
archive chooses.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Callable, Iterable, Iterator
from xml.etree import ElementTree

from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import DAMAGED_ARCHIVE

__all__ = ["Text", "form_of", "read_segments"]

_FORMS = {".sgm": "sgm", ".xml": "sgm", ".tmx": "tmx"}
_BUFFER = 1 << 20
_GZIP_MAGIC, _XZ_MAGIC = b"\x1f\x8b", b"\xfd7zXZ\x00"
_SEGMENT = re.compile(rb"<seg\b[^>]*>(.*?)</seg>", re.DOTALL | re.IGNORECASE)
_SEGMENT_BEGIN = re.compile(rb"<seg\b", re.IGNORECASE)
_ENTITIES = ((b"&lt;", b"<"), (b"&gt;", b">"), (b"&quot;", b'"'), (b"&apos;", b"'"),
             (b"&amp;", b"&"))  # fmt: skip
# IWSLT's training text: lines that are not text, and tags around text.
_TED_METADATA = re.compile(rb"\s*<(url|talkid|keywords|speaker|reviewer|translator)\b")
_TED_TAGS = re.compile(rb"</?(title|description)>")
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


@dataclass(frozen=True)
class Text:
    """Where a text is.

    Attributes:
        path: a file or an archive.
        members: of the archive, read one after the other; none for a file.
        form: see :class:`fairseq_plugins.corpus.recipe.TextFile`.
    """

    path: Path
    members: tuple[str, ...]
    form: str

    def __str__(self) -> str:
        return f"{self.path}:{self.members[0]}" if self.members else str(self.path)


class _FormError(Exception):
    pass


def form_of(name: str) -> str:
    """Return the form that the ending of a file's name stands for."""
    for ending in (".gz", ".xz", ".zst"):
        name = name.removesuffix(ending)
    return _FORMS.get(Path(name).suffix, "plain")


def read_segments(text: Text, language: str) -> Iterator[bytes]:
    """Yield the segments, as UTF-8 without line ends.

    Args:
        language: which language of a TMX file to read.

    Raises:
        UserError: the file cannot be read, is damaged, is not UTF-8, lacks a member or
            does not have the expected form; the message names file and line.
    """
    number = 0
    try:
        for stream in _open_streams(text):
            with contextlib.closing(stream):
                for segment in _READERS[text.form](stream, language):
                    number += 1
                    segment.decode("utf-8")
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
        reader = zstandard.ZstdDecompressor().stream_reader(
            stream, read_across_frames=True
        )
        return io.BufferedReader(reader, _BUFFER)
    return stream


def _read_plain(stream: IO[bytes], _language: str) -> Iterator[bytes]:
    for line in stream:
        yield line.rstrip(b"\r\n")


def _read_sgm(stream: Iterable[bytes], _language: str) -> Iterator[bytes]:
    """Yield the ``<seg>`` elements of files that are seldom well-formed XML."""
    rest = b""
    for line in stream:
        rest += line
        if b"</seg>" not in line.lower():
            if not _SEGMENT_BEGIN.search(rest):
                rest = b""
            continue
        for match in _SEGMENT.finditer(rest):
            content = match[1]
            for entity, character in _ENTITIES:
                content = content.replace(entity, character)
            yield b" ".join(content.split())
        rest = rest[rest.lower().rfind(b"</seg>") + len(b"</seg>") :]
    if _SEGMENT_BEGIN.search(rest):
        raise _FormError("ends within a <seg> element")


def _read_ted(stream: IO[bytes], _language: str) -> Iterator[bytes]:
    for line in stream:
        if not _TED_METADATA.match(line):
            yield _TED_TAGS.sub(b"", line).strip()


def _read_tmx(stream: IO[bytes], language: str) -> Iterator[bytes]:
    unit = 0
    parents: list[ElementTree.Element] = []
    try:
        for event, element in ElementTree.iterparse(stream, ("start", "end")):
            if event == "start":
                parents.append(element)
                continue
            parents.pop()
            if element.tag == "tu":
                unit += 1
                yield _find_translation(element, language, unit)
                if parents:  # not if it is the root
                    parents[-1].remove(element)
    except ElementTree.ParseError as error:
        raise _FormError(f"is not well-formed XML ({error})") from None


def _find_translation(element: ElementTree.Element, language: str, unit: int) -> bytes:
    for variant in element.iter("tuv"):
        code = variant.get(_XML_LANG) or variant.get("lang") or ""
        if re.split("[-_]", code.lower())[0] == language.lower():
            segment = variant.find("seg")
            if segment is not None:
                return " ".join("".join(segment.itertext()).split()).encode()
    raise _FormError(f"has no `{language}` in its unit {unit}")


_READERS: dict[str, Callable[[IO[bytes], str], Iterator[bytes]]] = {
    "plain": _read_plain,
    "sgm": _read_sgm,
    "ted": _read_ted,
    "tmx": _read_tmx,
}
