"""Split lines into pieces: by a SentencePiece model, or at spaces."""
from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

__all__ = ["EncodedBlock", "PieceEncoder", "SentencePieces", "Words", "fairseq_tokens"]

_WORD_MARK = "\u2581"
# Words whose pieces are remembered: some 50 MB in each process.
_MOST_WORDS = 200_000
_SPACES = re.compile(r"\s+")


def fairseq_tokens(line: str) -> list[str]:
    """Split a line as ``fairseq.tokenizer.tokenize_line`` does."""
    return _SPACES.sub(" ", line).strip().split()


class EncodedBlock(NamedTuple):
    """Numbers below the size of the encoder's own list stand for that piece, and the
    others, in their order, for the block's own ``extra`` pieces."""

    ids: np.ndarray
    lengths: np.ndarray
    extra: list[str]


class PieceEncoder(Protocol):
    """Splits lines into pieces; made anew in each worker process by ``load``."""

    def load(self) -> None: ...

    def pieces(self) -> list[str]: ...

    def encode(self, lines: list[str]) -> EncodedBlock: ...


class SentencePieces:
    """The pieces of a SentencePiece model.

    What the model does not know stands in the text as it is, so that fairseq sees it as
    a word; it becomes an extra piece.

    Args:
        model: as ``pipeline.subwords`` trains it.
        by_word: find the pieces of each word once. In a BPE model no piece reaches over
            a space, so that a line's pieces are those of its words. A unigram model
            weighs a whole line, where rounding may decide otherwise.
    """

    def __init__(self, model: Path, *, by_word: bool) -> None:
        self._model = model
        self._wants_words = by_word

    def load(self) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(
            model_file=str(self._model)
        )
        pieces = self.pieces()
        odd = [i for i, piece in enumerate(pieces) if fairseq_tokens(piece) != [piece]]
        self._by_text = np.zeros(len(pieces), bool)
        self._by_text[[self._processor.unk_id(), *odd]] = True
        self._words = _WordPieces(self._processor)
        reach = any(_WORD_MARK in piece[1:] for piece in pieces)
        self._by_word = self._wants_words and not reach

    def pieces(self) -> list[str]:
        number_of_pieces = len(self._processor)
        return [self._processor.id_to_piece(i) for i in range(number_of_pieces)]

    def encode(self, lines: list[str]) -> EncodedBlock:
        if self._by_word:
            ids, lengths = self._words.encode(lines)
        else:
            ids, lengths = _flat(self._processor.encode(lines, num_threads=1))
        extra: dict[str, int] = {}
        places = np.flatnonzero(self._by_text[ids])
        if places.size:
            ends = np.cumsum(lengths)
            rows = np.split(ids, ends[:-1])
            for number in np.unique(np.searchsorted(ends, places, side="right")):
                rows[number] = self._from_text(lines[number], extra)
                lengths[number] = len(rows[number])
            ids = np.concatenate(rows)
        return EncodedBlock(ids, lengths, list(extra))

    def _from_text(self, line: str, extra: dict[str, int]) -> np.ndarray:
        text = " ".join(self._processor.encode(line, out_type=str))
        known = len(self._processor)
        ids = []
        for token in fairseq_tokens(text):
            number = self._processor.piece_to_id(token)
            if self._by_text[number]:
                number = known + extra.setdefault(token, len(extra))
            ids.append(number)
        return np.array(ids, np.int32)


class _WordPieces:
    """Pieces of lines, put together from remembered pieces of their words."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        self._ids = np.zeros(0, np.int32)
        self._ends = np.zeros(1, np.int64)  # of each word's ids, after a leading 0

    def encode(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        split = [line.split(" ") for line in lines]
        words = list(itertools.chain.from_iterable(split))
        self._learn(set(words))
        number_of = self._numbers.__getitem__
        numbers = np.fromiter(map(number_of, words), np.int64, len(words))
        starts, sizes = self._ends[numbers], np.diff(self._ends)[numbers]
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1]) + np.repeat(starts - ends + sizes, sizes)
        first_words = np.cumsum([0, *map(len, split[:-1])])
        lengths = np.add.reduceat(sizes, first_words).astype(np.int32)
        return self._ids[places], lengths

    def _learn(self, words: set[str]) -> None:
        if len(self._numbers) > _MOST_WORDS:
            self._forget()
        # In order, so that two runs do the very same.
        new = sorted(words - self._numbers.keys())
        ids, sizes = _flat(self._processor.encode(new, num_threads=1))
        known = len(self._numbers)
        self._numbers.update(zip(new, range(known, known + len(new))))
        self._ids = np.concatenate([self._ids, ids])
        ends = self._ends[-1] + np.cumsum(sizes, dtype=np.int64)
        self._ends = np.concatenate([self._ends, ends])


class Words:
    """Text that is split already: its tokens are the pieces."""

    def load(self) -> None:
        pass

    def pieces(self) -> list[str]:
        return []

    def encode(self, lines: list[str]) -> EncodedBlock:
        extra: dict[str, int] = {}
        split = [
            [extra.setdefault(token, len(extra)) for token in fairseq_tokens(line)]
            for line in lines
        ]
        return EncodedBlock(*_flat(split), list(extra))


def _flat(split: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, split), np.int32, len(split))
    total = int(lengths.sum(dtype=np.int64))
    ids = np.fromiter(itertools.chain.from_iterable(split), np.int32, total)
    return ids, lengths
