"""Read compressed text, and write files so that they are complete or absent."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import lzma
import os
import zlib
from pathlib import Path
from typing import IO, Any, Callable, Iterator, TextIO, cast

from fairseq_plugins.utils.errors import UserError

__all__ = [
    "DAMAGED_ARCHIVE",
    "data_path",
    "hash_file",
    "open_text",
    "read_json",
    "read_lines",
    "sha256_of",
    "write_atomically",
    "write_json",
    "write_lines",
]

DAMAGED_ARCHIVE = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error)
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


def data_path(name: str) -> Path:
    """Return a file or folder of the project's ``data`` folder.

    An installed package contains what it needs of that folder. In a clone,
    ``fairseq_plugins/data`` is a link to it.
    """
    return Path(__file__).resolve().parents[1] / "data" / name


def open_text(path: Path) -> TextIO:
    """Open plain, ``.gz`` or ``.xz`` UTF-8 text; only ``\\n`` ends a line."""
    opener = _OPENERS.get(path.suffix, open)
    return cast(TextIO, opener(path, "rt", encoding="utf-8", newline="\n"))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without their ends.

    Raises:
        UserError: the file is missing, a folder, not UTF-8 or a broken archive.
    """
    try:
        with open_text(path) as stream:
            return [line.rstrip("\n") for line in stream]
    except FileNotFoundError:
        raise UserError(f"`{path}` does not exist.") from None
    except IsADirectoryError:
        raise UserError(f"`{path}` must be a file, but is a folder.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"`{path}` must be UTF-8 text, but {error}.") from None
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"`{path}` is a damaged archive: {error}.") from None


@contextlib.contextmanager
def write_atomically(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Yield a file that gets its final name only if the block succeeds.

    If the block fails, ``path`` stays unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(partial, mode, **text) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        # A failed write() does not know which file it was writing.
        error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_lines(path: Path, lines: list[str]) -> None:
    """Write one string per line, atomically."""
    with write_atomically(path) as stream:
        stream.writelines(line + "\n" for line in lines)


def write_json(path: Path, data: Any) -> None:
    """Write readable JSON, atomically."""
    with write_atomically(path) as stream:
        json.dump(data, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raise ``UserError`` when it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"`{path}` does not exist.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"`{path}` is not valid JSON: {error}.") from None


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file's bytes."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    return hash_file(path)
