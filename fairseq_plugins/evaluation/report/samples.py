"""Scores of single sentences, and which of them are worth a look."""
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Sequence

from sacrebleu.metrics import BLEU, CHRF

__all__ = ["SentenceScores", "chosen_sentences", "score_sentences"]


@dataclass(frozen=True)
class SentenceScores:
    """Sentence scores of one system, 0 to 100, in corpus order."""

    bleu: list[float]
    chrf: list[float]


def score_sentences(
    hypotheses: Sequence[str], references: Sequence[str]
) -> SentenceScores:
    """Return sentence BLEU (with effective order, smoothed) and chrF of each pair."""
    bleu, chrf = BLEU(effective_order=True), CHRF()
    pairs = list(zip(hypotheses, references, strict=True))
    return SentenceScores(
        bleu=[bleu.sentence_score(ours, [gold]).score for ours, gold in pairs],
        chrf=[chrf.sentence_score(ours, [gold]).score for ours, gold in pairs],
    )


def chosen_sentences(changes: Sequence[float], count: int, *, seed: int) -> list[int]:
    """Return sentences to show: the greatest changes, and others to be fair.

    Two fifths are the greatest gains, two fifths the greatest losses, and the rest is
    drawn at random, so that the page is no list of extremes only.

    Args:
        changes: of the sentences' scores, in corpus order.
        count: how many are wanted; fewer if there are fewer.
        seed: of what is drawn.

    Returns:
        numbers of sentences, in corpus order.
    """
    everything = list(range(len(changes)))
    if count >= len(everything):
        return everything
    order = sorted(everything, key=lambda i: (changes[i], i))
    extremes = 2 * count // 5
    losses = [i for i in order[:extremes] if changes[i] < 0]
    gains = [i for i in order[len(order) - extremes :] if changes[i] > 0]
    chosen = set(losses + gains)
    others = [i for i in everything if i not in chosen]
    chosen.update(random.Random(seed).sample(others, count - len(chosen)))
    return sorted(chosen)
