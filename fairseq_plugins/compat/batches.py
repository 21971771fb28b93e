"""Mends of which sentences share a batch, and of those that are in none."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable

import numpy

from fairseq_plugins.compat.wrapping import wrap

__all__ = ["keep_the_last_batch", "resume_with_the_same_batches"]


def keep_the_last_batch() -> None:
    """Give back the sentences that fairseq's batching leaves out without a word.

    fairseq drops the last batch when its size is no multiple of
    ``--required-batch-size-multiple`` (8 by default). Sentences are sorted by length,
    so the longest ones are missing: from training, and from what fairseq-generate
    translates, which makes its BLEU that of another test set (fairseq issue 5036).
    """
    from fairseq.data import data_utils

    wrap(data_utils, "batch_by_size", _batches_with_the_last)


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


def resume_with_the_same_batches() -> None:
    """Make the batches of a resumed training those of one that was not interrupted.

    fairseq makes batches once and keeps them for all epochs, but draws them by the
    number of the epoch in which the process started: after a restart in a later one,
    other sentences share a batch and the training is another. (0.12.2 draws them by the
    seed alone, and is left as it is.)
    """
    from fairseq.tasks.fairseq_task import FairseqTask

    wrap(FairseqTask, "get_batch_iterator", _iterator_of_the_first_epoch, bound=True)


def _iterator_of_the_first_epoch(get: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(get)
    # Drawing by the epoch came with this function in it.
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
        # It draws by seed + epoch, at once; the order of batches is drawn later.
        given["seed"] = seed + 1 - given["epoch"]
        iterator = get(*call.args, **call.kwargs)
        iterator.seed = seed
        return iterator

    return get_batch_iterator
