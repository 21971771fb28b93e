"""What splits words, trained by SentencePiece or by subword-nmt: one shape for both."""
from __future__ import annotations

from pathlib import Path
from typing import Mapping, Protocol

from fairseq_plugins.pipeline import moses_bpe, subwords
from fairseq_plugins.pipeline.piece_encoders import PieceEncoder, SentencePieces
from fairseq_plugins.pipeline.recipe import Subwords

__all__ = ["SubwordModel", "subword_model"]


class SubwordModel(Protocol):
    """Trains a model in a folder and splits text with it.

    Attributes:
        title: what its training does, for people.
        key: under which the manifest names its file.
        outputs: the files that training writes, relative to the folder; the first one
            is what splitting reads.
        packages: that it is trained with.
    """

    title: str
    key: str
    outputs: tuple[str, ...]
    packages: tuple[str, ...]

    def train(self, texts: Mapping[str, Path], folder: Path) -> dict[str, int]:
        """Train on text by its language; return counts."""

    def encoder(self, folder: Path, language: str) -> PieceEncoder:
        """Return what splits text in a language with the trained model."""


def subword_model(settings: Subwords) -> SubwordModel:
    """Return the kind of model that ``model_type`` names."""
    if settings.model_type == "subword-nmt":
        return _Merges(settings)
    return _SentencePiece(settings)


class _SentencePiece:
    key = "spm_model"
    outputs: tuple[str, ...] = ("spm/joint.model", "spm/joint.vocab")
    packages: tuple[str, ...] = ("sentencepiece",)

    def __init__(self, settings: Subwords) -> None:
        self._settings = settings
        kind, size = settings.model_type, settings.vocab_size
        self.title = f"training a {kind} model of {size:,} pieces"

    def train(self, texts: Mapping[str, Path], folder: Path) -> dict[str, int]:
        model, vocab = (folder / name for name in self.outputs)
        return subwords.train(
            list(texts.values()), model, vocab, subwords=self._settings
        )

    def encoder(self, folder: Path, language: str) -> PieceEncoder:
        by_word = self._settings.model_type == "bpe"
        return SentencePieces(folder / self.outputs[0], by_word=by_word)


class _Merges:
    key = "bpe_codes"
    outputs: tuple[str, ...] = ("bpe/codes",)
    packages: tuple[str, ...] = ("sacremoses", "subword-nmt")

    def __init__(self, settings: Subwords) -> None:
        self._settings = settings
        self.title = f"learning {settings.vocab_size:,} merges of subword-nmt"

    def train(self, texts: Mapping[str, Path], folder: Path) -> dict[str, int]:
        codes = folder / self.outputs[0]
        return moses_bpe.train_codes(texts, codes, subwords=self._settings)

    def encoder(self, folder: Path, language: str) -> PieceEncoder:
        return moses_bpe.MosesPieces(folder / self.outputs[0], language)
