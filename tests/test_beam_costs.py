"""Costs of whole batches against one-sentence implementations of other origin."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_plugins.beam.costs import COSTS, bleu_cost, chrf_cost, edit_cost, gleu_cost

PAD = 1
sentences = st.lists(st.integers(4, 9), max_size=12)
pairs = st.lists(st.tuples(sentences, sentences), min_size=1, max_size=5)


def padded(rows: list[list[int]], pad: int = PAD) -> torch.Tensor:
    width = max(1, *map(len, rows)) if rows else 1
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


def smoothed_bleu(hypothesis: list[int], reference: list[int]) -> float:
    """Sentence BLEU by counting, with add-one smoothing of orders 2 to 4."""
    if not hypothesis:
        return 0.0
    total = 0.0
    for order in range(1, 5):
        grams, others = (
            Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1))
            for text in (hypothesis, reference)
        )
        matches = sum((grams & others).values()) + (order > 1)
        possible = sum(grams.values()) + (order > 1)
        if matches == 0:
            return 0.0
        total += math.log(matches / possible)
    brevity = min(0.0, 1 - len(reference) / len(hypothesis))
    return math.exp(total / 4 + brevity)


def gleu(hypothesis: list[int], reference: list[int]) -> float:
    """The smaller of precision and recall, by counting."""
    sides = [
        Counter(
            tuple(text[i : i + order])
            for order in range(1, 5)
            for i in range(len(text) - order + 1)
        )
        for text in (hypothesis, reference)
    ]
    matches = sum((sides[0] & sides[1]).values())
    return matches / max(1, *(sum(side.values()) for side in sides))


def edit_distance(one: list[int], other: list[int]) -> int:
    row = list(range(len(other) + 1))
    for i, symbol in enumerate(one):
        before, row = row, [i + 1]
        for j, wanted in enumerate(other):
            changed = before[j] + (symbol != wanted)
            row.append(min(before[j + 1] + 1, row[j] + 1, changed))
    return row[-1]


@settings(max_examples=200, deadline=None)
@given(pairs)
def test_bleu_gleu_and_edit_costs_are_those_of_one_sentence_at_a_time(texts):
    hypotheses, references = (padded([t[i] for t in texts]) for i in (0, 1))
    expected = [1 - smoothed_bleu(*pair) for pair in texts]
    torch.testing.assert_close(
        bleu_cost(hypotheses, references, PAD), torch.tensor(expected)
    )
    torch.testing.assert_close(
        gleu_cost(hypotheses, references, PAD),
        torch.tensor([1 - gleu(*pair) for pair in texts]),
    )
    edits = [edit_distance(*t) / max(1, *map(len, t)) for t in texts]
    torch.testing.assert_close(
        edit_cost(hypotheses, references, PAD), torch.tensor(edits)
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.text("abcd", max_size=15)] * 2), min_size=1, max_size=4))
def test_chrf_cost_is_sacrebleus_chrf(texts):
    from sacrebleu.metrics import CHRF

    rows = [padded([[ord(c) for c in t[i]] for t in texts], pad=0) for i in (0, 1)]
    metric = CHRF()
    expected = [1 - metric.sentence_score(h, [r]).score / 100 for h, r in texts]
    torch.testing.assert_close(
        chrf_cost(*rows, 0), torch.tensor(expected), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", COSTS)
def test_a_cost_is_0_for_the_reference_and_1_for_nothing_in_common(name):
    gold = torch.tensor([[4, 5, 6, 7, 8]])
    other = torch.tensor([[9, 9, 9, 9, 9]])
    assert COSTS[name](gold, gold, PAD).tolist() == pytest.approx([0.0], abs=1e-6)
    assert COSTS[name](other, gold, PAD).tolist() == [1.0]


@pytest.mark.parametrize("name", COSTS)
def test_more_padding_changes_no_cost(name):
    hypotheses = torch.tensor([[4, 5, 6, PAD], [7, 4, 4, 4]])
    references = torch.tensor([[4, 6, PAD], [4, 4, 7]])
    wide = torch.nn.functional.pad(hypotheses, (0, 5), value=PAD)
    long = torch.nn.functional.pad(references, (0, 9), value=PAD)
    torch.testing.assert_close(
        COSTS[name](wide, long, PAD), COSTS[name](hypotheses, references, PAD)
    )
