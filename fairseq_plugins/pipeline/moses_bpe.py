"""Moses' tokeniser and subword-nmt: what most papers before SentencePiece used.

Both are extras (``pip install -e '.[moses]'``). Text goes through Moses' punctuation
normaliser and tokeniser as in fairseq's ``prepare-wmt14en2de.sh``, and through one set
of merges for both languages.
"""
from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import write_atomically
from fairseq_plugins.pipeline.piece_encoders import EncodedBlock, Words
from fairseq_plugins.pipeline.recipe import Subwords
from fairseq_plugins.pipeline.subwords import sample_lines

__all__ = ["MosesPieces", "train_codes"]


class MosesPieces:
    """Pieces of subword-nmt (``@@`` where a word goes on) of text in one language."""

    def __init__(self, codes: Path, language: str) -> None:
        self._codes, self._language = codes, language
        self._words = Words()

    def load(self) -> None:
        bpe = _imported("subword_nmt.apply_bpe").BPE
        with open(self._codes, encoding="utf-8") as stream:
            self._split = bpe(stream).process_line
        self._tokenise = _tokeniser(self._language)

    def pieces(self) -> list[str]:
        return []

    def encode(self, lines: list[str]) -> EncodedBlock:
        return self._words.encode([self._split(self._tokenise(line)) for line in lines])


def train_codes(
    texts: Mapping[str, Path], codes: Path, *, subwords: Subwords
) -> dict[str, int]:
    """Learn ``vocab_size`` merges from both languages.

    Args:
        texts: training text by its language.
        codes: file to write.

    Raises:
        UserError: an extra is not installed, or no pair of symbols occurs twice.
    """
    learn = _imported("subword_nmt.learn_bpe").learn_bpe
    sides = [_tokenised(path, language, subwords, len(texts))
             for language, path in texts.items()]  # fmt: skip
    with write_atomically(codes) as stream:
        learn(itertools.chain.from_iterable(sides), stream, subwords.vocab_size)
        stream.flush()
        with open(stream.name, encoding="utf-8") as written:
            merges = sum(1 for _ in written) - 1  # the first line is a version
        if merges < 1:
            raise UserError("subword-nmt finds nothing to merge in this text.")
    return {"merges": merges}


def _tokenised(
    path: Path, language: str, subwords: Subwords, sides: int
) -> Iterator[str]:
    tokenise = _tokeniser(language)
    share = max(1, subwords.max_lines // sides)
    return map(tokenise, sample_lines([path], max_lines=share, seed=subwords.seed))


def _tokeniser(language: str) -> Callable[[str], str]:
    sacremoses = _imported("sacremoses")
    normalise = sacremoses.MosesPunctNormalizer(language).normalize
    tokenise = sacremoses.MosesTokenizer(language).tokenize

    def both(line: str) -> str:
        text: str = tokenise(
            normalise(line), aggressive_dash_splits=True, return_str=True
        )
        return text

    return both


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0].replace("_", "-")
        raise UserError(
            f"`model_type: subword-nmt` needs {package}: pip install -e '.[moses]'."
        ) from None
