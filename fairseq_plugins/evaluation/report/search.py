"""Our own beam search by a trained checkpoint, traced; imports fairseq (seconds)."""
from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor

from fairseq_plugins.beam.trace import BeamTrace
from fairseq_plugins.pipeline.errors import UserError

__all__ = ["TracedSearch", "trace_searches"]

logger = logging.getLogger(__name__)

_SENTENCES_AT_ONCE = 10
_POOL_PER_SLOT = 4  # as in training by default


@dataclass(frozen=True)
class TracedSearch:
    """What a search did with one sentence.

    Attributes:
        trace: of this sentence alone, so that B is 1.
        symbols: the dictionary's subwords by their ids.
        eos_id, pad_id: of the dictionary.
        gold: tokens of the reference with their end of sentence.
        gold_log_probs: log-probabilities that the model gives them, in nats.
    """

    trace: BeamTrace
    symbols: Sequence[str]
    eos_id: int
    pad_id: int
    gold: list[int]
    gold_log_probs: list[float]


def trace_searches(
    checkpoint: Path,
    data: Path,
    *,
    languages: tuple[str, str],
    subset: str,
    sentences: Sequence[int],
    beam_size: int,
) -> list[TracedSearch]:
    """Search for translations as ``fairseq-generate`` does, and keep what happened.

    Args:
        checkpoint: a model trained by fairseq.
        data: binarised folder.
        languages: source and target.
        subset: such as ``test``.
        sentences: their numbers, from 0.
        beam_size: hypotheses kept at each step.

    Raises:
        UserError: the checkpoint cannot be read, or its model cannot be searched.
    """
    task, model = _load(checkpoint, data, languages)
    task.load_dataset(subset)
    dataset = task.dataset(subset)
    missing = [number for number in sentences if not 0 <= number < len(dataset)]
    if missing:
        raise UserError(
            f"`{subset}` has {len(dataset):,} sentences, so that none has the number "
            f"{missing[0] + 1:,}: prepare the corpus anew."
        )
    # Batches of equal lengths cost least; the result is in the order asked for.
    order = sorted(range(len(sentences)), key=lambda i: dataset.size(sentences[i]))
    found: dict[int, TracedSearch] = {}
    for start in range(0, len(order), _SENTENCES_AT_ONCE):
        part = order[start : start + _SENTENCES_AT_ONCE]
        items = [dataset[sentences[i]] for i in part]
        found.update(zip(part, _search(task, model, dataset, items, beam_size)))
    return [found[i] for i in range(len(sentences))]


def _load(checkpoint: Path, data: Path, languages: tuple[str, str]) -> tuple[Any, Any]:
    from fairseq import checkpoint_utils

    import fairseq_plugins
    from fairseq_plugins.beam.decoder import check_model

    fairseq_plugins.register()
    source, target = languages
    overrides = {"data": str(data), "source_lang": source, "target_lang": target}
    try:
        models, _, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(checkpoint)], arg_overrides=overrides
        )
        check_model(models[0])
    except Exception as error:  # fairseq and torch have many kinds of it
        raise UserError(
            f"`{checkpoint}` cannot be searched ({error}). Give --explore 0 for a "
            "report without the beam explorer."
        ) from error
    return task, models[0].eval()


@torch.no_grad()
def _search(
    task: Any, model: Any, dataset: Any, items: list[Any], beam_size: int
) -> list[TracedSearch]:
    """Search for a batch; return one result for each item, in their order."""
    from fairseq_plugins.beam.engines import search
    from fairseq_plugins.beam.two_pass import Wanted

    dictionary = task.target_dictionary
    sample = dataset.collater(items)
    net_input = sample["net_input"]
    encoder_out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])
    trace = search(
        model,
        encoder_out,
        net_input["prev_output_tokens"][:, 0],
        sample["target"],
        settings=_settings(task, model, beam_size),
        what=Wanted(gold=True, finished=True, first_slot=False),
    )
    gold_log_probs = _gold_log_probs(model, sample)
    # The collater sorts by length.
    rows = {int(number): row for row, number in enumerate(sample["id"])}
    results = []
    for item in items:
        row = rows[int(item["id"])]
        gold = [int(token) for token in item["target"]]
        results.append(
            TracedSearch(
                trace=_of_sentence(trace, row),
                symbols=dictionary.symbols,
                eos_id=dictionary.eos(),
                pad_id=dictionary.pad(),
                gold=gold,
                gold_log_probs=gold_log_probs[row, : len(gold)].tolist(),
            )
        )
    return results


def _settings(task: Any, model: Any, beam_size: int) -> Any:
    """Return fairseq-generate's own limits of length."""
    from fairseq_plugins.beam.state import BeamSettings

    dictionary = task.target_dictionary
    pool_size = min(_POOL_PER_SLOT * beam_size, len(dictionary) - 2)
    return BeamSettings(
        beam_size=beam_size,
        pool_size=pool_size,
        max_len=min(200, model.max_decoder_positions() - 1),
        pad_id=dictionary.pad(),
        eos_id=dictionary.eos(),
    )


def _gold_log_probs(model: Any, sample: dict[str, Any]) -> Tensor:
    """Return log-probabilities of the references' tokens, (B, T)."""
    output = model(**sample["net_input"])
    log_probs = model.get_normalized_probs(output, log_probs=True)
    return log_probs.gather(-1, sample["target"].unsqueeze(-1)).squeeze(-1)


def _of_sentence(trace: BeamTrace, row: int) -> BeamTrace:
    """Return the trace of one sentence, without the steps after its search was over."""
    steps = int(trace.is_alive[row].any(-1).sum())
    return BeamTrace(
        **{f.name: getattr(trace, f.name)[row : row + 1, :steps] for f in fields(trace)}
    )
