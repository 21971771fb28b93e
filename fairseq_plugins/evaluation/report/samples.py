"""Score single sentences, and choose the sentences to show."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Sequence

from sacrebleu.metrics import BLEU, CHRF

from fairseq_plugins.evaluation.report.runs import ReportRun
from fairseq_plugins.utils.files import read_lines

__all__ = ["ScoredSentences", "choose_sentences", "score_sentences"]


def score_sentences(
    hypotheses: Sequence[str], references: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Return sentence BLEU (effective order, smoothed) and chrF of each pair."""
    bleu, chrf = BLEU(effective_order=True), CHRF()
    pairs = list(zip(hypotheses, references, strict=True))
    return (
        [bleu.sentence_score(ours, [gold]).score for ours, gold in pairs],
        [chrf.sentence_score(ours, [gold]).score for ours, gold in pairs],
    )


def choose_sentences(changes: Sequence[float], count: int, *, seed: int) -> list[int]:
    """Return the numbers of sentences to show, in corpus order.

    Two fifths are the greatest gains and two fifths the greatest losses. The others
    are drawn at random, so that the report does not show extremes only.

    Args:
        changes: differences of sentence scores, in corpus order.
        count: number of sentences; all of them if there are fewer.
        seed: of the random choice.
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
    """All sentences of a test set; each list of lists has one list for each run."""

    sources: list[str]
    references: list[str]
    hypotheses: list[list[str]]
    bleu: list[list[float]]
    chrf: list[list[float]]
    beam: int

    @classmethod
    def read(cls, runs: Sequence[ReportRun], subset: str, beam: int) -> ScoredSentences:
        references = runs[0].references(subset)
        hypotheses = [run.scores[subset][beam].hypotheses for run in runs]
        scores = [score_sentences(lines, references) for lines in hypotheses]
        return cls(
            sources=read_lines(runs[0].corpus.subsets[subset].source),
            references=references,
            hypotheses=hypotheses,
            bleu=[bleu for bleu, _ in scores],
            chrf=[chrf for _, chrf in scores],
            beam=beam,
        )

    def changes(self) -> list[float]:
        """Return the changes of chrF from the first run (the control) to the last.

        Sentence BLEU is zero too often to rank sentences by it.
        """
        return [ours - base for base, ours in zip(self.chrf[0], self.chrf[-1])]

    def samples(self, count: int, *, seed: int) -> dict[str, Any]:
        """Return chosen sentences side by side as JSON; see `choose_sentences`."""
        chosen = choose_sentences(self.changes(), count, seed=seed)
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
