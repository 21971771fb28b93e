"""Our own beam search by a trained checkpoint, traced; imports fairseq (seconds).

A traced search as what the page's beam explorer shows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor

from fairseq_plugins.beam.trace import BeamTrace, finished_hypotheses
from fairseq_plugins.operators import soft_topk, sorted_soft_topk
from fairseq_plugins.training.config import Config
from fairseq_plugins.utils.errors import UserError

__all__ = ["TracedSearch", "epsilons_of", "explored", "fate_of_gold", "trace_searches"]

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
    from fairseq_plugins.beam.rescore import Wanted, search

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
    from fairseq_plugins.beam.step import BeamSettings

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


_DEFAULT_EPSILON = 2.0  # of the criterion's options --epsilon and --survival-epsilon
_LADDER = (0.25, 1.0, 4.0)


def epsilons_of(config: Config) -> list[float]:
    """Return the epsilons to show memberships by: the run's own is the middle one.

    A run that was not trained for the beam has the one that training would start with.
    """
    is_survival = "survival" in str(config.get("beam_loss"))
    name = "survival_epsilon" if is_survival else "epsilon"
    own = float(config.get(f"{name}_end") or config.get(name) or _DEFAULT_EPSILON)
    return [own * factor for factor in _LADDER]


def explored(
    search: TracedSearch, *, lenpen: float, epsilons: Sequence[float]
) -> dict[str, Any]:
    """Return the search of one sentence as JSON.

    Args:
        search: what happened.
        lenpen: exponent of the length that finished hypotheses are compared by.
        epsilons: of the SOFT top-k memberships, in nats.

    Returns:
        ``steps``: of each its candidates, best first, as ``[slot, subword, score, step
        score]``, which of them the slots then ``held``, the hypotheses that ``ends``
        as ``[slot, score, step score, whether it finishes]``, ``gold`` (an index into
        the candidates, or their number plus the slot where gold ends, or -1) with its
        ``rank``, and in percent the ``members`` and the ``shares`` in the slots by
        each epsilon. ``finished``: the hypotheses, best first. ``gold``: the
        reference's subwords and scores, and its ``fate``.
    """
    trace = search.trace
    members = [_percent(soft_topk(trace.pool[0], trace.beam_size, epsilon=e))
               for e in epsilons]  # fmt: skip
    shares = [_percent(sorted_soft_topk(trace.pool[0], trace.beam_size, epsilon=e))
              for e in epsilons]  # fmt: skip
    steps = []
    for step in range(trace.pool.size(1)):
        shown = _step(search, step)
        # The rows of a search's last step hold nothing where hypotheses may not go on.
        shown["members"] = [rows[step] for rows in members]
        shown["shares"] = [rows[step] for rows in shares]
        steps.append(shown)
    finished = _finished(search, lenpen)
    return {
        "beam": trace.beam_size,
        "epsilons": list(epsilons),
        "steps": steps,
        "finished": finished,
        "gold": {
            "pieces": [search.symbols[token] for token in search.gold[:-1]],
            "scores": [round(score, 3) for score in search.gold_log_probs],
            **fate_of_gold(search, finished, lenpen=lenpen),
        },
    }


def fate_of_gold(
    search: TracedSearch, finished: Sequence[dict[str, Any]], *, lenpen: float
) -> dict[str, Any]:
    """Return what became of the reference.

    ``fate`` is ``best`` (the search returned it), ``finished`` (found, but another one
    scores higher), ``search error`` (lost, though the model scores it higher than all
    that was found) or ``model error`` (lost, and the model prefers what was found).
    ``lost`` is the step, from 0, after which it was no longer in the beam, or None.
    """
    log_prob = sum(search.gold_log_probs)
    score = log_prob / len(search.gold_log_probs) ** lenpen
    lost = _lost_at(search.trace)
    is_gold = [hypothesis["tokens"] == search.gold for hypothesis in finished]
    if is_gold and is_gold[0]:
        fate = "best"
    elif any(is_gold):
        fate = "finished"
    else:
        is_better = not finished or score > finished[0]["score"]
        fate = "search error" if is_better else "model error"
    return {
        "fate": fate,
        "lost": lost,
        "score": round(score, 4),
        "log_prob": round(log_prob, 3),
    }


def _lost_at(trace: BeamTrace) -> int | None:
    """Return the step at which gold was a candidate, but not one of the K best."""
    is_out = (trace.gold[0] >= 0) & ~trace.gold_in_beam[0]
    return int(is_out.int().argmax()) if bool(is_out.any()) else None


def _step(search: TracedSearch, step: int) -> dict[str, Any]:
    trace = search.trace
    scores, step_scores, origins, tokens = (
        column[0, step].tolist()
        for column in (trace.pool, trace.pool_steps, trace.origins, trace.tokens)
    )
    candidates = [
        [slot, search.symbols[token], round(score, 3), round(alone, 3)]
        for slot, token, score, alone in zip(origins, tokens, scores, step_scores)
        if score > float("-inf")
    ]
    ends = [
        [slot, round(score, 3), round(alone, 3), bool(finishes)]
        for slot, (score, alone, finishes) in enumerate(
            zip(
                trace.ends[0, step].tolist(),
                trace.ends_steps[0, step].tolist(),
                trace.finishes[0, step].tolist(),
            )
        )
        if score > float("-inf")
    ]
    gold, pool_size = int(trace.gold[0, step]), trace.pool.size(-1)
    if gold >= pool_size:  # where gold ends; the candidates shown may be fewer
        gold += len(candidates) - pool_size
    return {
        "candidates": candidates,
        "held": [h for h in trace.held[0, step].tolist() if h < len(candidates)],
        "ends": ends,
        "gold": gold,
        "rank": int(trace.gold_rank[0, step]),
    }


def _finished(search: TracedSearch, lenpen: float) -> list[dict[str, Any]]:
    found = finished_hypotheses(
        search.trace, pad_id=search.pad_id, eos_id=search.eos_id
    )
    scores = found.scores(lenpen)[0]
    results = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        length = int(found.lengths[0, index])
        if length:
            tokens = found.tokens[0, index, :length].tolist()
            results.append(
                {
                    "tokens": tokens,
                    "pieces": [search.symbols[token] for token in tokens[:-1]],
                    "score": round(float(scores[index]), 4),
                    "log_prob": round(float(found.log_probs[0, index]), 3),
                    "step": int(found.steps[0, index]),
                    "slot": int(found.slots[0, index]),
                }
            )
    return results


def _percent(values: Tensor) -> list[Any]:
    result: list[Any] = (100 * values.double().nan_to_num()).round().int().tolist()
    return result
