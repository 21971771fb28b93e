"""Mends for what is broken in fairseq on today's Python and torch.

One function per breakage. Each says what breaks, looks whether the mend is needed,
and leaves a fairseq that does not need it alone. The tests show for each that the
unmended fairseq fails and that the mended one works.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import os
import pickle
import re
import sys
from typing import Any, Callable, Iterator, Sequence

import numpy
import torch
from torch import serialization

__all__ = ["ForeignCheckpointError", "apply"]

_MENDED = "_fairseq_plugins_mended"


class ForeignCheckpointError(pickle.UnpicklingError):
    """A checkpoint names a class that no fairseq checkpoint needs; nothing was run."""


def apply() -> None:
    """Mend the imported fairseq; a second call changes nothing."""
    allow_what_checkpoints_hold()
    load_checkpoints_safely()
    let_bf16_run_without_tpu()
    let_torchrun_work_without_gpu()
    keep_the_last_batch()
    copy_checkpoints_whole()
    resume_with_the_same_batches()
    let_processes_share_a_checkpoint()


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

    _wrap(checkpoint_utils, "load_checkpoint_to_cpu", _safe_loader)


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


def let_bf16_run_without_tpu() -> None:
    """Keep ``--bf16`` from switching ``--tpu`` on.

    fairseq takes bfloat16 for a sign of a TPU and dies without torch_xla
    (``'NoneType' object has no attribute 'xla_device'``; fairseq issue 4696).
    """
    from fairseq import options

    _wrap(options, "parse_args_and_arch", _parser_without_tpu)


def _parser_without_tpu(parse: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(parse)
    def parse_args(
        parser: argparse.ArgumentParser,
        input_args: Sequence[str] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        result = parse(parser, input_args, *args, **kwargs)
        namespace = result[0] if isinstance(result, tuple) else result
        typed = sys.argv[1:] if input_args is None else input_args
        if getattr(namespace, "bf16", False):
            namespace.tpu = "--tpu" in typed
        return result

    return parse_args


def let_torchrun_work_without_gpu() -> None:
    """Let ``torchrun`` start CPU processes, and believe its number of processes.

    fairseq divides by the number of GPUs to find a process' own, and tells torch that
    the model is on one. And it looks at
    torchrun's variables only when it has counted more than one GPU itself, so that
    single-GPU (or CPU) processes would each train alone, without a word.
    """
    from fairseq.distributed import utils
    from fairseq.models import distributed_fairseq_model

    _wrap(utils, "_infer_torch_distributed_launch_init", _launch_init_on_cpu)
    _wrap(utils, "infer_init_method", _init_method_of_torchrun)
    _wrap(distributed_fairseq_model, "DistributedDataParallel", _parallel_on_cpu)


def _launch_init_on_cpu(infer: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(infer)
    def infer_launch(cfg: Any) -> None:
        if torch.cuda.device_count() > 0:
            return infer(cfg)
        cfg.distributed_init_method = "env://"
        cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
        cfg.distributed_rank = int(os.environ["RANK"])
        cfg.device_id = 0
        cfg.distributed_no_spawn = True

    return infer_launch


def _init_method_of_torchrun(infer: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(infer)
    def infer_method(cfg: Any, *args: Any, **kwargs: Any) -> None:
        if "TORCHELASTIC_RUN_ID" in os.environ and cfg.distributed_world_size == 1:
            cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
        infer(cfg, *args, **kwargs)

    return infer_method


def _parallel_on_cpu(parallel: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(parallel, updated=())
    def distributed(module: torch.nn.Module, **options: Any) -> Any:
        if next(module.parameters()).device.type == "cpu":
            options.update(device_ids=None, output_device=None)
        return parallel(module, **options)

    return distributed


def keep_the_last_batch() -> None:
    """Give back the sentences that fairseq's batching leaves out without a word.

    fairseq drops the last batch when its size is no multiple of
    ``--required-batch-size-multiple`` (8 by default). Sentences are sorted by length,
    so the longest ones are missing: from training, and from what fairseq-generate
    translates, which makes its BLEU that of another test set (fairseq issue 5036).
    """
    from fairseq.data import data_utils

    _wrap(data_utils, "batch_by_size", _batches_with_the_last)


def _batches_with_the_last(batch_by_size: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(batch_by_size)
    def batch_all(indices: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(indices, numpy.ndarray):
            indices = numpy.fromiter(indices, dtype=numpy.int64, count=-1)
        batches = list(batch_by_size(indices, *args, **kwargs))
        # Batches are consecutive slices of the indices, so only a tail can be missing.
        batched = sum(len(batch) for batch in batches)
        if batched < len(indices) and kwargs.get("fixed_shapes") is None:
            batches.append(indices[batched:])
        return batches

    return batch_all


def copy_checkpoints_whole() -> None:
    """Give a copied checkpoint its name only when it is whole.

    fairseq writes one checkpoint safely and copies it to its other names, such as
    ``checkpoint_last.pt``, in place: killed in between it cannot be resumed.
    """
    from fairseq.file_io import PathManager

    _wrap(PathManager, "copy", _copy_then_rename)


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


def resume_with_the_same_batches() -> None:
    """Make the batches of a resumed training those of one that was not interrupted.

    fairseq makes batches once and keeps them for all epochs, but draws them by the
    number of the epoch in which the process started: after a restart in a later one,
    other sentences share a batch and the training is another.
    """
    from fairseq.tasks.fairseq_task import FairseqTask

    _wrap(FairseqTask, "get_batch_iterator", _iterator_of_the_first_epoch, bound=True)


def _iterator_of_the_first_epoch(get: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(get)

    @functools.wraps(get)
    def get_batch_iterator(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        is_kept = (
            not given.get("disable_iterator_cache")
            and not given.get("update_epoch_batch_itr")
            and not getattr(given["self"].cfg, "rebuild_batches", False)
            and given["self"].can_reuse_epoch_itr(given["dataset"])
        )
        if not is_kept:
            return get(*args, **kwargs)
        seed = given["seed"]
        # It draws by seed + epoch, at once; the order of batches is drawn later.
        given["seed"] = seed + 1 - given["epoch"]
        iterator = get(*call.args, **call.kwargs)
        iterator.seed = seed
        return iterator

    return get_batch_iterator


def let_processes_share_a_checkpoint() -> None:
    """Let the first process send the others the checkpoint that it has loaded safely.

    torch >= 2.6 refuses the options in it, so that no training by several processes
    could be resumed. What is read here comes from a process of the same training.
    """
    from fairseq.distributed import utils

    _wrap(utils, "broadcast_object", _trusting_broadcast)


def _trusting_broadcast(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(broadcast)
    def broadcast_object(*args: Any, **kwargs: Any) -> Any:
        with _set("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
            return broadcast(*args, **kwargs)

    return broadcast_object


def _wrap(
    owner: Any, name: str, wrapper: Callable[[Any], Any], *, bound: bool = False
) -> None:
    original = getattr(owner, name)
    if not getattr(original, _MENDED, False):
        mended = wrapper(original)
        setattr(mended, _MENDED, True)
        is_static = isinstance(owner, type) and not bound
        setattr(owner, name, staticmethod(mended) if is_static else mended)
