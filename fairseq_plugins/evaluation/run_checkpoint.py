"""Which checkpoint of a run is evaluated: one of its own, another, or an average."""
from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import sha256_of
from fairseq_plugins.pipeline.run_folder import RunFolder

__all__ = ["Checkpoint", "checkpoint_path", "choose_checkpoint", "file_name"]

logger = logging.getLogger(__name__)

_NAMES = {"best": "checkpoint_best.pt", "last": "checkpoint_last.pt"}


@dataclass(frozen=True)
class Checkpoint:
    """A model.

    Attributes:
        path: where it is.
        name: no other checkpoint of the run's evaluations has it.
        sha256: of the file.
        averaged: names of the checkpoints that it is the mean of.
    """

    path: Path
    name: str
    sha256: str
    averaged: tuple[str, ...] = ()


def choose_checkpoint(folder: RunFolder, names: str | Sequence[str]) -> Checkpoint:
    """Find a checkpoint; of several, make the average once in ``RUN/eval``.

    Args:
        folder: the run.
        names: ``best``, ``last``, the name of a file in the run's ``checkpoints``, or
            the path of one elsewhere; several of these for their average.

    Raises:
        UserError: one is not there, is given twice or cannot be averaged.
    """
    chosen = [names] if isinstance(names, str) else list(names)
    found = [_find(folder, name) for name in chosen]
    if len(found) == 1:
        return found[0]
    if len({checkpoint.sha256 for checkpoint in found}) < len(found):
        raise UserError(
            "checkpoints to be averaged must be different ones, but of "
            f"{', '.join(f'`{name}`' for name in chosen)} two are the same."
        )
    # The order makes no difference to a mean, so none to its name.
    digests = "".join(sorted(checkpoint.sha256 for checkpoint in found))
    digest = hashlib.sha256(digests.encode()).hexdigest()
    path = _averages(folder) / f"average{len(found)}-{digest[:8]}.pt"
    if not path.is_file():
        # It brings torch, which takes seconds.
        from fairseq_plugins.evaluation.average import average_checkpoints

        logger.info("averaging %d checkpoints", len(found))
        average_checkpoints([checkpoint.path for checkpoint in found], path)
    averaged = tuple(checkpoint.name for checkpoint in found)
    return Checkpoint(path, path.name, sha256_of(path), averaged)


def file_name(which: str) -> str:
    """Return the name of ``best``, ``last`` or any other checkpoint of a run."""
    return _NAMES.get(which, which)


def checkpoint_path(folder: RunFolder, row: Mapping[str, Any]) -> Path:
    """Return where the checkpoint that a row of ``scores.json`` names should be."""
    parent = _averages(folder) if "averaged" in row else folder.checkpoints
    return parent / str(row["checkpoint"])


def _averages(folder: RunFolder) -> Path:
    return folder.path / "eval"


def _find(folder: RunFolder, checkpoint: str) -> Checkpoint:
    path = folder.checkpoints / file_name(checkpoint)
    if not path.is_file():
        path = Path(checkpoint)
    if not path.is_file():
        there = ", ".join(f.name for f in sorted(folder.checkpoints.glob("*.pt")))
        raise UserError(
            f"`{folder.path}` has no checkpoint `{checkpoint}`; it has "
            f"{there or 'none yet'}."
        )
    digest = sha256_of(path)
    if path.resolve().parent == folder.checkpoints.resolve():
        return Checkpoint(path, path.name, digest)
    # One from elsewhere must not pass for the run's own.
    return Checkpoint(path, f"{path.stem}-{digest[:8]}.pt", digest)
