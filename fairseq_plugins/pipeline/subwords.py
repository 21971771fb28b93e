"""Train one SentencePiece model for both languages."""
from __future__ import annotations

import contextlib
import io
import itertools
import random
from pathlib import Path
from typing import Iterator, Sequence

import sentencepiece

from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import open_text, write_atomically
from fairseq_plugins.pipeline.recipe import Subwords

__all__ = ["sample_lines", "train"]

# Unigram sums probabilities thread by thread: the number is a part of the model, and
# must not be that of this machine's cores. 16 is SentencePiece's own default.
_THREADS = 16


def train(
    texts: Sequence[Path], model: Path, vocab: Path, *, subwords: Subwords
) -> dict[str, int]:
    """Train on the lines of ``texts``; the same text gives the same bytes.

    Raises:
        UserError: SentencePiece cannot make such a model from this text.
    """
    trained = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sample_lines(
                texts, max_lines=subwords.max_lines, seed=subwords.seed
            ),
            # In memory, since SentencePiece itself would not write atomically.
            model_writer=trained,
            vocab_size=subwords.vocab_size,
            model_type=subwords.model_type,
            character_coverage=subwords.character_coverage,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        # "INTERNAL: FILE(LINE) [CONDITION] what to do"
        reason = str(error).rpartition("] ")[2]
        raise UserError(f"SentencePiece cannot make this model: {reason}") from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    with write_atomically(model, "wb") as stream:
        stream.write(trained.getvalue())
    with write_atomically(vocab) as stream:
        for piece in range(len(processor)):
            score = processor.get_score(piece)
            stream.write(f"{processor.id_to_piece(piece)}\t{score:g}\n")
    return {"vocabulary": len(processor)}


def sample_lines(
    texts: Sequence[Path], *, max_lines: int, seed: int
) -> Iterator[str]:
    """Yield the lines to train on, in order.

    SentencePiece can draw lines itself, but draws others on every run, whatever its
    seed.
    """
    total = sum(1 for path in texts for _ in _lines(path))
    drawn = random.Random(seed).sample(range(total), min(total, max_lines))
    chosen = bytearray(total)
    for index in drawn:
        chosen[index] = 1
    lines = itertools.chain.from_iterable(map(_lines, texts))
    return itertools.compress(lines, chosen)


def _lines(path: Path) -> Iterator[str]:
    with contextlib.closing(open_text(path)) as stream:
        for line in stream:
            yield line.rstrip("\n")
