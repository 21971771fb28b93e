"""fairseq's beam search, with or without neighbours, in this process."""
from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

import torch
from torch import Tensor

from fairseq_plugins.knn_mt.datastore import Datastore
from fairseq_plugins.knn_mt.gate import Gate, Retrieved
from fairseq_plugins.knn_mt.states import Loaded, adjusted, batches

__all__ = ["translate"]

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_REPORTS = 5.0


@torch.no_grad()
def translate(
    loaded: Loaded,
    subset: str,
    *,
    beam: int,
    neighbours: tuple[Datastore, Gate] | None = None,
    max_tokens: int = 4000,
) -> list[str]:
    """Return the best hypothesis of every sentence, as pieces, in corpus order.

    Args:
        loaded: the model.
        subset: such as ``test``.
        beam: hypotheses kept at each step.
        neighbours: where to look and how much to believe; None is the model alone.
        max_tokens: size of a batch.
    """
    from fairseq.sequence_generator import SequenceGenerator

    dictionary = loaded.task.target_dictionary
    generator = SequenceGenerator([loaded.model], dictionary, beam_size=beam)
    found: dict[int, str] = {}
    next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS
    with _looking_at(loaded.model, neighbours):
        for sample in batches(loaded, subset, max_tokens):
            hypotheses = generator.generate([loaded.model], sample)
            for sentence, ranked in zip(sample["id"].tolist(), hypotheses):
                found[sentence] = dictionary.string(ranked[0]["tokens"])
            if time.monotonic() >= next_report:
                total = f"{len(loaded.task.dataset(subset)):,}"
                logger.info("%s: %s of %s done", subset, f"{len(found):,}", total)
                next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS
    return [found[sentence] for sentence in sorted(found)]


def _looking_at(
    model: Any, neighbours: tuple[Datastore, Gate] | None
) -> contextlib.AbstractContextManager[None]:
    if neighbours is None:
        return contextlib.nullcontext()
    datastore, gate = neighbours

    def adjust(states: Tensor, log_probs: Tensor) -> Tensor:
        near = datastore.search(states, gate.num_neighbours)
        return gate.log_probs(Retrieved.from_model(near, log_probs), log_probs)

    return adjusted(model, adjust)
