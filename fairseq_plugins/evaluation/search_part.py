"""The finished batches of a search, kept until its scores are."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Mapping

__all__ = ["SearchPart"]

Batch = dict[str, Any]


class SearchPart:
    """A file of lines of JSON: what is searched, and then the batches that are done.

    Args:
        path: the file, which need not be there.
        identity: all that the batches depend on. The file of anything else is of no
            use, and is removed.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._head = json.dumps(identity, sort_keys=True).encode()

    def read(self) -> list[Batch]:
        """Return the batches that are done; a line that a kill cut short is none."""
        content = self._path.read_bytes() if self._path.is_file() else b""
        end = content.rfind(b"\n") + 1
        head, *lines = content[:end].splitlines() or [b""]
        try:
            batches = [json.loads(line) for line in lines]
        except ValueError:  # the disk was full, or lost power
            batches = []
        if head != self._head or not batches:
            self.remove()
            return []
        os.truncate(self._path, end)
        # Of two processes at one time both may have done a batch.
        return list({batch["sentences"][0][0]: batch for batch in batches}.values())

    def add(self, batch: Batch) -> None:
        line = json.dumps(batch).encode() + b"\n"
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = self._head + b"\n" + line
        with open(self._path, "ab", buffering=0) as stream:
            stream.write(line)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
