"""Score two plain text files, whoever made them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairseq_plugins.evaluation.comet import comet_score
from fairseq_plugins.evaluation.evaluate import Scoring
from fairseq_plugins.evaluation.metrics import score
from fairseq_plugins.evaluation.test_sets import identify, known_sets, select
from fairseq_plugins.evaluation.tokenized import (
    compound_split_bleu,
    scores_of_older_papers,
    tokenised_bleu,
)
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_lines

__all__ = ["score_files"]


def score_files(
    hypotheses: Path,
    references: Path,
    *,
    source: Path | None = None,
    test_set: str | None = None,
    language: str | None = None,
    scoring: Scoring = Scoring(),
) -> dict[str, Any]:
    """Return the scores of a file of translations as JSON.

    Args:
        hypotheses: plain text, one sentence a line.
        references: raw text, one sentence a line.
        source: what was translated.
        test_set: what the files must be, such as ``newstest2014``. Of a part, such as
            ``newstest2014/2737``, files may have the lines of the whole set, too.
        language: tokenise in this language for ``scoring.tokenised``; without it, white
            space is what separates tokens already.
        scoring: what to score and what to refuse.

    Returns:
        the fields of :class:`scoring.Scores` and ``sentences``, ``test_set`` (the
        known one that has these references), and what ``scoring`` adds.

    Raises:
        UserError: a file is missing, or the texts are not comparable.
    """
    ours, theirs = _read(hypotheses, test_set), _read(references, test_set)
    sources = None if source is None else _read(source, test_set)
    if test_set is None:
        _check_same_set(len(ours), len(theirs))
    scores = score(
        ours, theirs, sources=sources, max_empty=scoring.max_empty, force=scoring.force
    )
    known = identify(theirs)
    result: dict[str, Any] = {
        **asdict(scores),
        "sentences": len(ours),
        "test_set": known.name if known else None,
    }
    if scoring.tokenised and language is not None:
        result |= scores_of_older_papers(ours, theirs, language)
    elif scoring.tokenised:
        result["tokenised_bleu"] = asdict(tokenised_bleu(ours, theirs))
        result["compound_split_bleu"] = asdict(compound_split_bleu(ours, theirs))
    if scoring.comet is not None:
        if sources is None:
            raise UserError("COMET needs the source text: give it by `--source`.")
        result["comet"] = comet_score(scoring.comet, sources, ours, theirs)
        result["comet_model"] = scoring.comet.model
    return result


def _read(path: Path, test_set: str | None) -> list[str]:
    lines = read_lines(path)
    try:
        return lines if test_set is None else select(test_set, lines)
    except UserError as error:
        raise UserError(f"`{path}`: {error}") from None


def _check_same_set(ours: int, theirs: int) -> None:
    """Say so if one file has a part of the test set of the other."""
    for part in known_sets():
        whole = [known for known in known_sets() if known.name == part.lines_of]
        if whole and {ours, theirs} == {part.sentences, whole[0].sentences}:
            raise UserError(
                "hypotheses and references must be equally many, but are "
                f"{ours:,} and {theirs:,}: it seems that one text is `{part.name}` and "
                f"the other `{part.lines_of}`. With `--test-set {part.name}` the part "
                "is scored."
            )
