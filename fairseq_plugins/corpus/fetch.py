"""Download archives: resumed, verified, from mirrors, and complete when named.

Beside each archive lies ``NAME.json`` with its origin, size and SHA-256. Where a recipe
has no SHA-256, later downloads must have the SHA-256 of the first one.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from fairseq_plugins.utils.files import hash_file, read_json, write_json
from fairseq_plugins.utils.progress import progress_bar

__all__ = ["fetch", "verify"]

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT = 60.0
_ATTEMPTS = 3  # per place; each one continues where the last one ended
_PAUSE = 2.0
_NETWORK_ERRORS = (OSError, http.client.HTTPException)


class _DownloadError(Exception):
    """A place does not deliver the file; ``status`` is its answer, if it gave one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def fetch(archive: Archive, path: Path, *, pause: float = _PAUSE) -> None:
    """Download an archive to ``path``, unless a verified copy is there.

    Args:
        pause: seconds before the second attempt at the same place.

    Raises:
        UserError: no place has it, or none has the right bytes; the message names each
            place and its fault.
        OSError: the disk is full.
    """
    if path.is_file() and _is_recorded(archive, path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.parent):
        if path.is_file():  # put there by the user, or just now by another run
            verify(archive, path)
            with contextlib.suppress(OSError):  # a folder without write permission
                _record(archive, path, path, None)
            return
        partial = path.with_name(f".{path.name}.partial")
        faults = []
        for url in (archive.url, *archive.mirrors):
            try:
                _download(url, archive, path, partial, pause)
            except _DownloadError as error:
                logger.warning("      %s: %s", url, error)
                faults.append(f"  {url}: {error}")
                continue
            _record(archive, partial, path, url)
            os.replace(partial, path)
            return
    listed = "\n".join(faults)
    raise UserError(
        f"`{archive.file}` cannot be downloaded.\n{listed}\nGet it in another way, put "
        "it into a folder and pass that folder with `--source DIR`."
    )


def verify(archive: Archive, path: Path) -> None:
    """Compare a file with the size and the digests that are known for it.

    Raises:
        UserError: they differ.
    """
    fault = _find_fault(archive, path, path)
    if fault is not None:
        raise UserError(f"`{path}` {fault}. Delete it and run again to download it.")


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one run at a time download into a folder; the others wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("      waiting for another run that downloads to %s", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            logger.warning("`%s` cannot be locked: start one run at a time.", folder)
        yield
    finally:
        os.close(handle)


def _download(
    url: str, archive: Archive, path: Path, partial: Path, pause: float
) -> None:
    """Download to ``partial`` and verify it as the file that will be ``path``."""
    for attempt in range(_ATTEMPTS):
        time.sleep(pause * attempt)
        try:
            _receive(url, archive, partial)
            break
        except _DownloadError as error:
            is_final = error.status is not None and error.status < 500
            if attempt == _ATTEMPTS - 1 or is_final and error.status != 429:
                raise
    fault = _find_fault(archive, partial, path)
    if fault is not None:
        partial.unlink()  # a later attempt must not append to other bytes
        raise _DownloadError(f"the file {fault}")


def _receive(url: str, archive: Archive, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    if archive.bytes is not None and have == archive.bytes:
        return
    try:
        response = _open(url, have)
    except _DownloadError as error:
        if error.status != 416:
            raise
        # Nothing is left to send, or the bytes that exist are of another file.
        partial.unlink()
        response = _open(url, 0)
    with response:
        if response.status != 206:
            have = 0
        total = response.length + have if response.length is not None else None
        with open(partial, "ab" if have else "wb") as stream, progress_bar(
            f"B of {archive.file}", total=total, done=have
        ) as bar:
            while chunk := _read(response):
                try:
                    stream.write(chunk)
                    stream.flush()
                except OSError as error:
                    error.filename = str(partial)
                    raise
                bar.update(len(chunk))
    size = partial.stat().st_size
    if total is not None and size < total:
        raise _DownloadError(f"ended after {size:,} of {total:,} bytes")


def _open(url: str, start: int) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "fairseq-soft-topk"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        opener = urllib.request.build_opener(_WebOnly)
        return opener.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        message = f"HTTP status {error.code}, {error.reason}"
        raise _DownloadError(message, error.code) from None
    except _NETWORK_ERRORS as error:
        raise _DownloadError(_describe(error)) from None


class _WebOnly(urllib.request.HTTPRedirectHandler):
    # Recipes allow http and https only; a redirect must not lead elsewhere.
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> Any:  # fmt: skip
        if not newurl.startswith(("http://", "https://")):
            raise urllib.error.URLError(f"it redirects to `{newurl}`")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read(response: Any) -> bytes:
    try:
        # read1 returns what has arrived, so that a kill loses little of it.
        chunk: bytes = response.read1(_CHUNK)
        return chunk
    except _NETWORK_ERRORS as error:
        raise _DownloadError(_describe(error)) from None


def _describe(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)


def _find_fault(archive: Archive, file: Path, path: Path) -> str | None:
    """Return how a file differs from the archive and from the record of ``path``."""
    size = file.stat().st_size
    if archive.bytes is not None and size != archive.bytes:
        return f"must have {archive.bytes:,} bytes, but has {size:,}"
    sha256 = archive.sha256 or _read_record(path).get("sha256")
    for algorithm, expected in (("sha256", sha256), ("md5", archive.md5)):
        if expected is not None:
            digest = hash_file(file, algorithm)
            if digest != expected:
                return f"must have {algorithm} {expected}, but has {digest}"
    return None


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        content = read_json(_record_path(path))
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _record(archive: Archive, file: Path, path: Path, url: str | None) -> None:
    stat = file.stat()
    content = {
        "url": url,
        "bytes": stat.st_size,
        "sha256": archive.sha256 or hash_file(file),
        "mtime_ns": stat.st_mtime_ns,
    }
    write_json(_record_path(path), content)


def _is_recorded(archive: Archive, path: Path) -> bool:
    """Tell whether this is the verified file, without reading it."""
    record, stat = _read_record(path), path.stat()
    return (
        record.get("bytes") == stat.st_size == (archive.bytes or stat.st_size)
        and record.get("mtime_ns") == stat.st_mtime_ns
        and archive.sha256 in (None, record.get("sha256"))
    )
