"""Detokenised BLEU and chrF with their signatures, by sacrebleu."""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Sequence

from sacrebleu.metrics import BLEU, CHRF

from fairseq_plugins.pipeline.errors import UserError

__all__ = ["Scores", "check_comparable", "score"]

# What SentencePiece and subword-nmt leave in text that was not put together again.
_SUBWORD_MARK = re.compile(r"▁|@@( |$)")
_MAX_SHOWN = 80


@dataclass(frozen=True)
class Scores:
    """Corpus scores of one system; higher is better.

    Attributes:
        bleu: BLEU, 0 to 100 (Papineni et al., 2002).
        bleu_signature: how it was computed; quote it with the score (Post, 2018).
        precisions: n-gram precisions for n = 1 to 4, in percent.
        brevity_penalty: at most 1.
        hypothesis_tokens: length of the hypotheses in BLEU's tokens.
        reference_tokens: length of the references in BLEU's tokens.
        chrf: chrF2, 0 to 100 (Popović, 2015).
        chrf_signature: how it was computed.
    """

    bleu: float
    bleu_signature: str
    precisions: list[float]
    brevity_penalty: float
    hypothesis_tokens: int
    reference_tokens: int
    chrf: float
    chrf_signature: str


def score(hypotheses: Sequence[str], references: Sequence[str]) -> Scores:
    """Score plain, untokenised hypotheses against one raw reference each.

    Raises:
        UserError: the texts are not comparable; see :func:`check_comparable`.
    """
    check_comparable(hypotheses, references)
    bleu, chrf = BLEU(), CHRF()
    bleu_score = bleu.corpus_score(hypotheses, [references])
    chrf_score = chrf.corpus_score(hypotheses, [references])
    return Scores(
        bleu=bleu_score.score,
        bleu_signature=str(bleu.get_signature()),
        precisions=bleu_score.precisions,
        brevity_penalty=bleu_score.bp,
        hypothesis_tokens=bleu_score.sys_len,
        reference_tokens=bleu_score.ref_len,
        chrf=chrf_score.score,
        chrf_signature=str(chrf.get_signature()),
    )


def check_comparable(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Refuse what gives a wrong score without a word.

    Raises:
        UserError: there is nothing to score, the numbers of lines differ, or a line
            still holds subword marks.
    """
    if len(hypotheses) != len(references) or not references:
        raise UserError(
            "hypotheses and references must be equally many and not none, but are "
            f"{len(hypotheses):,} and {len(references):,}."
        )
    for name, lines in (("hypothesis", hypotheses), ("reference", references)):
        for number, line in enumerate(lines, start=1):
            if _SUBWORD_MARK.search(line):
                raise UserError(
                    f"{name} {number:,} must be plain text, but holds subword marks: "
                    f"`{line[:_MAX_SHOWN]}`."
                )
