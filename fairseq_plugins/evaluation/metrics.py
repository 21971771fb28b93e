"""BLEU, chrF and TER: every score of a text is computed here, by sacrebleu.

This is also the only file that uses sacrebleu's private functions. They give the counts
of each sentence, so that text is processed once for the scores of the corpus, of each
length, of the beam, and of the resamples of a significance test.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Sequence

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER

from fairseq_plugins.evaluation.checks import MAX_EMPTY, check_comparable, check_counts
from fairseq_plugins.evaluation.translate import Hypothesis, Reference
from fairseq_plugins.utils.errors import UserError

__all__ = [
    "TESTED_SACREBLEU",
    "BleuCounter",
    "Counts",
    "PooledBLEU",
    "PooledCHRF",
    "Scores",
    "SystemOutputs",
    "TokenizedBleu",
    "bleu",
    "compound_split_bleu",
    "corpus_bleu",
    "oracle_bleu",
    "repetition",
    "score",
    "score_from_counts",
    "score_like_older_papers",
    "search_errors",
    "tokenize_by_moses",
    "tokenized_bleu",
]

# Versions whose private functions were tested. setup.cfg requires the same.
TESTED_SACREBLEU = ">=2.3,<2.7"

# What BLEU counts in a sentence: lengths, and n-grams that match and that exist.
Counts = list[int]

# Longest sentence of each bucket except the last, in words of the reference.
_LENGTHS = (5, 10, 15, 20, 30, 40, 50, 60)

# Scores of one sentence in two batches differ by rounding.
_TOLERANCE = 1e-4

# First of the private-use characters, which no text should contain.
_PRIVATE = 0xE000
_WHITE_SPACE = re.compile(r"[^\S ]")
_COMPOUND = re.compile(r"(\S)-(\S)")


class BleuCounter:
    """BLEU against fixed references, whose n-grams are counted once."""

    def __init__(self, references: Sequence[str]) -> None:
        # `check_comparable` refuses tokenized text, sacrebleu would only warn.
        self._corpus = BLEU(force=True)
        self._sentence = BLEU(force=True, effective_order=True)
        self._references = self._corpus._cache_references([references])

    @property
    def signature(self) -> str:
        return str(self._corpus.get_signature())

    def count(self, hypothesis: str, number: int) -> Counts:
        """Return the counts of a hypothesis for sentence ``number``, from 0."""
        segment = self._corpus._preprocess_segment(hypothesis)
        counts: Counts = self._corpus._compute_segment_statistics(
            segment, self._references[number]
        )
        return counts

    def count_all(self, hypotheses: Sequence[str]) -> list[Counts]:
        """Return the counts of one hypothesis per sentence."""
        return [self.count(line, number) for number, line in enumerate(hypotheses)]

    def corpus_score(self, counts: Sequence[Counts]) -> Any:
        """Return sacrebleu's score object of these sentences together."""
        return self._corpus._aggregate_and_compute(counts)

    def sentence_score(self, counts: Counts) -> float:
        """Return sentence BLEU with effective order, 0 to 100."""
        return score_from_counts(self._sentence, counts)


@dataclass(frozen=True)
class Scores:
    """Corpus scores of one system; ``dataclasses.asdict`` makes it JSON.

    Attributes:
        forced: the texts look wrong and were scored with ``--force``.
        bleu: BLEU, 0 to 100 (Papineni et al., 2002).
        bleu_signature: how it was computed; quote it with the score (Post, 2018).
        precisions: n-gram precisions for n = 1 to 4, in percent.
        brevity_penalty: at most 1.
        hypothesis_tokens: length of the hypotheses in BLEU's tokens.
        reference_tokens: length of the references in BLEU's tokens.
        length_ratio: hypotheses to references.
        chrf: chrF2, 0 to 100 (Popović, 2015).
        chrf_signature: how it was computed.
        ter: translation edit rate in percent, lower is better (Snover et al., 2006).
        ter_signature: how it was computed.
        repetition: see :func:`repetition`.
        reference_repetition: the same for the references.
        empty: number of hypotheses without a word.
        bleu_by_length: corpus BLEU by length of the reference in words, split at
            spaces. For each bucket with at least one sentence, shortest first:
            ``from_words``, ``to_words`` (``None``: no limit), ``sentences``, ``bleu``.
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
    """Score plain, untokenized hypotheses against one raw reference each.

    Args:
        hypotheses: one per sentence.
        references: one per sentence.
        sources: source text, used in checks only.
        max_empty: fraction of hypotheses that may be empty.
        force: score texts that :func:`check_comparable` refuses. Their numbers of
            lines must be equal nevertheless.

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
    counter = BleuCounter(references)
    counts = counter.count_all(hypotheses)
    bleu_score = counter.corpus_score(counts)
    chrf_score = chrf.corpus_score(hypotheses, [references])
    ter_score = ter.corpus_score(hypotheses, [references])
    return Scores(
        forced=forced,
        bleu=bleu_score.score,
        bleu_signature=counter.signature,
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
        bleu_by_length=_bleu_by_length(references, counter, counts),
    )


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[Any, str]:
    """Return sacrebleu's score object of BLEU and its signature, without checks."""
    counter = BleuCounter(references)
    return counter.corpus_score(counter.count_all(hypotheses)), counter.signature


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return BLEU alone, 0 to 100, as in :class:`Scores`, without checks."""
    return float(bleu(hypotheses, references)[0].score)


def _bleu_by_length(
    references: Sequence[str], counter: BleuCounter, counts: Sequence[Counts]
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
            "bleu": float(counter.corpus_score(buckets[place]).score),
        }
        for place in sorted(buckets)
    ]


def repetition(lines: Sequence[str]) -> float:
    """Return the fraction of word pairs that occurred earlier in the same line.

    This is seq-rep-2 of Welleck et al. (2020), over all lines together: 0 without any
    repetition, near 1 for lines that repeat one phrase.
    """
    total = distinct = 0
    for line in lines:
        words = line.split()
        pairs = list(zip(words, words[1:]))
        total += len(pairs)
        distinct += len(set(pairs))
    return 1 - distinct / total if total else 0.0


def oracle_bleu(nbest: Sequence[Sequence[str]], references: Sequence[str]) -> float:
    """Return BLEU of the hypotheses with the greatest sentence BLEU in each beam.

    The first one wins a tie. A perfect reranker would reach about this score; sentence
    BLEU only approximates corpus BLEU.

    Args:
        nbest: plain text, best first by the model.
        references: one per sentence.
    """
    counter = BleuCounter(references)
    best = []
    for number, hypotheses in enumerate(nbest):
        counts = [counter.count(text, number) for text in dict.fromkeys(hypotheses)]
        best.append(max(counts, key=counter.sentence_score))
    return float(counter.corpus_score(best).score)


def search_errors(
    best: Sequence[Hypothesis], references: Sequence[Reference], *, lenpen: float
) -> list[bool]:
    """Return for each sentence whether the model prefers the reference.

    If it does, the search missed a better translation. It may have missed others as
    well, so the fraction of ``True`` is a lower bound of the search error rate.

    Args:
        best: hypotheses that the search found, scored with the same ``lenpen``.
        references: the model's scores of the references.
        lenpen: exponent of the length by which scores are divided.
    """
    return [
        reference.log_prob / reference.tokens**lenpen
        > found.score + _TOLERANCE * max(1.0, abs(found.score))
        for found, reference in zip(best, references)
    ]


def score_from_counts(metric: BLEU | CHRF, counts: Any) -> float:
    """Return a metric's score, 0 to 100, from its counts in one or more sentences."""
    return float(metric._compute_score_from_stats(counts).score)


class SystemOutputs:
    """The translations of one system by each of its training runs.

    ``len()`` is the number of sentences: sacrebleu's tests take this for a list of
    hypotheses. The runs' translations of a sentence are good or bad together, so three
    runs are not a test set of three times the size. Therefore counts are added per
    sentence, and tests draw or exchange sentences.
    """

    def __init__(
        self, texts: Sequence[Sequence[str]], references: Sequence[str]
    ) -> None:
        self.texts = texts
        self.references = references
        self._counts: dict[type, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.references)

    def counts(self, metric: BLEU | CHRF) -> np.ndarray:
        """Return a metric's counts, shape (runs, sentences, counts)."""
        kind = type(metric)
        if kind not in self._counts:
            plain = BLEU(force=True) if isinstance(metric, BLEU) else CHRF()
            counts = [
                plain._extract_corpus_statistics(list(text), [self.references])
                for text in self.texts
            ]
            self._counts[kind] = np.array(counts, dtype=np.float64)
        return self._counts[kind]

    def sentence_scores(self, metric: BLEU | CHRF) -> list[float]:
        """Return the score of each sentence over all runs together."""
        return [
            score_from_counts(metric, row) for row in self.counts(metric).sum(axis=0)
        ]


class _Pooled:
    """Lets a metric take :class:`SystemOutputs` as its hypotheses."""

    def _extract_corpus_statistics(
        self, hypotheses: SystemOutputs, references: Any
    ) -> list[list[float]]:
        assert isinstance(self, (BLEU, CHRF))
        self.num_refs = 1  # for the signature
        pooled: list[list[float]] = hypotheses.counts(self).sum(axis=0).tolist()
        return pooled


class PooledBLEU(_Pooled, BLEU):
    """BLEU of the translations of all training runs together."""


class PooledCHRF(_Pooled, CHRF):
    """chrF of the translations of all training runs together."""


@dataclass(frozen=True)
class TokenizedBleu:
    """BLEU without smoothing over given tokens, as in older papers.

    It depends on the tokenizer, so two papers are comparable only if they used the same
    one. Report :class:`Scores` instead.

    Attributes:
        bleu: 0 to 100.
        precisions: for n = 1 to 4, in percent.
        brevity_penalty: at most 1.
        ratio: length of the hypotheses to length of the references.
        hypothesis_tokens: length of the hypotheses.
        reference_tokens: length of the references.
    """

    bleu: float
    precisions: list[float]
    brevity_penalty: float
    ratio: float
    hypothesis_tokens: int
    reference_tokens: int

    def __str__(self) -> str:
        """Return the line that multi-bleu.perl prints."""
        precisions = "/".join(f"{value:.1f}" for value in self.precisions)
        return (
            f"BLEU = {self.bleu:.2f}, {precisions} (BP={self.brevity_penalty:.3f}, "
            f"ratio={self.ratio:.3f}, hyp_len={self.hypothesis_tokens}, "
            f"ref_len={self.reference_tokens})"
        )


def tokenized_bleu(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    only_spaces: bool = False,
) -> TokenizedBleu:
    """Return BLEU of tokens that are separated by white space.

    Args:
        hypotheses: tokenized, one per sentence.
        references: tokenized in the same way, one per sentence.
        only_spaces: only single spaces separate tokens, and an empty line has one empty
            token, as in tensorflow/nmt. By default any white space separates tokens, as
            in Moses' ``multi-bleu.perl``.

    Raises:
        UserError: there are no lines, or the numbers of lines differ.
    """
    check_counts(hypotheses, references)
    if only_spaces:
        hypotheses = [_hide_other_spaces(line) for line in hypotheses]
        references = [_hide_other_spaces(line) for line in references]
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    result = metric.corpus_score(hypotheses, [references])
    return TokenizedBleu(
        bleu=result.score,
        precisions=result.precisions,
        brevity_penalty=result.bp,
        ratio=result.sys_len / max(1, result.ref_len),
        hypothesis_tokens=result.sys_len,
        reference_tokens=result.ref_len,
    )


def compound_split_bleu(
    hypotheses: Sequence[str], references: Sequence[str]
) -> TokenizedBleu:
    """Return tokenized BLEU after hyphenated words are split.

    Both fairseq's ``compound_split_bleu.sh`` and tensor2tensor's ``get_ende_bleu.sh``
    put marks around a hyphen between two letters. This made the German BLEU of two
    systems half a point greater (``tests/test_published_scores.py``).

    Raises:
        UserError: as in :func:`tokenized_bleu`.
    """
    texts = [
        [_COMPOUND.sub(r"\1 ##AT##-##AT## \2", line) for line in lines]
        for lines in (hypotheses, references)
    ]
    return tokenized_bleu(*texts)


def tokenize_by_moses(lines: Sequence[str], language: str) -> list[str]:
    """Tokenize like Moses' ``tokenizer.perl -no-escape -l LANGUAGE``.

    Raises:
        UserError: the package sacremoses is not installed.
    """
    try:
        from sacremoses import MosesTokenizer
    except ImportError:
        raise UserError(
            "tokenized BLEU of raw text needs the package sacremoses: "
            "pip install -e '.[moses]'."
        ) from None
    tokenizer = MosesTokenizer(lang=language)
    return [
        " ".join(tokenizer.tokenize(line, escape=False)) if line.strip() else ""
        for line in lines
    ]


def score_like_older_papers(
    hypotheses: Sequence[str], references: Sequence[str], language: str | None
) -> dict[str, Any]:
    """Return tokenized and compound-split BLEU as JSON.

    Args:
        hypotheses: one per sentence.
        references: one per sentence.
        language: tokenize raw text like Moses in this language. Without it the texts
            must be tokenized already.

    Returns:
        ``tokenised_bleu`` and ``compound_split_bleu`` with the fields of
        :class:`TokenizedBleu`, and ``tokenised_by`` if a language is given.

    Raises:
        UserError: as in :func:`tokenize_by_moses` and :func:`tokenized_bleu`.
    """
    texts: list[Sequence[str]] = [hypotheses, references]
    by = {}
    if language is not None:
        texts = [tokenize_by_moses(lines, language) for lines in texts]
        by = {"tokenised_by": f"sacremoses {version('sacremoses')}, -l {language}"}
    return {
        "tokenised_bleu": asdict(tokenized_bleu(*texts)),
        "compound_split_bleu": asdict(compound_split_bleu(*texts)),
        **by,
    }


def _hide_other_spaces(line: str) -> str:
    """Make single spaces the only separators that sacrebleu sees."""
    line = _WHITE_SPACE.sub(lambda match: chr(_PRIVATE + ord(match[0]) % 4096), line)
    return " ".join(token or chr(_PRIVATE) for token in line.split(" "))
