"""Trace a beam search and describe it as JSON for the beam explorer.

The report and `scripts/serve.py` show it. `explore` needs a model and a batch only,
`search_subset` a checkpoint and a binarized corpus. Nothing here reads the folder of a
run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from fairseq_plugins.beam.trace import BeamTrace, collect_hypotheses
from fairseq_plugins.operators import soft_topk, sorted_soft_topk
from fairseq_plugins.utils.errors import UserError

__all__ = ["choose_epsilons", "explore", "search_subset", "surround_epsilon"]

_BATCH_SIZE = 10
_CANDIDATES_PER_SLOT = 4  # as in training by default
_MAX_LENGTH = 200  # as in fairseq-generate by default
_DEFAULT_EPSILON = 2.0  # of the criterion's --epsilon and --survival-epsilon
_EPSILON_FACTORS = (0.25, 1.0, 4.0)


def choose_epsilons(config: Mapping[str, Any]) -> list[float]:
    """Return three epsilons to show; the middle one is that of the run.

    For a run without the beam objective it is the default of the criterion.
    """
    is_survival = "survival" in str(config.get("beam_loss"))
    name = "survival_epsilon" if is_survival else "epsilon"
    own = float(config.get(f"{name}_end") or config.get(name) or _DEFAULT_EPSILON)
    return surround_epsilon(own)


def surround_epsilon(epsilon: float) -> list[float]:
    """Return a quarter of an epsilon, the epsilon and four times the epsilon."""
    return [epsilon * factor for factor in _EPSILON_FACTORS]


def search_subset(
    checkpoint: Path,
    data: Path,
    *,
    languages: tuple[str, str],
    subset: str,
    sentences: Sequence[int],
    beam_size: int,
    epsilons: Sequence[float],
    lenpen: float = 1.0,
) -> list[dict[str, Any]]:
    """Translate sentences of a corpus with a checkpoint; describe each search.

    Args:
        checkpoint: a model trained by fairseq.
        data: the binarized corpus.
        languages: source and target.
        subset: such as ``test``.
        sentences: their numbers, from 0.
        beam_size, epsilons, lenpen: see `explore`.

    Raises:
        UserError: the checkpoint cannot be read, its decoder is not supported, or a
            sentence does not exist.
    """
    task, model = _load(checkpoint, data, languages)
    task.load_dataset(subset)
    dataset = task.dataset(subset)
    missing = [number for number in sentences if not 0 <= number < len(dataset)]
    if missing:
        raise UserError(
            f"`{subset}` must have a sentence {missing[0] + 1:,}, but has only "
            f"{len(dataset):,}: prepare the corpus again."
        )
    found: dict[int, dict[str, Any]] = {}
    by_length = sorted(sentences, key=dataset.size)
    for start in range(0, len(by_length), _BATCH_SIZE):
        numbers = by_length[start : start + _BATCH_SIZE]
        sample = dataset.collater([dataset[number] for number in numbers])
        searches = explore(
            model,
            task.target_dictionary,
            sample,
            beam_size=beam_size,
            epsilons=epsilons,
            lenpen=lenpen,
        )
        found.update(zip(sample["id"].tolist(), searches))
    return [found[number] for number in sentences]


def _load(checkpoint: Path, data: Path, languages: tuple[str, str]) -> tuple[Any, Any]:
    from fairseq import checkpoint_utils

    import fairseq_plugins
    from fairseq_plugins.beam.adapters import find_adapter

    fairseq_plugins.register()
    source, target = languages
    overrides = {"data": str(data), "source_lang": source, "target_lang": target}
    try:
        models, _, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(checkpoint)], arg_overrides=overrides
        )
        find_adapter(models[0])
    except Exception as error:  # fairseq and torch raise errors of many kinds
        raise UserError(
            f"`{checkpoint}` cannot be searched ({error}). Give --explore 0 for a "
            "report without the beam explorer."
        ) from error
    return task, models[0].eval()


@torch.no_grad()
def explore(
    model: Any,
    dictionary: Any,
    sample: Mapping[str, Any],
    *,
    beam_size: int,
    epsilons: Sequence[float],
    lenpen: float = 1.0,
) -> list[dict[str, Any]]:
    """Search for translations as ``fairseq-generate`` does and describe each search.

    Args:
        model: in evaluation mode.
        dictionary: of the target language.
        sample: a batch by fairseq's collater. Without references in ``target`` the
            search is described without them.
        beam_size: hypotheses kept at each step.
        epsilons: of the SOFT top-k memberships, in nats.
        lenpen: exponent of the length by which finished hypotheses are compared.

    Returns:
        For each row of the batch a dictionary that is ready for JSON:

        ``beam``, ``epsilons``: the arguments.

        ``steps``: for each step ``candidates``, best first, as ``[slot, subword,
        score, step score]``; ``held``, the candidate in each slot after the step;
        ``ends``, the candidates that end a hypothesis, as ``[slot, score, step score,
        whether it finishes]``; ``gold``, the reference's index among the candidates,
        or their number plus the slot in which the reference ends, or -1; its ``rank``;
        and for each epsilon, in percent, the ``members`` (SOFT top-k) and the
        ``shares`` of the candidates in the slots (sorted SOFT top-k). ``gold`` is -1 in
        all steps without a reference.

        ``finished``: the finished hypotheses, best first.

        ``gold``: None without a reference, otherwise the reference's subwords and
        scores, and its ``fate``: ``best`` (it was returned), ``finished`` (found, but
        another hypothesis scores higher), ``search error`` (pruned, but the model
        scores it higher than all that was found) or ``model error`` (pruned, and the
        model scores it lower). ``lost`` is the step, from 0, after which it is no
        longer in the beam, or None.
    """
    trace = _search(model, dictionary, sample, beam_size)
    references = _score_references(model, dictionary, sample)
    return [
        _Search(
            trace=_select_row(trace, row),
            symbols=dictionary.symbols,
            eos_id=dictionary.eos(),
            pad_id=dictionary.pad(),
            gold=gold,
        ).describe(epsilons, lenpen)
        for row, gold in enumerate(references)
    ]


def _score_references(
    model: Any, dictionary: Any, sample: Mapping[str, Any]
) -> list[list[tuple[int, float]]]:
    """Return each reference's tokens with their log-probabilities, in nats."""
    if sample.get("target") is None:
        return [[] for _ in sample["net_input"]["src_tokens"]]
    output = model(**sample["net_input"])
    log_probs = model.get_normalized_probs(output, log_probs=True)
    log_probs = log_probs.gather(-1, sample["target"].unsqueeze(-1)).squeeze(-1)
    return [
        [(token, score) for token, score in zip(*row) if token != dictionary.pad()]
        for row in zip(sample["target"].tolist(), log_probs.tolist())
    ]


def _search(
    model: Any, dictionary: Any, sample: Mapping[str, Any], beam_size: int
) -> BeamTrace:
    from fairseq_plugins.beam.search import RequiredScores, SearchRequest, search
    from fairseq_plugins.beam.step import BeamSettings

    net_input, target = sample["net_input"], sample.get("target")
    start = torch.full_like(net_input["src_lengths"], dictionary.eos())
    settings = BeamSettings(
        beam_size=beam_size,
        pool_size=min(_CANDIDATES_PER_SLOT * beam_size, len(dictionary) - 2),
        max_len=min(_MAX_LENGTH, model.max_decoder_positions() - 1),
        pad_id=dictionary.pad(),
        eos_id=dictionary.eos(),
    )
    request = SearchRequest(
        model=model,
        encoder_out=model.encoder(net_input["src_tokens"], net_input["src_lengths"]),
        start_tokens=start,
        target=start.new_empty(len(start), 0) if target is None else target,
        settings=settings,
        required=RequiredScores(gold=target is not None, finished=True),
    )
    return search(request)


def _select_row(trace: BeamTrace, row: int) -> BeamTrace:
    """Return the trace of one sentence without the steps after its search ended."""
    steps = int(trace.is_alive[row].any(-1).sum())
    return BeamTrace(
        **{f.name: getattr(trace, f.name)[row : row + 1, :steps] for f in fields(trace)}
    )


@dataclass(frozen=True)
class _Search:
    """The search of one sentence.

    Attributes:
        trace: of this sentence alone, with a batch of 1.
        symbols: the subwords of the dictionary.
        gold: tokens of the reference with the end of the sentence, each with the
            model's log-probability in nats. Empty without a reference.
    """

    trace: BeamTrace
    symbols: Sequence[str]
    eos_id: int
    pad_id: int
    gold: list[tuple[int, float]]

    def describe(self, epsilons: Sequence[float], lenpen: float) -> dict[str, Any]:
        pool, beam_size = self.trace.pool[0], self.trace.beam_size
        # Candidates without a score have a membership of NaN in the last step.
        members = [_percent(soft_topk(pool, beam_size, epsilon=e)) for e in epsilons]
        shares = [
            _percent(sorted_soft_topk(pool, beam_size, epsilon=e)) for e in epsilons
        ]
        finished = self._finished(lenpen)
        return {
            "beam": beam_size,
            "epsilons": list(epsilons),
            "steps": [
                {
                    **self._step(step),
                    "members": [rows[step] for rows in members],
                    "shares": [rows[step] for rows in shares],
                }
                for step in range(len(pool))
            ],
            "finished": finished,
            "gold": self._gold(finished, lenpen) if self.gold else None,
        }

    def _step(self, step: int) -> dict[str, Any]:
        def column(name: str) -> list[Any]:
            values: list[Any] = getattr(self.trace, name)[0, step].tolist()
            return values

        candidates = [
            [slot, self.symbols[token], round(score, 3), round(step_score, 3)]
            for slot, token, score, step_score in zip(
                *map(column, ("origins", "tokens", "pool", "pool_steps"))
            )
            if score > float("-inf")
        ]
        ends = [
            [slot, round(score, 3), round(step_score, 3), bool(finishes)]
            for slot, (score, step_score, finishes) in enumerate(
                zip(*map(column, ("ends", "ends_steps", "finishes")))
            )
            if score > float("-inf")
        ]
        gold, pool_size = int(self.trace.gold[0, step]), self.trace.pool.size(-1)
        if gold >= pool_size:  # the reference ends; fewer candidates may be shown
            gold += len(candidates) - pool_size
        return {
            "candidates": candidates,
            "held": [index for index in column("held") if index < len(candidates)],
            "ends": ends,
            "gold": gold,
            "rank": int(self.trace.gold_rank[0, step]),
        }

    def _finished(self, lenpen: float) -> list[dict[str, Any]]:
        found = collect_hypotheses(self.trace, pad_id=self.pad_id, eos_id=self.eos_id)
        scores = found.scores(lenpen)[0]
        results = []
        for index in scores.argsort(descending=True, stable=True).tolist():
            length = int(found.lengths[0, index])
            if length:
                tokens = found.tokens[0, index, :length].tolist()
                results.append(
                    {
                        "tokens": tokens,
                        "pieces": [self.symbols[token] for token in tokens[:-1]],
                        "score": round(float(scores[index]), 4),
                        "log_prob": round(float(found.log_probs[0, index]), 3),
                        "step": int(found.steps[0, index]),
                        "slot": int(found.slots[0, index]),
                    }
                )
        return results

    def _gold(self, finished: Sequence[dict[str, Any]], lenpen: float) -> Any:
        tokens, log_probs = map(list, zip(*self.gold))
        log_prob = sum(log_probs)
        score = log_prob / len(log_probs) ** lenpen
        is_pruned = (self.trace.gold[0] >= 0) & ~self.trace.gold_in_beam[0]
        is_gold = [hypothesis["tokens"] == tokens for hypothesis in finished]
        if any(is_gold):
            fate = "best" if is_gold[0] else "finished"
        elif not finished or score > finished[0]["score"]:
            fate = "search error"
        else:
            fate = "model error"
        return {
            "pieces": [self.symbols[token] for token in tokens[:-1]],
            "scores": [round(score, 3) for score in log_probs],
            "fate": fate,
            "lost": int(is_pruned.int().argmax()) if is_pruned.any() else None,
            "score": round(score, 4),
            "log_prob": round(log_prob, 3),
        }


def _percent(values: Tensor) -> list[Any]:
    result: list[Any] = (100 * values.double().nan_to_num()).round().int().tolist()
    return result
