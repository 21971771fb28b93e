"""How wide the beam of the explorer may be."""
from __future__ import annotations

from typing import Sequence

from fairseq_plugins.evaluation.report.runs import ReportRun
from fairseq_plugins.pipeline.binarised import Dictionary
from fairseq_plugins.pipeline.errors import UserError

__all__ = ["check_explorer_beam"]

# Padding and the end of sentence go on in no slot, and the first step has one prefix.
_NOT_HELD = 2


def check_explorer_beam(runs: Sequence[ReportRun], beam_size: int) -> None:
    """Refuse a beam that a first step cannot fill.

    Raises:
        UserError: a run's vocabulary is too small for it.
    """
    for run in runs:
        corpus = run.corpus
        words = len(Dictionary.load(corpus.bin_dir / f"dict.{corpus.target_lang}.txt"))
        largest = words - _NOT_HELD
        if beam_size > largest:
            raise UserError(
                f"`--explore-beam` must be at most {largest:,}, which is {_NOT_HELD} "
                f"less than the vocabulary of `{run.path}`, but is {beam_size:,}."
            )
