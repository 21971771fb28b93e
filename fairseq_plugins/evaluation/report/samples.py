"""Scores of single sentences, and which of them are worth a look."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Sequence

from sacrebleu.metrics import BLEU, CHRF

from fairseq_plugins.evaluation.report.runs import ReportRun, references_of
from fairseq_plugins.utils.files import read_lines

__all__ = [
    "ScoredSentences",
    "SentenceScores",
    "chosen_sentences",
    "score_sentences",
]


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


@dataclass(frozen=True)
class ScoredSentences:
    """All sentences of the test set that is shown, with scores for every system."""

    sources: list[str]
    references: list[str]
    hypotheses: list[list[str]]
    bleu: list[list[float]]
    chrf: list[list[float]]
    beam: int

    @classmethod
    def read(cls, runs: Sequence[ReportRun], subset: str, beam: int) -> ScoredSentences:
        references = references_of(runs[0], subset)
        hypotheses = [run.scores[subset][beam].hypotheses for run in runs]
        scores = [score_sentences(lines, references) for lines in hypotheses]
        return cls(
            sources=read_lines(runs[0].corpus.subsets[subset].source),
            references=references,
            hypotheses=hypotheses,
            bleu=[each.bleu for each in scores],
            chrf=[each.chrf for each in scores],
            beam=beam,
        )

    def changes(self) -> list[float]:
        """Return how much the last system changed chrF against the control.

        A sentence's BLEU is zero too often to say much.
        """
        return [ours - base for base, ours in zip(self.chrf[0], self.chrf[-1])]

    def samples(self, count: int, *, seed: int) -> dict[str, Any]:
        """Return the sentences side by side as JSON; see :func:`chosen_sentences`."""
        chosen = chosen_sentences(self.changes(), count, seed=seed)
        return {
            "beam": self.beam,
            "total": len(self.references),
            "sentences": [
                {
                    "number": number,
                    "source": self.sources[number],
                    "reference": self.references[number],
                    "hypotheses": [lines[number] for lines in self.hypotheses],
                    "bleu": [round(scores[number], 1) for scores in self.bleu],
                    "chrf": [round(scores[number], 1) for scores in self.chrf],
                }
                for number in chosen
            ],
        }
