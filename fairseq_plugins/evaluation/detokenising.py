"""Text out of the pieces that a model translates into."""
from __future__ import annotations

from typing import Callable

from fairseq_plugins.pipeline.manifest import PreparedCorpus

__all__ = ["detokeniser"]


def detokeniser(corpus: PreparedCorpus) -> Callable[[str], str]:
    """Return what makes one line of text of pieces with spaces between them.

    Raises:
        UserError: subword-nmt made the pieces, after Moses' tokeniser.
    """
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(corpus.spm_model))

    def detokenised(pieces: str) -> str:
        # A model with pieces for single bytes can make line feeds.
        text: str = model.decode(pieces.split(" "))
        return text.replace("\n", " ").replace("\t", " ")

    return detokenised
