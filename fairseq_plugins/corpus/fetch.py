"""Download archives: resumed, verified, from mirrors, never half under a final name.

Beside each archive stands ``NAME.json``: from where it came, its size and its SHA-256.
Where a recipe knows no SHA-256, the one of the first download is held to from then on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Iterator

from fairseq_plugins.corpus.recipe import Archive
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, sha256_of, write_json

__all__ = ["check", "fetch"]

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT = 60.0
_ATTEMPTS = 3  # from each place, each going on where the last one ended
_PAUSE = 2.0
_SECONDS_BETWEEN_REPORTS = 10.0
_BROKEN = (OSError, http.client.HTTPException)


def fetch(archive: Archive, path: Path, *, pause: float = _PAUSE) -> None:
    """Bring an archive to ``path``; do nothing if it is there and was verified.

    Raises:
        UserError: no place has it, or none has the right bytes; the message names each
            place and what was wrong with it.
        OSError: the disk is full.
    """
    if path.is_file() and _is_recorded(archive, path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with _alone_in(path.parent):
        if path.is_file():  # put there by a person, or by another run just now
            check(archive, path)
            with contextlib.suppress(OSError):  # a folder that cannot be written to
                _record(archive, path, path, None)
            return
        _download_somewhere(archive, partial, path, pause)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one run at a time download into a folder; the others wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("      another run downloads to %s: waiting", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            logger.warning("`%s` cannot be locked: start one run at a time.", folder)
        yield
    finally:
        os.close(handle)


def _download_somewhere(
    archive: Archive, partial: Path, path: Path, pause: float
) -> None:
    recorded = _record_of(path).get("sha256")
    faults = []
    for url in (archive.url, *archive.mirrors):
        fault = _from(url, archive, partial, pause, recorded)
        if fault is None:
            _record(archive, partial, path, url)
            os.replace(partial, path)
            return
        logger.warning("      %s: %s", url, fault)
        faults.append(f"  {url}: {fault}")
    listed = "\n".join(faults)
    raise UserError(
        f"`{archive.file}` cannot be downloaded.\n{listed}\nGet it in another way, put "
        "it into a folder and give that with `--source DIR`."
    )


def check(archive: Archive, path: Path) -> None:
    """Verify a file by all that the recipe and its record know of it.

    Raises:
        UserError: says what it should be and what it is.
    """
    fault = _fault(archive, path, _record_of(path).get("sha256"))
    if fault is not None:
        raise UserError(f"`{path}` {fault}. Delete it, and run again to get it anew.")


def _from(
    url: str, archive: Archive, partial: Path, pause: float, recorded: str | None
) -> str | None:
    """Download to ``partial`` and verify; return what is wrong, if anything is."""
    fault = "nothing came"
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(pause * attempt)
        try:
            with _room_named(partial):
                _download(url, partial, archive)
        except urllib.error.HTTPError as error:
            fault = f"HTTP status {error.code}, {error.reason}"
            if error.code < 500 and error.code != 429:
                return fault
            continue
        except _WriteError as error:
            raise error.cause from None
        except _BROKEN as error:
            fault = str(getattr(error, "reason", None) or error or type(error).__name__)
            continue
        wrong = _fault(archive, partial, recorded)
        if wrong is None:
            return None
        # Other bytes than these must not be gone on with.
        partial.unlink(missing_ok=True)
        return f"the file {wrong}"
    return fault


class _WriteError(Exception):
    """Writing failed, which no other place and no other attempt can mend."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextlib.contextmanager
def _room_named(path: Path) -> Iterator[None]:
    try:
        yield
    except _WriteError as error:
        error.cause.filename = error.cause.filename or str(path)
        raise


def _download(url: str, partial: Path, archive: Archive) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    if archive.bytes is not None and have == archive.bytes:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "fairseq-soft-topk"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = _open(request)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing is left to be sent, or what is there is not of this file.
        partial.unlink()
        have = 0
        response = _open(urllib.request.Request(url))
    with response:
        if response.status != 206:
            have = 0
        total = response.length + have if response.length is not None else None
        _write(response, partial, have, total, archive.file)
        if total is not None and partial.stat().st_size < total:
            raise http.client.IncompleteRead(b"", total - partial.stat().st_size)


def _open(request: urllib.request.Request) -> Any:
    # Recipes allow http and https only, and a redirect must not lead elsewhere.
    opener = urllib.request.build_opener(_WebOnly)
    return opener.open(request, timeout=_TIMEOUT)


class _WebOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> Any:  # fmt: skip
        if not newurl.startswith(("http://", "https://")):
            raise urllib.error.URLError(f"it redirects to `{newurl}`")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _write(
    response: Any, partial: Path, have: int, total: int | None, name: str
) -> None:
    reported = time.monotonic()
    size = have
    try:
        stream = open(partial, "ab" if have else "wb")
    except OSError as error:
        raise _WriteError(error) from None
    with stream:
        # read1: what came is written at once, so that a kill loses little of it.
        while chunk := response.read1(_CHUNK):
            try:
                stream.write(chunk)
                stream.flush()
            except OSError as error:
                raise _WriteError(error) from None
            size += len(chunk)
            if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                share = f" of {total / 1e6:,.0f}" if total else ""
                logger.info("      %s: %.0f%s MB", name, size / 1e6, share)


def _fault(archive: Archive, path: Path, recorded: str | None) -> str | None:
    size = path.stat().st_size
    if archive.bytes is not None and size != archive.bytes:
        return f"must have {archive.bytes:,} bytes, but has {size:,}"
    expected = archive.sha256 or recorded
    if expected is not None:
        digest = sha256_of(path)
        if digest != expected:
            return f"must have sha256 {expected}, but has {digest}"
    if archive.md5 is not None:
        digest = _md5_of(path)
        if digest != archive.md5:
            return f"must have md5 {archive.md5}, but has {digest}"
    return None


def _md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _record_of(path: Path) -> dict[str, Any]:
    try:
        content = read_json(_record_path(path))
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _record(archive: Archive, partial: Path, path: Path, url: str | None) -> None:
    content = {
        "url": url,
        "bytes": partial.stat().st_size,
        "sha256": archive.sha256 or sha256_of(partial),
        "mtime_ns": partial.stat().st_mtime_ns,
    }
    write_json(_record_path(path), content)


def _is_recorded(archive: Archive, path: Path) -> bool:
    """Tell whether the file is the one that was verified, without reading it."""
    record, stat = _record_of(path), path.stat()
    return (
        record.get("bytes") == stat.st_size == (archive.bytes or stat.st_size)
        and record.get("mtime_ns") == stat.st_mtime_ns
        and archive.sha256 in (None, record.get("sha256"))
    )
