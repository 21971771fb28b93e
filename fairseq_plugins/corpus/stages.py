"""Run stages in order, and only those whose inputs, settings or outputs changed.

A stage is a function from files to files. When it has finished, its settings and the
digests of its inputs and outputs are recorded: in ``manifest.json`` while every output
is complete, and in ``.progress.json`` otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

from fairseq_plugins.corpus.manifest import FORMAT, MANIFEST
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, sha256_of, write_json

__all__ = ["Stage", "StageRunner", "lock_output_dir"]

logger = logging.getLogger(__name__)

_LOCK = ".prepare.lock"  # stays after the run: it marks a folder that may be changed
_PROGRESS = ".progress.json"
_DIGESTS = ".digests.json"
_NEW = "not done yet"


@contextlib.contextmanager
def lock_output_dir(folder: Path) -> Iterator[None]:
    """Create the folder if necessary and keep other runs out of it.

    The run replaces and deletes files in it, so it must be new, empty or the output of
    an earlier run.

    Raises:
        UserError: the folder cannot be created, is in use or holds other files.
    """
    whole = folder.resolve()
    for separator in {",", os.pathsep} & set(str(whole)):  # fairseq splits paths there
        raise UserError(f"`--out` must not contain `{separator}`, but is `{whole}`.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / _LOCK).exists():
            raise UserError(
                "`--out` must be a new or empty folder or one that scripts/prepare.py "
                f"made, but `{folder}` holds other files."
            )
        lock = open(folder / _LOCK, "w")
    except FileExistsError:
        raise UserError(f"`--out` must be a folder, not a file: `{folder}`.") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"`--out` must be a folder that can be written, but `{folder}` is not: "
            f"{error.strerror}."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another scripts/prepare.py uses `{folder}`.") from None
        except OSError:
            logger.warning("`%s` cannot be locked: start one run at a time.", folder)
        yield


@dataclass(frozen=True)
class Stage:
    """One step from files to files.

    Attributes:
        name: the key of its record.
        title: what it does, for the log.
        inputs: the files that it reads, by the names under which they are recorded.
            The output of another stage has the same name here as there.
        outputs: the files that it writes, relative to the folder. Each is either
            complete or absent.
        settings: everything else that determines the outputs, as JSON types.
        versions: of the programs that it uses. They are recorded but not compared: an
            update must not change the data under a trained model.
        run: does the work and returns counts.
        group: the value of ``--stage`` that selects it.
    """

    name: str
    title: str
    inputs: Mapping[str, Path]
    outputs: Sequence[str]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    run: Callable[[], Mapping[str, Any]]
    group: str = ""


class StageRunner:
    """Runs stages in a folder and keeps the records of those that have finished.

    Attributes:
        finished: the content of the manifest when the runner was created; ``None``
            without a manifest.
    """

    def __init__(self, folder: Path, *, recipe: str) -> None:
        """Read the records, if there are any.

        Raises:
            UserError: the folder belongs to another recipe.
        """
        self.folder = folder
        self.finished: Mapping[str, Any] | None = None
        self._recipe = recipe
        self._manifest = folder / MANIFEST
        self._progress = folder / _PROGRESS
        self._records: dict[str, dict[str, Any]] = {}
        self._digests = _DigestCache(folder / _DIGESTS)
        for path in (self._progress, self._manifest):
            content = _read_records(path)
            if content is None:
                continue
            if content["recipe"] != recipe:
                raise UserError(
                    f"`{folder}` holds `{content['recipe']}` and not `{recipe}`. "
                    "Choose another `--out` or delete it."
                )
            self._records = content["stages"]
            self.finished = content if path == self._manifest else None
            break

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, read again only if it was touched."""
        return self._digests.digest(path)

    def counts(self, stage: str) -> dict[str, Any]:
        """Return the counts of a finished stage."""
        counts: dict[str, Any] = self._records[stage]["counts"]
        return counts

    def run(self, stages: Sequence[Stage], *, only: str = "") -> int:
        """Run the stages that are not up to date; return their number.

        After an error or a kill, the next call continues with the interrupted stage.

        Args:
            stages: all stages, in order.
            only: the group to run. Without it, all groups run.

        Raises:
            UserError: a stage before the group ``only`` is not up to date.
        """
        names = {stage.name for stage in stages}
        for name in self._records.keys() - names:  # the recipe no longer has them
            self._withdraw_manifest()
            self._forget(name, self._records[name]["outputs"])
        num_run = 0
        for number, stage in enumerate(stages, start=1):
            if only and all(other.group != only for other in stages[number - 1 :]):
                return num_run
            change = self._find_change(stage)
            reason = change or self._find_damage(stage)
            if reason is None:
                continue
            if only and stage.group != only:
                raise UserError(
                    f"`--stage {only}` needs `{stage.name}`, which is not up to date "
                    f"({reason}). Run `--stage {stage.group}` first, or all stages."
                )
            why = "" if reason == _NEW else f" ({reason})"
            logger.info("[%d/%d] %s%s", number, len(stages), stage.title, why)
            self._withdraw_manifest()
            if change is not None:
                self._forget_dependents(stage, stages[number:])
            self._forget(stage.name, stage.outputs)
            self._run_stage(stage)
            num_run += 1
        self._records = {stage.name: self._records[stage.name] for stage in stages}
        return num_run

    def finish(self, description: Mapping[str, Any]) -> None:
        """Write the manifest: the description and the records of all stages."""
        content = self._content(description)
        self._digests.save()
        if _read_records(self._manifest) != content:
            write_json(self._manifest, content)
        self._progress.unlink(missing_ok=True)

    def _find_change(self, stage: Stage) -> str | None:
        """Return how the stage differs from its record."""
        record = self._records.get(stage.name)
        if record is None or not all(path.is_file() for path in stage.inputs.values()):
            return _NEW
        settings = record["settings"]
        for key in {**settings, **stage.settings}:
            before, now = settings.get(key), stage.settings.get(key)
            if before != now:
                if isinstance(before, (dict, list)):
                    return f"{key} changed"
                return f"{key} was {before} and is {now}"
        if list(record["inputs"]) != list(stage.inputs):
            return "other input files"
        for name, path in stage.inputs.items():
            if self.digest(path) != record["inputs"][name]:
                return f"{name} has changed"
        return None

    def _find_damage(self, stage: Stage) -> str | None:
        """Return which recorded output is missing or changed."""
        recorded = self._records[stage.name]["outputs"]
        for name in stage.outputs:
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if self.digest(path) != recorded.get(name):
                return f"{name} is damaged"
        return None

    def _run_stage(self, stage: Stage) -> None:
        inputs = {name: self.digest(path) for name, path in stage.inputs.items()}
        started = time.monotonic()
        counts = stage.run()
        seconds = round(time.monotonic() - started, 1)
        outputs = {name: self.digest(self.folder / name) for name in stage.outputs}
        self._digests.save()
        self._records[stage.name] = {
            "settings": dict(stage.settings),
            "versions": dict(stage.versions),
            "inputs": inputs,
            "outputs": outputs,
            "counts": dict(counts),
            "seconds": seconds,
        }
        write_json(self._progress, self._content({}))
        figures = [
            f"{value:,} {key.replace('_', ' ')}, "
            for key, value in counts.items()
            if isinstance(value, int)
        ]
        logger.info("      %s%.1f s", "".join(figures), seconds)

    def _forget_dependents(self, stage: Stage, later: Sequence[Stage]) -> None:
        """Delete everything that was made from the outputs of a stage.

        Otherwise data of the former settings would look finished until its turn comes.
        """
        stale = set(stage.outputs)
        for other in later:
            if stale & other.inputs.keys():
                stale.update(other.outputs)
                self._forget(other.name, other.outputs)

    def _forget(self, name: str, outputs: Sequence[str]) -> None:
        self._records.pop(name, None)
        for output in outputs:
            path = self.folder / output
            path.unlink(missing_ok=True)
            if path.parent != self.folder:
                with contextlib.suppress(OSError):  # not empty, or does not exist
                    path.parent.rmdir()

    def _withdraw_manifest(self) -> None:
        """Remove the manifest before any file that it lists is touched."""
        if self._manifest.is_file():
            os.replace(self._manifest, self._progress)

    def _content(self, description: Mapping[str, Any]) -> dict[str, Any]:
        head = {"format": FORMAT, "recipe": self._recipe}
        return {**head, **description, "stages": self._records}


def _read_records(path: Path) -> dict[str, Any] | None:
    """Return the records; ``None``, after which all stages run, if they are damaged."""
    try:
        content = read_json(path)
    except UserError:
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    return content if {"recipe", "stages"} <= content.keys() else None


class _DigestCache:
    """Digests by path, valid while size, inode and both times are the same.

    Reading tens of gigabytes only to find that nothing has changed would take too
    long. A disk that silently changes bytes is not noticed; without the cache's file
    everything is read again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = False
        try:
            content = read_json(path)
        except UserError:
            content = {}
        self._entries: dict[str, Any] = content if isinstance(content, dict) else {}

    def digest(self, path: Path) -> str:
        stat = path.stat()
        state = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
        entry = self._entries.get(str(path.absolute()))
        if not isinstance(entry, dict) or entry.get("state") != state:
            entry = {"state": state, "sha256": sha256_of(path)}
            self._entries[str(path.absolute())] = entry
            self._changed = True
        digest: str = entry["sha256"]
        return digest

    def save(self) -> None:
        if self._changed:
            self._entries = {
                name: entry
                for name, entry in self._entries.items()
                if Path(name).exists()
            }
            write_json(self._path, self._entries)
            self._changed = False
