"""Scores of sentences and of lengths, the choice of sentences, and short names."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fairseq_plugins.evaluation.compare import short_names, system_names
from fairseq_plugins.evaluation.metrics import score
from fairseq_plugins.evaluation.report.samples import choose_sentences, score_sentences
from fairseq_plugins.evaluation.report.scores import bleu_by_length, length_buckets


def test_chosen_sentences_are_extremes_of_both_signs_and_others():
    rng = random.Random(3)
    changes = [rng.gauss(0, 1) for _ in range(500)]
    chosen = choose_sentences(changes, 20, seed=1)
    assert len(set(chosen)) == 20 and chosen == sorted(chosen)
    order = sorted(range(500), key=lambda i: changes[i])
    assert set(order[:8]) | set(order[-8:]) <= set(chosen)
    assert chosen == choose_sentences(changes, 20, seed=1)
    assert chosen != choose_sentences(changes, 20, seed=2)
    assert choose_sentences(changes, 900, seed=1) == list(range(500))
    assert len(choose_sentences([0.0] * 30, 10, seed=1)) == 10


def test_bleu_by_length_covers_every_sentence_once_and_one_bucket_is_corpus_bleu():
    rng = random.Random(4)
    gold = [" ".join(rng.choices("abcdefg", k=rng.randint(1, 30))) for _ in range(400)]
    ours = [line.replace("a", "b") for line in gold]
    buckets = length_buckets(gold)
    assert 2 <= len(buckets) <= 6
    assert all(one[1] + 1 == two[0] for one, two in zip(buckets, buckets[1:]))
    lengths = [len(line.split()) for line in gold]
    assert buckets[0][0] == min(lengths) and buckets[-1][1] == max(lengths)
    assert None not in bleu_by_length(ours, gold, buckets)
    whole = bleu_by_length(ours, gold, [(0, 99)])
    assert whole == [pytest.approx(score(ours, gold).bleu)]
    assert bleu_by_length(ours, gold, [(90, 99)]) == [None]


def test_sentence_scores_are_100_for_the_reference_itself():
    same = "the cat sat on it"
    bleu, chrf = score_sentences([same, "no"], [same, "yes"])
    assert bleu[0] == pytest.approx(100) and chrf[0] == pytest.approx(100)
    assert bleu[1] < 1 and chrf[1] < 20


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["de-en_lstm_soft_1", "de-en_lstm_control_1"], ["soft_1", "control_1"]),
        (["m30k/lstm", "m30k/lstm_soft"], ["lstm", "lstm_soft"]),
        (["start", "control"], ["start", "control"]),
        (["lstm_a"], ["lstm_a"]),
    ],
)
def test_names_lose_only_what_all_share(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short


@pytest.mark.parametrize(
    ("systems", "names"),
    [
        ([["r/lstm_soft_1", "r/lstm_soft_2"], ["r/lstm_x_1", "r/lstm_x_2"]],
         ["soft", "x"]),
        ([["r/1", "r/2"], ["s/1", "s/2"]], ["r", "s"]),
        ([["a_1", "b_1"], ["a_2", "b_2"]], ["a_1,b_1", "a_2,b_2"]),
        ([["r/lstm"], ["r/lstm_soft"]], ["lstm", "lstm_soft"]),
        ([["a/x.txt"], ["b/x.txt"], ["a/x.txt"]], ["a/x.txt", "b/x.txt", "a/x.txt"]),
    ],
)  # fmt: skip
def test_seeds_of_a_system_share_its_name(
    systems: list[list[str]], names: list[str]
) -> None:
    assert system_names([[Path(p) for p in paths] for paths in systems]) == names
