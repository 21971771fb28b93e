"""Split lines into pieces: by a SentencePiece model, or at spaces.

Train one SentencePiece model for both languages.

Moses' tokeniser and subword-nmt: what most papers before SentencePiece used.

Both are extras (``pip install -e '.[moses]'``). Text goes through Moses' punctuation
normaliser and tokeniser as in fairseq's ``prepare-wmt14en2de.sh``, and through one set
of merges for both languages.

What splits words, trained by SentencePiece or by subword-nmt: one shape for both.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import re
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Protocol, Sequence

import numpy as np
import sentencepiece

from fairseq_plugins.corpus.recipe import Subwords
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import open_text, write_atomically

__all__ = [
    "EncodedBlock",
    "MosesPieces",
    "PieceEncoder",
    "SentencePieces",
    "SubwordModel",
    "Words",
    "fairseq_tokens",
    "sample_lines",
    "subword_model",
    "train",
    "train_codes",
]

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
        model: as ``corpus.subwords`` trains it.
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


def sample_lines(texts: Sequence[Path], *, max_lines: int, seed: int) -> Iterator[str]:
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
        return train(list(texts.values()), model, vocab, subwords=self._settings)

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
        return train_codes(texts, codes, subwords=self._settings)

    def encoder(self, folder: Path, language: str) -> PieceEncoder:
        return MosesPieces(folder / self.outputs[0], language)
