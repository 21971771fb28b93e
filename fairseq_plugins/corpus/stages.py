"""SHA-256 of files, read again only after they were touched.

Take a folder for results: never a stranger's, and never for two runs at once.

Run stages in order, and only those whose inputs, settings or outputs changed.

A stage is a function from files to files. What it read, with which settings, and what
it wrote is recorded, with digests, when it is finished. Records stand in
``manifest.json`` while every output is whole, and in ``.progress.json`` otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import logging
import os
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

from fairseq_plugins.corpus.manifest import FORMAT, MANIFEST
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, sha256_of, write_json

__all__ = ["DigestCache", "Stage", "Workshop", "claimed"]

logger = logging.getLogger(__name__)


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


# It also marks a folder as ours, so it stays when the run has ended.
_LOCK = ".prepare.lock"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder if need be and keep other runs out of it.

    Files are replaced and deleted in it, so that it must be new, empty or from an
    earlier run.

    Raises:
        UserError: the folder cannot be made, is in use or holds something else.
    """
    # fairseq splits lists of paths at these.
    whole = folder.absolute()
    for separator in {",", os.pathsep} & set(str(whole)):
        raise UserError(f"`--out` must not contain `{separator}`, but is `{whole}`.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_ours = (folder / _LOCK).exists() or not any(folder.iterdir())
        if not is_ours:
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
            raise UserError(
                f"another scripts/prepare.py is at work in `{folder}`."
            ) from None
        except OSError:
            logger.warning("`%s` cannot be locked: start one run at a time.", folder)
        yield


_PROGRESS = ".progress.json"
_DIGESTS = ".digests.json"
_NEW = "not done yet"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step from files to files.

    Attributes:
        name: under which it is recorded.
        group: the stages of one kind, which can be asked for by themselves.
        title: what it does, for people.
        inputs: the files that it reads, by the names under which they are recorded.
            The output of another stage has the same name here as there.
        outputs: the files that it writes, relative to the folder; each is whole or
            absent.
        settings: whatever else decides the outputs; only JSON types.
        versions: of the programs that it uses. They are recorded but decide nothing:
            an update must not put new data under a trained model.
        run: does the work and returns counts.
    """

    name: str
    title: str
    inputs: Mapping[str, Path]
    outputs: Sequence[str]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    run: Callable[[], Mapping[str, Any]]
    group: str = ""


class Workshop:
    """A folder, and the records of the stages that were finished in it."""

    def __init__(self, folder: Path, *, recipe: str) -> None:
        """Read the records, if there are any.

        Raises:
            UserError: the folder belongs to another recipe.
        """
        self.folder = folder
        self._recipe = recipe
        self._manifest = folder / MANIFEST
        self._progress = folder / _PROGRESS
        self._records: dict[str, dict[str, Any]] = {}
        self._finished: Mapping[str, Any] | None = None
        self._digests = DigestCache(folder / _DIGESTS)
        for path in (self._progress, self._manifest):
            content = _read(path)
            if content is not None:
                self._check_recipe(content["recipe"])
                self._records = content["stages"]
                self._finished = content if path == self._manifest else None
                break

    @property
    def finished(self) -> Mapping[str, Any] | None:
        """What the manifest said when it was read; ``None`` without one."""
        return self._finished

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of the whole file, read again only if it was touched."""
        return self._digests.of(path)

    def counts(self, stage: str) -> dict[str, Any]:
        """Return what a finished stage counted."""
        counts: dict[str, Any] = self._records[stage]["counts"]
        return counts

    def bring_up_to_date(self, stages: Sequence[Stage], *, only: str = "") -> int:
        """Run what must be run; return how many stages that were.

        After an error or a kill the next call goes on with the stage that was at work.

        Args:
            stages: all of them, in order.
            only: the group to run, and no other.

        Raises:
            UserError: what comes before ``only`` is not up to date.
        """
        self._forget_all_but(stages)
        num_run = 0
        for number, stage in enumerate(stages, start=1):
            reached = any(other.group == only for other in stages[number - 1 :])
            if only and not reached:
                return num_run
            change = self._change(stage)
            reason = change or self._damage(stage)
            if reason is None:
                continue
            if only and stage.group != only:
                raise UserError(
                    f"`--stage {only}` needs `{stage.name}`, which is not up to date "
                    f"({reason}); run `--stage {stage.group}` first, or all stages."
                )
            why = "" if reason == _NEW else f" ({reason})"
            logger.info("[%d/%d] %s%s", number, len(stages), stage.title, why)
            self._reopen()
            if change is not None:
                self._forget_dependents(stage, stages[number:])
            self._forget(stage.name, stage.outputs)
            self._run(stage)
            num_run += 1
        self._records = {stage.name: self._records[stage.name] for stage in stages}
        return num_run

    def finish(self, description: Mapping[str, Any]) -> None:
        """Write the manifest: the description and the records of all stages."""
        content = self._content(description)
        self._digests.save()
        if _read(self._manifest) != content:
            write_json(self._manifest, content)
        self._progress.unlink(missing_ok=True)

    def _check_recipe(self, recipe: str) -> None:
        if recipe != self._recipe:
            raise UserError(
                f"`{self.folder}` holds `{recipe}` and not `{self._recipe}`; give "
                "another --out or delete it."
            )

    def _change(self, stage: Stage) -> str | None:
        """Say in what the stage is new or differs from the recorded one."""
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

    def _damage(self, stage: Stage) -> str | None:
        """Say which recorded output is no longer what it was."""
        recorded = self._records[stage.name]["outputs"]
        for name in stage.outputs:
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if self.digest(path) != recorded.get(name):
                return f"{name} is damaged"
        return None

    def _run(self, stage: Stage) -> None:
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

    def _forget_all_but(self, stages: Sequence[Stage]) -> None:
        """Remove what stages made that this recipe no longer has."""
        current = {stage.name for stage in stages}
        for name in self._records.keys() - current:
            self._reopen()
            self._forget(name, list(self._records[name]["outputs"]))

    def _forget_dependents(self, stage: Stage, later: Sequence[Stage]) -> None:
        """Remove all that was made from the outputs of a stage, directly or not.

        Otherwise data of the former settings would lie there, as if finished, until
        its turn comes.
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
                with contextlib.suppress(OSError):  # not empty, or not there
                    path.parent.rmdir()

    def _reopen(self) -> None:
        """Take the manifest away before anything that it lists is touched."""
        if self._manifest.is_file():
            os.replace(self._manifest, self._progress)

    def _content(self, description: Mapping[str, Any]) -> dict[str, Any]:
        head = {"format": FORMAT, "recipe": self._recipe}
        return {**head, **description, "stages": self._records}


def _read(path: Path) -> dict[str, Any] | None:
    """Return records; none if there are none or they are damaged.

    Without records every stage runs again, which is what damaged ones deserve.
    """
    try:
        content = read_json(path)
    except UserError:
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    return content if {"recipe", "stages"} <= content.keys() else None
