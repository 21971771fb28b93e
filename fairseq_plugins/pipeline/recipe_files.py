"""What a recipe says of files: archives, and the texts that make up each part."""
from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from fairseq_plugins.pipeline.errors import UserError

__all__ = ["Archive", "Part", "TextFile"]

_FORMS = ("plain", "sgm", "ted", "tmx")
_DIGITS = {"sha256": 64, "md5": 32}


@dataclass(frozen=True)
class Archive:
    """A file to download, which holds the texts of one or more parts.

    Attributes:
        file: its name, here and in ``--source``.
        url: where it is published.
        mirrors: other places with the same bytes, tried in order.
        bytes: its size, if known.
        sha256: its digest, if known; otherwise it is recorded at the first download.
        md5: what its publishers give instead; checked as well.
        licence: its own, where it differs from the recipe's.
    """

    file: str
    url: str
    mirrors: tuple[str, ...] = ()
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        _check_file_name(self.file)
        _check_digests(self)
        for url in (self.url, *self.mirrors):
            if not _is_web_address(url):
                raise UserError(f"`url` must begin with http or https, but is `{url}`.")
        if self.bytes is not None and self.bytes < 1:
            raise UserError(f"`bytes` must be positive, but is {self.bytes}.")


@dataclass(frozen=True)
class TextFile:
    """One side of a part.

    Attributes:
        file: its name without ``.gz`` or ``.xz``, as plain text in ``--source``.
        sha256: of the uncompressed text, if it is known.
        members: what to read from the part's archive, one after the other; a member
            may be compressed itself. They may also stand in ``--source`` unpacked.
        local: other names of the same text in ``--source``, with wildcards.
        sample: names of texts of the same kind that ``--smoke`` may use instead.
        form: ``plain`` (one segment a line), ``sgm`` (``<seg>`` elements), ``tmx`` or
            ``ted`` (IWSLT's training text with its ``<tags>``); without it the ending
            of the name decides.
    """

    file: str
    sha256: str | None = None
    members: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()
    form: str | None = None

    def __post_init__(self) -> None:
        _check_file_name(self.file)
        _check_digests(self)
        if self.form is not None and self.form not in _FORMS:
            raise UserError(
                f"`form` must be one of {', '.join(_FORMS)}, but is `{self.form}`."
            )
        for name in (*self.members, *self.local, *self.sample):
            if name.startswith("/") or ".." in name.split("/"):
                raise UserError(f"`{name}` must be a path below the folder.")


@dataclass(frozen=True)
class Part:
    """Two texts whose segments are translations of each other.

    Attributes:
        name: the parts of ``train`` and ``valid`` are joined, so that only the name of
            a test set is seen later.
        lines: how many each side must have, if it is known.
        archive: the name of the archive that holds both sides.
        local_index: where ``local`` names a longer text: the file in ``--source`` with
            the numbers, from 0, of the lines that make up this part, in its order.
        every: take only the lines whose number, from 1, is a multiple of this.
        but_every: take only the other lines.
        tokenised: the published text is tokenised by Moses and is to be detokenised.
        licence: its own, where it differs from the recipe's.
        mtdata: the identifier of exactly this text in the tool ``mtdata``.
    """

    name: str
    source: TextFile
    target: TextFile
    lines: int | None = None
    archive: str | None = None
    local_index: str | None = None
    every: int | None = None
    but_every: int | None = None
    tokenised: bool = False
    licence: str | None = None
    mtdata: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", self.name):
            raise UserError(
                "`name` of a part must be made of letters, digits and `_.+-`, but is "
                f"`{self.name}`."
            )
        for name in ("every", "but_every"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise UserError(f"`{name}` must be at least 2, but is {value}.")
        if self.archive and not (self.source.members and self.target.members):
            raise UserError("both sides of a part with an `archive` need `members`.")


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname)
    except ValueError:
        return False
    # urlsplit leaves out line ends and leading spaces without a word.
    is_plain = url.isprintable() and not any(map(str.isspace, url))
    return is_plain and has_host and parts.scheme in ("http", "https")


def _check_file_name(file: str) -> None:
    if file in ("", ".", "..") or "/" in file:
        raise UserError(f"`file` must be the name of a file, but is `{file}`.")


def _check_digests(owner: object) -> None:
    for name, length in _DIGITS.items():
        value = getattr(owner, name, None)
        if value is not None and not re.fullmatch(f"[0-9a-f]{{{length}}}", value):
            raise UserError(
                f"`{name}` must be {length} lower-case hexadecimal digits."
            )
