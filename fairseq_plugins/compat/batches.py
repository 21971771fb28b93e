"""Fixes of which sentences share a batch, and of sentences that are in none."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable

import numpy

from fairseq_plugins.compat.patching import wrap

__all__ = ["keep_last_batch", "resume_with_same_batches"]


def keep_last_batch() -> None:
    """Keep the sentences that fairseq's batching drops silently.

    fairseq drops the last batch if its size is not a multiple of
    ``--required-batch-size-multiple`` (8 by default). Sentences are sorted by length,
    so the longest ones are missing, both from training and from the translations of
    fairseq-generate, whose BLEU is then that of another test set (fairseq issue 5036).
    """
    from fairseq.data import data_utils

    wrap(data_utils, "batch_by_size", _append_last_batch)


def _append_last_batch(batch_by_size: Callable[..., Any]) -> Callable[..., Any]:
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


def resume_with_same_batches() -> None:
    """Give a resumed training the batches of an uninterrupted one.

    fairseq makes batches once for all epochs, but seeds them with the number of the
    epoch in which the process started. After a restart in a later epoch other sentences
    share a batch. fairseq 0.12.2 uses the seed alone and is left as it is.
    """
    from fairseq.tasks.fairseq_task import FairseqTask

    wrap(FairseqTask, "get_batch_iterator", _use_batches_of_first_epoch)


def _use_batches_of_first_epoch(get: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(get)
    # The function of this name came into fairseq together with the defect.
    if "make_batches" not in inspect.unwrap(get).__code__.co_varnames:
        return get

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
        # Batches are made here, seeded with seed + epoch; their order is drawn later.
        given["seed"] = seed + 1 - given["epoch"]
        iterator = get(*call.args, **call.kwargs)
        iterator.seed = seed
        return iterator

    return get_batch_iterator
