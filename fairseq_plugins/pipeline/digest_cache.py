"""SHA-256 of files, read again only after they were touched."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import read_json, sha256_of, write_json

__all__ = ["DigestCache"]


class DigestCache:
    """Digests by path, good as long as size, inode and both times are the same.

    A corpus of tens of gigabytes is not to be read whole to learn that there is nothing
    to do. A disk that changes bytes without being asked is not noticed; deleting the
    file makes everything be read again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = False
        try:
            content = read_json(path)
        except UserError:
            content = {}
        self._known: dict[str, Any] = content if isinstance(content, dict) else {}

    def of(self, path: Path) -> str:
        """Return the SHA-256 of a file."""
        key, state = str(path.absolute()), _state(path)
        entry = self._known.get(key)
        if not isinstance(entry, dict) or entry.get("state") != state:
            entry = {"state": state, "sha256": sha256_of(path)}
            self._known[key] = entry
            self._changed = True
        digest: str = entry["sha256"]
        return digest

    def save(self) -> None:
        """Write the digests of the files that still exist."""
        if self._changed:
            there = [name for name in self._known if Path(name).exists()]
            self._known = {name: self._known[name] for name in there}
            write_json(self._path, self._known)
            self._changed = False


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
