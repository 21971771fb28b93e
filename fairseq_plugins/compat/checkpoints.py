"""Mends of how checkpoints are loaded, copied and passed on."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pickle
import re
from typing import Any, Callable, Iterator

import numpy
from torch import serialization

from fairseq_plugins.compat.wrapping import wrap

__all__ = [
    "ForeignCheckpointError",
    "allow_what_checkpoints_hold",
    "copy_checkpoints_whole",
    "let_processes_share_a_checkpoint",
    "load_checkpoints_safely",
]


class ForeignCheckpointError(pickle.UnpicklingError):
    """A checkpoint names a class that no fairseq checkpoint needs; nothing was run."""


def allow_what_checkpoints_hold() -> None:
    """Tell torch's safe loader the few harmless classes in a fairseq checkpoint.

    torch >= 2.6 loads with ``weights_only=True``; fairseq keeps its options in
    ``argparse.Namespace`` and, with ``--eval-bleu``, its meters in numpy arrays, so
    that resuming and generating fail (fairseq issues 5603 and 5610).
    """
    multiarray = getattr(numpy, "_core", None) or numpy.core
    harmless: list[Any] = [argparse.Namespace, numpy.ndarray, numpy.dtype]
    harmless += [multiarray.multiarray._reconstruct, multiarray.multiarray.scalar]
    dtypes = getattr(numpy, "dtypes", None)  # numpy >= 1.25 has a class per dtype
    for name in getattr(dtypes, "__all__", ()):
        harmless.append(getattr(dtypes, name))
    serialization.add_safe_globals(harmless)


def load_checkpoints_safely() -> None:
    """Load every fairseq checkpoint with torch's safe unpickler, whatever torch.

    torch < 2.6 would run code from a checkpoint, and so would fairseq's main branch,
    which asks for ``weights_only=False``. The error names the class and the file.
    """
    from fairseq import checkpoint_utils

    wrap(checkpoint_utils, "load_checkpoint_to_cpu", _safe_loader)


def _safe_loader(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def load_safely(path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            with _only_weights():
                return load(path, *args, **kwargs)
        except pickle.UnpicklingError as error:
            raise ForeignCheckpointError(_why_refused(path, error)) from None

    return load_safely


@contextlib.contextmanager
def _only_weights() -> Iterator[None]:
    """Force torch's safe loader: this variable beats the ``weights_only`` argument."""
    with _set("TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
        yield


@contextlib.contextmanager
def _set(name: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _why_refused(path: str, error: Exception) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    what = f"names `{named[1]}`" if named else "is a pickle that torch did not write"
    return (
        f"checkpoint `{path}` must hold only tensors, numbers and options, but {what}. "
        "It was not loaded and nothing in it was run. If you trust where it comes "
        "from, allow the class with torch.serialization.add_safe_globals."
    )


def copy_checkpoints_whole() -> None:
    """Give a copied checkpoint its name only when it is whole.

    fairseq writes one checkpoint safely and copies it to its other names, such as
    ``checkpoint_last.pt``, in place: killed in between it cannot be resumed.
    """
    from fairseq.file_io import PathManager

    wrap(PathManager, "copy", _copy_then_rename)


def _copy_then_rename(copy: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(copy)
    def copy_whole(src_path: str, dst_path: str, overwrite: bool = False) -> Any:
        from fairseq.file_io import PathManager

        if PathManager.path_requires_pathmanager(dst_path):
            return copy(src_path, dst_path, overwrite)
        done = copy(src_path, f"{dst_path}.tmp", True)
        os.replace(f"{dst_path}.tmp", dst_path)
        return done

    return copy_whole


def let_processes_share_a_checkpoint() -> None:
    """Let the first process send the others the checkpoint that it has loaded safely.

    torch >= 2.6 refuses the options in it, so that no training by several processes
    could be resumed. What is read here comes from a process of the same training.
    """
    from fairseq.distributed import utils

    wrap(utils, "broadcast_object", _trusting_broadcast)


def _trusting_broadcast(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(broadcast)
    def broadcast_object(*args: Any, **kwargs: Any) -> Any:
        with _set("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
            return broadcast(*args, **kwargs)

    return broadcast_object
