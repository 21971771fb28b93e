"""Split text into pieces with all cores; keep numbers instead of text.

A text becomes three files: ``.ids``, the numbers of all its pieces, one after the other
(int32); ``.lengths``, the number of pieces of each line (int32); and ``.pieces``, JSON:
what the numbers stand for, and how often each piece occurs.
"""
from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

import numpy as np

from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import read_json, write_atomically
from fairseq_plugins.pipeline.piece_encoders import EncodedBlock, PieceEncoder
from fairseq_plugins.pipeline.progress import Progress
from fairseq_plugins.pipeline.workers import Block, blocks_of, in_order, read_block

__all__ = ["ENDINGS", "EncodedText", "encode"]

ENDINGS = (".ids", ".lengths", ".pieces")


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
        progress = Progress("lines")
        make = functools.partial(_BlockEncoder, encoder)
        for block in in_order(make, blocks_of(text), workers=workers):
            progress.add(len(block.lengths))
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
