"""BLEU of text that is tokenised already, as older papers give it.

Such a score is that of a tokeniser, too, and no two papers' are comparable unless they
used the same. It is never the headline here: that is :mod:`scoring`'s.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Sequence

from sacrebleu.metrics import BLEU

from fairseq_plugins.utils.errors import UserError

__all__ = [
    "TokenisedBleu",
    "compound_split_bleu",
    "moses_tokenise",
    "scores_of_older_papers",
    "tokenised_bleu",
]

# First of the characters of private use, which no text should hold.
_PRIVATE = 0xE000
_WHITE_SPACE = re.compile(r"[^\S ]")
_COMPOUND = re.compile(r"(\S)-(\S)")


@dataclass(frozen=True)
class TokenisedBleu:
    """BLEU without smoothing over given tokens.

    Attributes:
        bleu: 0 to 100.
        precisions: for n = 1 to 4, in percent.
        brevity_penalty: at most 1.
        ratio: of the two lengths.
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


def tokenised_bleu(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    only_spaces: bool = False,
) -> TokenisedBleu:
    """Return BLEU of tokens with white space between them.

    Args:
        hypotheses: tokenised, one per sentence.
        references: tokenised in the same way, one per sentence.
        only_spaces: every single space ends a token and no other character does, so
            that an empty line holds one empty token, as in tensorflow/nmt. Otherwise
            any white space ends a token, as in Moses' ``multi-bleu.perl``.

    Raises:
        UserError: there is nothing to score, or the numbers of lines differ.
    """
    if len(hypotheses) != len(references) or not references:
        raise UserError(
            "hypotheses and references must be equally many and not none, but are "
            f"{len(hypotheses):,} and {len(references):,}."
        )
    if only_spaces:
        hypotheses = [_spaces_only(line) for line in hypotheses]
        references = [_spaces_only(line) for line in references]
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    result = metric.corpus_score(hypotheses, [references])
    return TokenisedBleu(
        bleu=result.score,
        precisions=result.precisions,
        brevity_penalty=result.bp,
        ratio=result.sys_len / max(1, result.ref_len),
        hypothesis_tokens=result.sys_len,
        reference_tokens=result.ref_len,
    )


def compound_split_bleu(
    hypotheses: Sequence[str], references: Sequence[str]
) -> TokenisedBleu:
    """Return BLEU after hyphenated words are split, as fairseq's and tensor2tensor's.

    Both put marks around a hyphen between two letters (``compound_split_bleu.sh``,
    ``get_ende_bleu.sh``). Of two systems in ``tests/test_published_scores.py`` it makes
    German BLEU half a point greater.

    Raises:
        UserError: as :func:`tokenised_bleu`.
    """
    return tokenised_bleu(
        [_split_compounds(line) for line in hypotheses],
        [_split_compounds(line) for line in references],
    )


def moses_tokenise(lines: Sequence[str], language: str) -> list[str]:
    """Tokenise like Moses' ``tokenizer.perl -no-escape -l LANGUAGE``.

    Raises:
        UserError: the package sacremoses is not installed.
    """
    try:
        from sacremoses import MosesTokenizer
    except ImportError:
        raise UserError(
            "tokenised BLEU of raw text needs the package sacremoses: "
            "pip install -e '.[moses]'."
        ) from None
    tokeniser = MosesTokenizer(lang=language)
    return [
        " ".join(tokeniser.tokenize(line, escape=False)) if line.strip() else ""
        for line in lines
    ]


def _split_compounds(line: str) -> str:
    return _COMPOUND.sub(r"\1 ##AT##-##AT## \2", line)


def _spaces_only(line: str) -> str:
    """Make the tokens between single spaces the only ones that sacrebleu sees."""
    line = _WHITE_SPACE.sub(lambda match: chr(_PRIVATE + ord(match[0]) % 4096), line)
    return " ".join(token or chr(_PRIVATE) for token in line.split(" "))


def scores_of_older_papers(
    hypotheses: Sequence[str], references: Sequence[str], language: str
) -> dict[str, Any]:
    """Tokenise raw text like Moses and score it in the two ways of older papers.

    Returns:
        ``tokenised_bleu`` and ``compound_split_bleu`` with the fields of
        :class:`TokenisedBleu`, and ``tokenised_by``.

    Raises:
        UserError: as :func:`moses_tokenise` and :func:`tokenised_bleu`.
    """
    texts = [moses_tokenise(lines, language) for lines in (hypotheses, references)]
    return {
        "tokenised_bleu": asdict(tokenised_bleu(*texts)),
        "compound_split_bleu": asdict(compound_split_bleu(*texts)),
        "tokenised_by": f"sacremoses {version('sacremoses')}, -l {language}",
    }
