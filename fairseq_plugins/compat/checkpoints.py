"""Fixes of how fairseq loads, copies and broadcasts checkpoints."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy
import torch
from torch import serialization

from fairseq_plugins.compat.patching import wrap
from fairseq_plugins.utils.errors import UserError

__all__ = [
    "ForeignCheckpointError",
    "allow_checkpoint_classes",
    "broadcast_checkpoints",
    "copy_checkpoints_atomically",
    "load_checkpoints_safely",
    "read_checkpoint",
]


class ForeignCheckpointError(pickle.UnpicklingError):
    """A checkpoint names a class that no fairseq checkpoint needs; it was not run."""


def allow_checkpoint_classes() -> None:
    """Allow the few harmless classes of fairseq checkpoints in torch's safe loader.

    torch >= 2.6 loads with ``weights_only=True``. fairseq saves its options as an
    ``argparse.Namespace`` and, with ``--eval-bleu``, its meters as numpy arrays, so
    resuming and generating fail (fairseq issues 5603 and 5610).
    """
    multiarray = getattr(numpy, "_core", None) or numpy.core
    classes: list[Any] = [argparse.Namespace, numpy.ndarray, numpy.dtype]
    classes += [multiarray.multiarray._reconstruct, multiarray.multiarray.scalar]
    dtypes = getattr(numpy, "dtypes", None)  # numpy >= 1.25 has a class per dtype
    classes += [getattr(dtypes, name) for name in getattr(dtypes, "__all__", ())]
    serialization.add_safe_globals(classes)


def load_checkpoints_safely() -> None:
    """Load every fairseq checkpoint with torch's safe loader.

    torch < 2.6 runs code from a checkpoint, and so does fairseq's main branch, which
    passes ``weights_only=False``. The error names the class and the file.
    """
    from fairseq import checkpoint_utils

    wrap(checkpoint_utils, "load_checkpoint_to_cpu", _load_weights_only)


def _load_weights_only(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def load_safely(path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            # torch gives this variable precedence over the argument.
            with _switched_on("TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
                return load(path, *args, **kwargs)
        except pickle.UnpicklingError as error:
            raise ForeignCheckpointError(_refusal(path, error)) from None

    return load_safely


@contextlib.contextmanager
def _switched_on(variable: str) -> Iterator[None]:
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _refusal(path: str, error: Exception) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    found = f"names `{named[1]}`" if named else "is a pickle that torch did not write"
    return (
        f"checkpoint `{path}` must hold only tensors, numbers and options, but {found}."
        " It was not loaded and nothing in it was run. If you trust its source, allow "
        "the class with torch.serialization.add_safe_globals."
    )


def broadcast_checkpoints() -> None:
    """Let the first process send the checkpoint that it has loaded to the others.

    With torch >= 2.6 the other processes refuse the options in it, so training by
    several processes cannot be resumed. The bytes come from a process of the same
    training, which has loaded the file safely.
    """
    from fairseq.distributed import utils

    wrap(utils, "broadcast_object", _broadcast_trusted)


def _broadcast_trusted(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(broadcast)
    def broadcast_object(*args: Any, **kwargs: Any) -> Any:
        with _switched_on("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
            return broadcast(*args, **kwargs)

    return broadcast_object


def copy_checkpoints_atomically() -> None:
    """Rename a copied checkpoint to its final name when it is complete.

    fairseq writes one checkpoint and copies it to its other names, such as
    ``checkpoint_last.pt``, in place. A process that is killed meanwhile leaves a file
    from which training cannot be resumed.
    """
    from fairseq.file_io import PathManager

    wrap(PathManager, "copy", _copy_then_rename)


def _copy_then_rename(copy: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(copy)
    def copy_atomically(src_path: str, dst_path: str, overwrite: bool = False) -> Any:
        from fairseq.file_io import PathManager

        if PathManager.path_requires_pathmanager(dst_path):
            return copy(src_path, dst_path, overwrite)
        done = copy(src_path, f"{dst_path}.tmp", True)
        os.replace(f"{dst_path}.tmp", dst_path)
        return done

    return copy_atomically


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint; no code in it is run.

    Tensors stay on disk until they are used.

    Raises:
        UserError: there is no such file, or it is not a checkpoint that torch wrote, is
            damaged, or holds more than tensors, numbers and options.
    """
    if not path.is_file():
        raise UserError(f"checkpoint `{path}` does not exist.")
    allow_checkpoint_classes()
    try:
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(str(path), error)) from None
    except Exception as error:  # torch raises many types for a truncated file
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"checkpoint `{path}` cannot be read. It is damaged or not written by "
            f"torch ({type(error).__name__}: {reason})."
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"checkpoint `{path}` must be a mapping, but is not.")
    return state
