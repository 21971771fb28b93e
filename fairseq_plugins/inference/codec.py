"""Convert raw text to the subwords that a model reads, and its output back to text."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Protocol

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.utils.errors import UserError

__all__ = ["MosesCodec", "SentencePieceCodec", "TextCodec", "create_codec"]


class TextCodec(Protocol):
    """Subwords are one string with spaces between them, as in fairseq's text files."""

    def encode(self, line: str) -> str:
        """Return the subwords of a source line."""

    def encode_target(self, line: str) -> str:
        """Return the subwords of a line in the target language."""

    def decode(self, subwords: str) -> str:
        """Return the text of a hypothesis, without line ends or tabs."""


def create_codec(corpus: PreparedCorpus) -> TextCodec:
    """Return the codec that the corpus was prepared with.

    Raises:
        UserError: a package that it needs is not installed.
    """
    if corpus.codes_file is not None:
        return MosesCodec(corpus.codes_file, corpus.source_lang, corpus.target_lang)
    return SentencePieceCodec(corpus.spm_model)


class SentencePieceCodec:
    """A SentencePiece model for both languages.

    Raises:
        UserError: the file is missing or is not a SentencePiece model.
    """

    def __init__(self, model: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        if not model.is_file():
            raise UserError(f"`{model}` must be a SentencePiece model, but is no file.")
        try:
            self._model = SentencePieceProcessor(model_file=str(model))
        except RuntimeError:
            raise UserError(
                f"`{model}` must be a SentencePiece model, but cannot be read as one."
            ) from None

    def encode(self, line: str) -> str:
        return " ".join(self._model.encode(line, out_type=str))

    encode_target = encode

    def decode(self, subwords: str) -> str:
        text: str = self._model.decode(subwords.split(" "))
        # A model with pieces for single bytes can produce line feeds.
        return text.replace("\n", " ").replace("\t", " ")


class MosesCodec:
    """Moses' punctuation normalizer and tokenizer, then the merges of subword-nmt.

    Raises:
        UserError: sacremoses or subword-nmt is not installed.
    """

    def __init__(self, codes: Path, source_lang: str, target_lang: str) -> None:
        # The corpus was encoded by these very functions.
        from fairseq_plugins.corpus.subwords import MosesPieces

        self._encoder = MosesPieces(codes, source_lang)
        self._codes, self._target_lang = codes, target_lang

    def encode(self, line: str) -> str:
        return self._encoder.split(line)

    def encode_target(self, line: str) -> str:
        subwords: str = self._target_encoder.split(line)
        return subwords

    def decode(self, subwords: str) -> str:
        words = f"{subwords} ".replace("@@ ", "").split()
        text: str = self._detokenizer.detokenize(words)
        return text

    @functools.cached_property
    def _target_encoder(self) -> Any:
        from fairseq_plugins.corpus.subwords import MosesPieces

        return MosesPieces(self._codes, self._target_lang)

    @functools.cached_property
    def _detokenizer(self) -> Any:
        from sacremoses import MosesDetokenizer

        return MosesDetokenizer(self._target_lang)
