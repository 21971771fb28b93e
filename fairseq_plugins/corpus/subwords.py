"""Train a subword model for both languages, and split lines into its pieces.

SentencePiece, or subword-nmt after Moses' normalizer and tokenizer as in fairseq's
``prepare-wmt14en2de.sh``. The latter two are extras (``pip install -e '.[moses]'``).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import itertools
import logging
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
    "sample_lines",
    "train_merges",
    "train_sentencepiece",
]

logger = logging.getLogger(__name__)

_WORD_MARK = "\u2581"
_MOST_WORDS = 200_000  # in the cache of their pieces: some 50 MB per process
# Unigram sums probabilities thread by thread, so the number of threads changes the
# model and must not depend on the machine. 16 is SentencePiece's own default.
_THREADS = 16
_SPACES = re.compile(r"\s+")
# SentencePiece leaves out longer lines, in bytes, and lines with its mark of unknown
# pieces. A few long lines are left out as by default, so that models stay the same;
# otherwise the limit follows the data.
_MOST_BYTES = 4192
_MOST_LONG_LINES = 0.001
_RESERVED = "\u2585"


class EncodedBlock(NamedTuple):
    """Lines in numbers of pieces.

    Numbers below the number of the encoder's own pieces stand for those, and the
    following ones for the block's ``extra`` pieces, in order.
    """

    ids: np.ndarray
    lengths: np.ndarray
    extra: list[str]


class PieceEncoder(Protocol):
    """Splits lines into pieces; each worker process makes its own."""

    def pieces(self) -> list[str]: ...

    def encode(self, lines: list[str]) -> EncodedBlock: ...


class SubwordModel:
    """Trains a model in a folder and splits text with it.

    Attributes:
        title: of its training, for the log.
        key: of its file in the manifest.
        outputs: the files of the training, relative to the folder; the first one is
            needed for splitting.
        packages: that train it.
    """

    def __init__(self, settings: Subwords) -> None:
        self._settings = settings
        self._is_merges = settings.model_type == "subword-nmt"
        self.outputs: tuple[str, ...]
        self.packages: tuple[str, ...]
        if self._is_merges:
            self.title = f"learning {settings.vocab_size:,} merges of subword-nmt"
            self.key, self.outputs = "bpe_codes", ("bpe/codes",)
            self.packages = ("sacremoses", "subword-nmt")
        else:
            kind, size = settings.model_type, settings.vocab_size
            self.title = f"training a {kind} model of {size:,} pieces"
            self.key = "spm_model"
            self.outputs = ("spm/joint.model", "spm/joint.vocab")
            self.packages = ("sentencepiece",)

    def train(self, texts: Mapping[str, Path], folder: Path) -> dict[str, int]:
        """Train on one text per language; return counts."""
        paths = [folder / name for name in self.outputs]
        if self._is_merges:
            return train_merges(texts, paths[0], settings=self._settings)
        return train_sentencepiece(
            list(texts.values()), paths[0], paths[1], settings=self._settings
        )

    def encoder_factory(
        self, folder: Path, language: str
    ) -> Callable[[], PieceEncoder]:
        """Return a function that loads the encoder of a language."""
        path = folder / self.outputs[0]
        if self._is_merges:
            return functools.partial(MosesPieces, path, language)
        by_word = self._settings.model_type == "bpe"
        return functools.partial(SentencePieces, path, by_word=by_word)


def train_sentencepiece(
    texts: Sequence[Path], model: Path, vocab: Path, *, settings: Subwords
) -> dict[str, int]:
    """Train on the lines of ``texts``; the same text gives the same bytes.

    Returns:
        the size of the ``vocabulary`` and, if there are any, the ``lines_left_out``.

    Raises:
        UserError: SentencePiece cannot make such a model from this text.
    """
    sample = functools.partial(
        sample_lines, texts, max_lines=settings.max_lines, seed=settings.seed
    )
    most_bytes, left_out = _find_longest_line(sample())
    # A model records every option that is given, even if it is the default.
    is_default = most_bytes == _MOST_BYTES
    options: dict[str, Any] = {} if is_default else {"max_sentence_length": most_bytes}
    trained = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sample(),
            # In memory, because SentencePiece does not write atomically.
            model_writer=trained,
            vocab_size=settings.vocab_size,
            model_type=settings.model_type,
            character_coverage=settings.character_coverage,
            num_threads=_THREADS,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        # "INTERNAL: FILE(LINE) [CONDITION] explanation"
        reason = str(error).rpartition("] ")[2] or f"it reports {str(error).strip()}"
        raise UserError(f"SentencePiece cannot make this model: {reason}") from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    with write_atomically(model, "wb") as stream:
        stream.write(trained.getvalue())
    with write_atomically(vocab) as stream:
        for piece in range(len(processor)):
            score = processor.get_score(piece)
            stream.write(f"{processor.id_to_piece(piece)}\t{score:g}\n")
    counts = {"vocabulary": len(processor)}
    return {**counts, "lines_left_out": left_out} if left_out else counts


def _find_longest_line(lines: Iterator[str]) -> tuple[int, int]:
    """Return the longest line to train on, in bytes, and how many are left out.

    Raises:
        UserError: no line is left.
    """
    total = num_long = num_reserved = 0
    longest = _MOST_BYTES
    for line in lines:
        if not line.strip():
            continue
        total += 1
        if _RESERVED in line:
            num_reserved += 1
        # A character has at most four bytes.
        elif 4 * len(line) > _MOST_BYTES and len(line.encode()) > _MOST_BYTES:
            num_long += 1
            longest = max(longest, len(line.encode()))
    if total == num_reserved:
        raise UserError(
            "SentencePiece needs lines to train on, but all are empty or contain its "
            f"mark `{_RESERVED}`."
        )
    if num_long > _MOST_LONG_LINES * total:
        most_bytes, num_long = longest, 0
    else:
        most_bytes = _MOST_BYTES
    for number, why in (
        (num_long, f"are longer than {_MOST_BYTES:,} bytes"),
        (num_reserved, f"contain `{_RESERVED}`"),
    ):
        if number:
            logger.warning(
                "Notice: SentencePiece is not trained on %s of %s lines, which %s.",
                f"{number:,}",
                f"{total:,}",
                why,
            )
    return most_bytes, num_long + num_reserved


def train_merges(
    texts: Mapping[str, Path], codes: Path, *, settings: Subwords
) -> dict[str, int]:
    """Learn ``vocab_size`` merges from the texts of both languages.

    Raises:
        UserError: an extra is not installed, or no pair of symbols occurs twice.
    """
    learn = _import_extra("subword_nmt.learn_bpe").learn_bpe
    lines_per_side = max(1, settings.max_lines // len(texts))
    tokenized = (
        map(
            _moses_tokenizer(language),
            sample_lines([path], max_lines=lines_per_side, seed=settings.seed),
        )
        for language, path in texts.items()
    )
    with write_atomically(codes) as stream:
        learn(itertools.chain.from_iterable(tokenized), stream, settings.vocab_size)
        stream.flush()
        with open(stream.name, encoding="utf-8") as written:
            merges = sum(1 for _ in written) - 1  # the first line is a version
        if merges < 1:
            raise UserError("subword-nmt finds nothing to merge in this text.")
    return {"merges": merges}


def sample_lines(texts: Sequence[Path], *, max_lines: int, seed: int) -> Iterator[str]:
    """Yield the lines to train on, in order.

    SentencePiece can sample lines itself, but takes others on every run, whatever its
    seed.
    """
    total = sum(1 for path in texts for _ in _read_lines(path))
    chosen = bytearray(total)
    for index in random.Random(seed).sample(range(total), min(total, max_lines)):
        chosen[index] = 1
    lines = itertools.chain.from_iterable(map(_read_lines, texts))
    return itertools.compress(lines, chosen)


def _read_lines(path: Path) -> Iterator[str]:
    with contextlib.closing(open_text(path)) as stream:
        for line in stream:
            yield line.rstrip("\n")


class SentencePieces:
    """The pieces of a SentencePiece model.

    Text that the model does not know stays as it is, and fairseq reads it as a word.
    It becomes an extra piece.

    Args:
        model: see :func:`train_sentencepiece`.
        by_word: split each word once. In a BPE model no piece reaches over a space, so
            the pieces of a line are those of its words. A unigram model weighs a whole
            line, where rounding may lead to another result.
    """

    def __init__(self, model: Path, *, by_word: bool) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        pieces = self.pieces()
        odd = [
            i for i, piece in enumerate(pieces) if _split_as_fairseq(piece) != [piece]
        ]
        self._is_read_as_text = np.zeros(len(pieces), bool)
        self._is_read_as_text[[self._processor.unk_id(), *odd]] = True
        reaches_over_space = any(_WORD_MARK in piece[1:] for piece in pieces)
        self._words = None
        if by_word and not reaches_over_space:
            self._words = _WordCache(self._processor)

    def pieces(self) -> list[str]:
        return [self._processor.id_to_piece(i) for i in range(len(self._processor))]

    def encode(self, lines: list[str]) -> EncodedBlock:
        if self._words is not None:
            ids, lengths = self._words.encode(lines)
        else:
            ids, lengths = _flatten(self._processor.encode(lines, num_threads=1))
        extra: dict[str, int] = {}
        places = np.flatnonzero(self._is_read_as_text[ids])
        if places.size:
            ends = np.cumsum(lengths)
            rows = np.split(ids, ends[:-1])
            for number in np.unique(np.searchsorted(ends, places, side="right")):
                rows[number] = self._encode_as_text(lines[number], extra)
                lengths[number] = len(rows[number])
            ids = np.concatenate(rows)
        return EncodedBlock(ids, lengths, list(extra))

    def _encode_as_text(self, line: str, extra: dict[str, int]) -> np.ndarray:
        text = " ".join(self._processor.encode(line, out_type=str))
        known = len(self._processor)
        ids = []
        for token in _split_as_fairseq(text):
            number = self._processor.piece_to_id(token)
            if self._is_read_as_text[number]:
                number = known + extra.setdefault(token, len(extra))
            ids.append(number)
        return np.array(ids, np.int32)


class _WordCache:
    """Pieces of lines, put together from remembered pieces of their words."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._clear()

    def _clear(self) -> None:
        self._numbers: dict[str, int] = {}
        self._ids = np.zeros(0, np.int32)
        self._ends = np.zeros(1, np.int64)  # of each word's ids, after a leading 0

    def encode(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        split = [line.split(" ") for line in lines]
        words = list(itertools.chain.from_iterable(split))
        self._add(set(words))
        number_of = self._numbers.__getitem__
        numbers = np.fromiter(map(number_of, words), np.int64, len(words))
        starts, sizes = self._ends[numbers], np.diff(self._ends)[numbers]
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1]) + np.repeat(starts - ends + sizes, sizes)
        first_words = np.cumsum([0, *map(len, split[:-1])])
        lengths = np.add.reduceat(sizes, first_words).astype(np.int32)
        return self._ids[places], lengths

    def _add(self, words: set[str]) -> None:
        if len(self._numbers) > _MOST_WORDS:
            self._clear()
        new = sorted(words - self._numbers.keys())  # the same order in each run
        ids, sizes = _flatten(self._processor.encode(new, num_threads=1))
        known = len(self._numbers)
        self._numbers.update(zip(new, range(known, known + len(new))))
        self._ids = np.concatenate([self._ids, ids])
        ends = self._ends[-1] + np.cumsum(sizes, dtype=np.int64)
        self._ends = np.concatenate([self._ends, ends])


class Words:
    """The tokens of text that is already split."""

    def pieces(self) -> list[str]:
        return []

    def encode(self, lines: list[str]) -> EncodedBlock:
        extra: dict[str, int] = {}
        split = [
            [extra.setdefault(token, len(extra)) for token in _split_as_fairseq(line)]
            for line in lines
        ]
        return EncodedBlock(*_flatten(split), list(extra))


class MosesPieces(Words):
    """Pieces of subword-nmt; ``@@`` marks all except the last one of a word."""

    def __init__(self, codes: Path, language: str) -> None:
        bpe = _import_extra("subword_nmt.apply_bpe").BPE
        with open(codes, encoding="utf-8") as stream:
            self._split = bpe(stream).process_line
        self._tokenize = _moses_tokenizer(language)

    def encode(self, lines: list[str]) -> EncodedBlock:
        return super().encode([self.split(line) for line in lines])

    def split(self, line: str) -> str:
        """Return the pieces of a line, with spaces between them."""
        pieces: str = self._split(self._tokenize(line))
        return pieces


def _split_as_fairseq(line: str) -> list[str]:
    """Split a line as ``fairseq.tokenizer.tokenize_line`` does."""
    return _SPACES.sub(" ", line).strip().split()


def _flatten(split: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, split), np.int32, len(split))
    total = int(lengths.sum(dtype=np.int64))
    ids = np.fromiter(itertools.chain.from_iterable(split), np.int32, total)
    return ids, lengths


def _moses_tokenizer(language: str) -> Callable[[str], str]:
    sacremoses = _import_extra("sacremoses")
    normalize = sacremoses.MosesPunctNormalizer(language).normalize
    tokenize = sacremoses.MosesTokenizer(language).tokenize
    options = {"aggressive_dash_splits": True, "return_str": True}
    return lambda line: tokenize(normalize(line), **options)


def _import_extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0].replace("_", "-")
        raise UserError(
            f"`model_type: subword-nmt` needs {package}: pip install -e '.[moses]'."
        ) from None
