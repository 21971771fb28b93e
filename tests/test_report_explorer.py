"""What the explorer says about a search, checked by walking through its own steps."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from test_report import evaluated

from fairseq_plugins.beam.trace import BeamTrace, finished_hypotheses
from fairseq_plugins.evaluation.report.build import ReportOptions, collect
from fairseq_plugins.evaluation.report.explorer import (
    TracedSearch,
    _gold_log_probs,
    _settings,
    epsilons_of,
    explored,
)
from fairseq_plugins.utils.errors import UserError

BEAM = 3


@pytest.fixture
def searches(task: Any, sentences: Any, collate: Any, make_model: Any) -> Any:
    from fairseq_plugins.beam.rescore import Wanted, search
    from fairseq_plugins.beam.step import BeamSettings

    model, dictionary = make_model("lstm").eval(), task.target_dictionary
    settings = BeamSettings(
        beam_size=BEAM, pool_size=4 * BEAM, max_len=20,
        pad_id=dictionary.pad(), eos_id=dictionary.eos(),
    )  # fmt: skip

    def searched(sample: Any) -> BeamTrace:
        source = sample["net_input"]
        return search(
            model, model.encoder(source["src_tokens"], source["src_lengths"]),
            source["prev_output_tokens"][:, 0], sample["target"], settings=settings,
            what=Wanted(gold=True, finished=True, first_slot=False),
        )  # fmt: skip

    with torch.no_grad():
        sample = collate(sentences)
        found = finished_hypotheses(
            searched(sample), pad_id=settings.pad_id, eos_id=settings.eos_id
        )
        # Such a small model loses every reference, so half of them is what it finds.
        items = {int(item["id"]): dict(item) for item in sentences}
        best = found.scores(1.0).argmax(-1)
        for row in range(0, len(sentences), 2):
            tokens = found.tokens[row, best[row], : found.lengths[row, best[row]]]
            items[int(sample["id"][row])]["target"] = tokens
        sample = collate(list(items.values()))
        trace, gold = searched(sample), _gold_log_probs(model, sample)
    results = []
    for row, target in enumerate(sample["target"]):
        steps = int(trace.is_alive[row].any(-1).sum())
        part = {
            f.name: getattr(trace, f.name)[row : row + 1, :steps]
            for f in fields(BeamTrace)
        }
        tokens = target[target.ne(dictionary.pad())].tolist()
        results.append(
            TracedSearch(
                BeamTrace(**part), dictionary.symbols, dictionary.eos(),
                dictionary.pad(), tokens, gold[row, : len(tokens)].tolist(),
            )
        )  # fmt: skip
    return results


def test_gold_is_lost_where_no_slot_continues_it_and_scores_add_up(searches):
    lost = 0
    for search in searches:
        shown = explored(search, lenpen=1.0, epsilons=[2.0])
        gold = [search.symbols[token] for token in search.gold[:-1]]
        slots: list[tuple[list[str], float]] = [([], 0.0)]
        where = None
        for number, step in enumerate(shown["steps"]):
            prefixes = [prefix for prefix, _ in slots]
            held = [step["candidates"][index] for index in step["held"]]
            ends = {slot for slot, _, _, finishes in step["ends"] if finishes}
            if number == len(gold):  # gold ends here, if it is there
                alive = any(prefixes[slot] == gold for slot in ends)
            else:
                alive = any(
                    [*prefixes[slot], piece] == gold[: number + 1]
                    for slot, piece, _, _ in held
                )
            if not alive and where is None and gold[:number] in prefixes:
                where = number
            for slot, _, score, alone in held:
                assert score == pytest.approx(slots[slot][1] + alone, abs=0.01)
            slots = [(prefixes[s] + [piece], score) for s, piece, score, _ in held]
        assert shown["gold"]["lost"] == where
        lost += where is not None
        is_found = any(each["pieces"] == gold for each in shown["finished"])
        assert is_found == (shown["gold"]["fate"] in ("best", "finished"))
        scores = [each["score"] for each in shown["finished"]]
        assert scores == sorted(scores, reverse=True)
        if shown["gold"]["fate"] == "search error":
            assert shown["gold"]["score"] > scores[0]
    assert 0 < lost < len(searches)  # both cases were seen


@pytest.mark.parametrize(
    ("config", "own"),
    [
        ({}, 2.0),
        ({"criterion": "soft_beam_search", "epsilon": 0.8, "epsilon_end": 0.4}, 0.4),
        ({"beam_loss": "risk=1,survival=0.3", "survival_epsilon": 1.5}, 1.5),
    ],
)
def test_the_middle_epsilon_is_the_runs_own(config: Any, own: float) -> None:
    assert epsilons_of(config) == [own / 4, own, 4 * own]


def test_the_widest_beam_that_is_allowed_can_be_searched_and_no_wider_one(
    task: Any, collate: Any, sentences: Any, make_model: Any, tmp_path: Path
) -> None:
    from fairseq_plugins.beam.rescore import Wanted, search

    model, words = make_model("lstm").eval(), len(task.target_dictionary)
    run = evaluated(tmp_path, [{}])
    task.target_dictionary.save(str(tmp_path / "corpus" / "bin" / "dict.y.txt"))
    rule = rf"`--explore-beam` must be at most {words - 2}, .*, but is {words - 1}\."
    with pytest.raises(UserError, match=rule):
        collect([[run]], options=ReportOptions(explore_beam=words - 1))

    def searched(beam_size: int) -> BeamTrace:
        sample = collate(sentences[:2])
        source = sample["net_input"]
        return search(
            model, model.encoder(source["src_tokens"], source["src_lengths"]),
            source["prev_output_tokens"][:, 0], sample["target"],
            settings=_settings(task, model, beam_size),
            what=Wanted(gold=True, finished=True, first_slot=False),
        )  # fmt: skip

    with torch.no_grad():
        assert searched(words - 2).beam_size == words - 2
        with pytest.raises((RuntimeError, IndexError)):
            searched(words - 1)
