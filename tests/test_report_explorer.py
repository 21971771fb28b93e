"""The explorer's JSON is consistent with itself when one follows its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_report_runs import write_run

from fairseq_plugins.evaluation.report.build import ReportOptions, collect_data
from fairseq_plugins.evaluation.report.explorer import choose_epsilons, explore
from fairseq_plugins.utils.errors import UserError

BEAM = 3


@pytest.fixture
def searches(task: Any, sentences: Any, collate: Any, make_model: Any) -> Any:
    """Return searches in which every other reference is the best hypothesis."""
    model, dictionary = make_model("lstm").eval(), task.target_dictionary

    def run(items: list[dict[str, Any]]) -> dict[int, Any]:
        sample = collate(items)
        found = explore(model, dictionary, sample, beam_size=BEAM, epsilons=[2.0])
        return dict(zip(sample["id"].tolist(), found))

    # An untrained model prunes all references of the corpus.
    first = run(sentences)
    changed = [dict(item) for item in sentences]
    for item in changed[::2]:
        best = first[int(item["id"])]["finished"][0]
        item["target"] = torch.tensor(best["tokens"])
    return list(run(changed).values())


def test_gold_is_lost_where_no_slot_continues_it_and_scores_add_up(searches):
    lost = 0
    for shown in searches:
        gold = shown["gold"]["pieces"]
        slots: list[tuple[list[str], float]] = [([], 0.0)]
        where = None
        for number, step in enumerate(shown["steps"]):
            prefixes = [prefix for prefix, _ in slots]
            held = [step["candidates"][index] for index in step["held"]]
            ends = {slot for slot, _, _, finishes in step["ends"] if finishes}
            if number == len(gold):  # the reference can only end here
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
    assert 0 < lost < len(searches)  # both cases occur


@pytest.mark.parametrize(
    ("config", "own"),
    [
        ({}, 2.0),
        ({"criterion": "soft_beam_search", "epsilon": 0.8, "epsilon_end": 0.4}, 0.4),
        ({"beam_loss": "risk=1,survival=0.3", "survival_epsilon": 1.5}, 1.5),
    ],
)
def test_the_middle_epsilon_is_the_runs_own(config: Any, own: float) -> None:
    assert choose_epsilons(config) == [own / 4, own, 4 * own]


def test_the_widest_beam_that_is_allowed_can_be_searched_and_no_wider_one(
    task: Any, collate: Any, sentences: Any, make_model: Any, tmp_path: Path
) -> None:
    model, words = make_model("lstm").eval(), len(task.target_dictionary)
    run = write_run(tmp_path, [{}])
    task.target_dictionary.save(str(tmp_path / "corpus" / "bin" / "dict.y.txt"))
    rule = rf"`--explore-beam` must be at most {words - 2}, .*, but is {words - 1}\."
    with pytest.raises(UserError, match=rule):
        collect_data([[run]], options=ReportOptions(explore_beam=words - 1))

    def search(beam_size: int) -> Any:
        sample = collate(sentences[:2])
        return explore(
            model, task.target_dictionary, sample, beam_size=beam_size, epsilons=[2.0]
        )

    assert len(search(words - 2)[0]["steps"][0]["held"]) == words - 2
    with pytest.raises((RuntimeError, IndexError)):
        search(words - 1)


def test_a_search_without_a_reference_finds_the_same_hypotheses(
    task: Any, collate: Any, sentences: Any, make_model: Any
) -> None:
    model, sample = make_model("lstm").eval(), collate(sentences)

    def search(batch: Any) -> list[dict[str, Any]]:
        return explore(
            model, task.target_dictionary, batch, beam_size=BEAM, epsilons=[2.0]
        )

    with_references = search(sample)
    net_input = {key: sample["net_input"][key] for key in ("src_tokens", "src_lengths")}
    without = search({"net_input": net_input})
    for ours, theirs in zip(without, with_references, strict=True):
        assert ours["finished"] == theirs["finished"]
        assert ours["gold"] is None
        assert {step["gold"] for step in ours["steps"]} == {-1}
        # A pool has the reference even where it is not among the best candidates.
        first = [step["steps"][0]["candidates"][: 3 * BEAM] for step in (ours, theirs)]
        assert first[0] == first[1]
