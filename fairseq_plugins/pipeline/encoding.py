"""Split text into pieces with all cores; keep numbers instead of text.

A text becomes three files: ``.ids``, the numbers of all its pieces, one after the other
(int32); ``.lengths``, the number of pieces of each line (int32); and ``.pieces``, JSON:
what the numbers stand for, and how often each piece occurs.
"""
from __future__ import annotations

import functools
import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, NamedTuple, Protocol

import numpy as np

from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import read_json, write_atomically
from fairseq_plugins.pipeline.workers import Block, blocks_of, in_order, read_block

__all__ = [
    "ENDINGS",
    "EncodedBlock",
    "EncodedText",
    "PieceEncoder",
    "SentencePieces",
    "Words",
    "encode",
    "fairseq_tokens",
]

ENDINGS = (".ids", ".lengths", ".pieces")
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
    """

    def __init__(self, model: Path) -> None:
        self._model = model

    def load(self) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(
            model_file=str(self._model)
        )
        odd = [
            number
            for number, piece in enumerate(self.pieces())
            if fairseq_tokens(piece) != [piece]
        ]
        self._by_text = np.zeros(len(self._processor), bool)
        self._by_text[[self._processor.unk_id(), *odd]] = True

    def pieces(self) -> list[str]:
        number_of_pieces = len(self._processor)
        return [self._processor.id_to_piece(i) for i in range(number_of_pieces)]

    def encode(self, lines: list[str]) -> EncodedBlock:
        split = self._processor.encode(lines, num_threads=1)
        ids, lengths = _flat(split)
        extra: dict[str, int] = {}
        places = np.flatnonzero(self._by_text[ids])
        if places.size:
            ends = np.cumsum(lengths)
            for number in np.unique(np.searchsorted(ends, places, side="right")):
                split[number] = self._from_text(lines[number], extra)
            ids, lengths = _flat(split)
        return EncodedBlock(ids, lengths, list(extra))

    def _from_text(self, line: str, extra: dict[str, int]) -> list[int]:
        text = " ".join(self._processor.encode(line, out_type=str))
        known = len(self._processor)
        ids = []
        for token in fairseq_tokens(text):
            number = self._processor.piece_to_id(token)
            if number == self._processor.unk_id() or self._by_text[number]:
                number = known + extra.setdefault(token, len(extra))
            ids.append(number)
        return ids


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


def encode(
    encoder: PieceEncoder, text: Path, prefix: Path, *, workers: int
) -> int:
    """Write ``prefix.ids``, ``prefix.lengths`` and ``prefix.pieces``.

    Args:
        encoder: what to split with.
        text: plain text, every line with its end.

    Returns:
        the number of pieces.
    """
    encoder.load()
    pieces = {piece: number for number, piece in enumerate(encoder.pieces())}
    known = len(pieces)
    counts: np.ndarray = np.zeros(known, np.int64)
    with write_atomically(_part(prefix, 0), "wb") as ids_out, write_atomically(
        _part(prefix, 1), "wb"
    ) as lengths_out:
        make = functools.partial(_BlockEncoder, encoder)
        for block in in_order(make, blocks_of(text), workers=workers):
            ids = block.ids
            if block.extra:
                extra = [pieces.setdefault(piece, len(pieces)) for piece in block.extra]
                ids = np.array([*range(known), *extra], np.int32)[ids]
            counts = np.pad(counts, (0, len(pieces) - len(counts)))
            counts += np.bincount(ids, minlength=len(pieces))
            ids_out.write(ids.tobytes())
            lengths_out.write(block.lengths.tobytes())
    with write_atomically(_part(prefix, 2)) as stream:
        json.dump({"pieces": list(pieces), "counts": counts.tolist()}, stream)
    return int(counts.sum())


def _part(prefix: Path, number: int) -> Path:
    return prefix.with_name(prefix.name + ENDINGS[number])


class _BlockEncoder:
    """What a worker process does with a block of lines."""

    def __init__(self, encoder: PieceEncoder) -> None:
        self._encoder = encoder
        encoder.load()

    def __call__(self, block: Block) -> EncodedBlock:
        return self._encoder.encode(read_block(block).decode().split("\n")[:-1])


@dataclass(frozen=True)
class EncodedText:
    """What :func:`encode` wrote, read again piecemeal.

    Attributes:
        pieces: what each number stands for.
        counts: how often each occurs.
    """

    prefix: Path
    pieces: list[str]
    counts: list[int]

    @classmethod
    def open(cls, prefix: Path) -> EncodedText:
        content = read_json(_part(prefix, 2))
        return cls(prefix, content["pieces"], content["counts"])

    def counter(self) -> Counter[str]:
        """Return the pieces that occur, with their numbers."""
        return Counter(
            {piece: count for piece, count in zip(self.pieces, self.counts) if count}
        )

    def chunks(self, *, sentences: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Yield ids and lengths of ``sentences`` sentences at a time.

        Raises:
            UserError: the two files do not belong together.
        """
        with open(_part(self.prefix, 0), "rb") as ids_in, open(
            _part(self.prefix, 1), "rb"
        ) as lengths_in:
            while content := lengths_in.read(4 * sentences):
                lengths = np.frombuffer(content, np.int32)
                size = 4 * int(lengths.sum(dtype=np.int64))
                ids = np.frombuffer(ids_in.read(size), np.int32)
                if 4 * ids.size != size:
                    raise UserError(f"`{ids_in.name}` is shorter than its lengths say.")
                yield ids, lengths
