"""What BLEU counts in each sentence, counted once for all scores that it makes.

Detokenised BLEU, chrF and TER with their signatures, by sacrebleu, and what else
a text tells about the system that made it.

What a beam held: the best translation in it, and the references that it missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

from sacrebleu.metrics import BLEU, CHRF, TER

from fairseq_plugins.evaluation.checks import MAX_EMPTY, check_comparable
from fairseq_plugins.evaluation.translate import Hypothesis, Reference
from fairseq_plugins.utils.errors import UserError

__all__ = [
    "BleuCounts",
    "Counts",
    "Scores",
    "bleu",
    "corpus_bleu",
    "oracle_bleu",
    "repetition",
    "score",
    "search_errors",
]

Counts = list[int]


class BleuCounts:
    """sacrebleu's BLEU against these references, whose n-grams are counted once."""

    def __init__(self, references: Sequence[str]) -> None:
        # `check_comparable` decides whether text is tokenised; sacrebleu would only
        # warn.
        self._corpus = BLEU(force=True)
        self._sentence = BLEU(force=True, effective_order=True)
        self._references = self._corpus._cache_references([references])

    @property
    def signature(self) -> str:
        return str(self._corpus.get_signature())

    def of(self, hypothesis: str, number: int) -> Counts:
        """Count in a hypothesis for sentence ``number``, from 0."""
        segment = self._corpus._preprocess_segment(hypothesis)
        counts: Counts = self._corpus._compute_segment_statistics(
            segment, self._references[number]
        )
        return counts

    def of_all(self, hypotheses: Sequence[str]) -> list[Counts]:
        """Count in a hypothesis for each sentence."""
        return [self.of(line, number) for number, line in enumerate(hypotheses)]

    def corpus_score(self, counts: Sequence[Counts]) -> Any:
        """Return sacrebleu's score object of these sentences together."""
        return self._corpus._aggregate_and_compute(counts)

    def sentence_score(self, counts: Counts) -> float:
        """Return sentence BLEU with effective order, 0 to 100."""
        return float(self._sentence._compute_score_from_stats(counts).score)


# Longest sentence of each bucket but the last, in words of the reference.
_LENGTHS = (5, 10, 15, 20, 30, 40, 50, 60)


@dataclass(frozen=True)
class Scores:
    """Corpus scores of one system; ``dataclasses.asdict`` makes it JSON.

    Attributes:
        forced: the texts look wrong, and were scored all the same.
        bleu: BLEU, 0 to 100 (Papineni et al., 2002).
        bleu_signature: how it was computed; quote it with the score (Post, 2018).
        precisions: n-gram precisions for n = 1 to 4, in percent.
        brevity_penalty: at most 1.
        hypothesis_tokens: length of the hypotheses in BLEU's tokens.
        reference_tokens: length of the references in BLEU's tokens.
        length_ratio: of the two.
        chrf: chrF2, 0 to 100 (Popović, 2015).
        chrf_signature: how it was computed.
        ter: translation edit rate in percent, lower is better (Snover et al., 2006).
        ter_signature: how it was computed.
        repetition: see :func:`repetition`.
        reference_repetition: the same of the references: what is natural.
        empty: hypotheses without a word.
        bleu_by_length: corpus BLEU of the sentences of each length of the reference in
            words, split at spaces: for each bucket that holds a sentence, shortest
            first, ``from_words``, ``to_words`` (``None``: no limit), ``sentences`` and
            ``bleu``. Every sentence is in one bucket.
    """

    forced: bool
    bleu: float
    bleu_signature: str
    precisions: list[float]
    brevity_penalty: float
    hypothesis_tokens: int
    reference_tokens: int
    length_ratio: float
    chrf: float
    chrf_signature: str
    ter: float
    ter_signature: str
    repetition: float
    reference_repetition: float
    empty: int
    bleu_by_length: list[dict[str, Any]]


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    sources: Sequence[str] | None = None,
    max_empty: float = MAX_EMPTY,
    force: bool = False,
) -> Scores:
    """Score plain, untokenised hypotheses against one raw reference each.

    Args:
        hypotheses: one per sentence.
        references: one per sentence.
        sources: what was translated, for checks only.
        max_empty: share of hypotheses that may be empty.
        force: score what :func:`check_comparable` refuses, if only there are as many
            hypotheses as references.

    Raises:
        UserError: the texts are not comparable; see :func:`check_comparable`.
    """
    forced = False
    try:
        check_comparable(hypotheses, references, sources=sources, max_empty=max_empty)
    except UserError:
        if not force or len(hypotheses) != len(references) or not references:
            raise
        forced = True
    chrf, ter = CHRF(), TER()
    counting = BleuCounts(references)
    counts = counting.of_all(hypotheses)
    bleu_score = counting.corpus_score(counts)
    chrf_score = chrf.corpus_score(hypotheses, [references])
    ter_score = ter.corpus_score(hypotheses, [references])
    return Scores(
        forced=forced,
        bleu=bleu_score.score,
        bleu_signature=counting.signature,
        precisions=bleu_score.precisions,
        brevity_penalty=bleu_score.bp,
        hypothesis_tokens=bleu_score.sys_len,
        reference_tokens=bleu_score.ref_len,
        length_ratio=bleu_score.sys_len / max(1, bleu_score.ref_len),
        chrf=chrf_score.score,
        chrf_signature=str(chrf.get_signature()),
        ter=ter_score.score,
        ter_signature=str(ter.get_signature()),
        repetition=repetition(hypotheses),
        reference_repetition=repetition(references),
        empty=sum(1 for line in hypotheses if not line.strip()),
        bleu_by_length=_by_length(references, counting, counts),
    )


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[Any, str]:
    """Return sacrebleu's score object of BLEU alone, and its signature; no checks."""
    counting = BleuCounts(references)
    score = counting.corpus_score(counting.of_all(hypotheses))
    return score, counting.signature


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return BLEU alone, 0 to 100, as in :class:`Scores`."""
    return float(bleu(hypotheses, references)[0].score)


def _by_length(
    references: Sequence[str], counting: BleuCounts, counts: Sequence[Counts]
) -> list[dict[str, Any]]:
    buckets: dict[int, list[Counts]] = {}
    for of_sentence, reference in zip(counts, references):
        words = len(reference.split())
        place = sum(1 for longest in _LENGTHS if words > longest)
        buckets.setdefault(place, []).append(of_sentence)
    starts, ends = (0, *(longest + 1 for longest in _LENGTHS)), (*_LENGTHS, None)
    return [
        {
            "from_words": starts[place],
            "to_words": ends[place],
            "sentences": len(buckets[place]),
            "bleu": float(counting.corpus_score(buckets[place]).score),
        }
        for place in sorted(buckets)
    ]


def repetition(lines: Sequence[str]) -> float:
    """Return the share of word pairs that stood earlier in the same line.

    It is seq-rep-2 of Welleck et al. (2020), over all lines together: 0 without any
    repetition, near 1 for lines that say one thing again and again.
    """
    total = distinct = 0
    for line in lines:
        words = line.split()
        pairs = list(zip(words, words[1:]))
        total += len(pairs)
        distinct += len(set(pairs))
    return 1 - distinct / total if total else 0.0


# Scores of one sentence in two batches differ by rounding.
_TOLERANCE = 1e-4


def oracle_bleu(nbest: Sequence[Sequence[str]], references: Sequence[str]) -> float:
    """Return BLEU of each sentence's hypothesis that has the greatest sentence BLEU.

    The first wins a tie. It is what a perfect reranker of the beam could reach (about:
    sentence BLEU is not what corpus BLEU is made of).

    Args:
        nbest: plain text, best first by the model.
        references: one per sentence.
    """
    counting = BleuCounts(references)
    best = []
    for number, hypotheses in enumerate(nbest):
        counts = [counting.of(text, number) for text in dict.fromkeys(hypotheses)]
        best.append(max(counts, key=counting.sentence_score))
    return float(counting.corpus_score(best).score)


def search_errors(
    best: Sequence[Hypothesis], references: Sequence[Reference], *, lenpen: float
) -> list[bool]:
    """Tell for which sentences the search missed a better one: the reference itself.

    There the model gives the reference a greater score than the hypothesis that the
    search ended with, so that it did not find the best there is. Elsewhere it may have
    missed others: the share of ``True`` is a lower bound of the rate of search errors.

    Args:
        best: what the search found, scored with the same ``lenpen``.
        references: what the model thinks of the references.
        lenpen: exponent of the length that scores are divided by.
    """
    return [
        reference.log_prob / reference.tokens**lenpen
        > found.score + _TOLERANCE * max(1.0, abs(found.score))
        for found, reference in zip(best, references)
    ]
