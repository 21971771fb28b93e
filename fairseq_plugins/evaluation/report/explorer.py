"""A traced search as what the page's beam explorer shows."""
from __future__ import annotations

from typing import Any, Sequence

from torch import Tensor

from fairseq_plugins.beam.trace import BeamTrace, finished_hypotheses
from fairseq_plugins.evaluation.report.search import TracedSearch
from fairseq_plugins.operators import soft_topk, sorted_soft_topk
from fairseq_plugins.pipeline.training_config import Config

__all__ = ["epsilons_of", "explored", "fate_of_gold"]

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
