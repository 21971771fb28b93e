"""Split text into pieces with all cores; keep numbers instead of text.

A text becomes three files: ``.ids``, the numbers of all its pieces, one after the other
(int32); ``.lengths``, the number of pieces of each line (int32); and ``.pieces``, JSON:
what the numbers stand for, and how often each piece occurs.

Make the files that ``fairseq-train`` reads, byte by byte as fairseq-preprocess does.

Format: ``fairseq.data.indexed_dataset.MMapIndexedDataset`` and ``fairseq.data.
Dictionary``. A test compares both with fairseq's own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Mapping, NamedTuple, Sequence

import numpy as np

from fairseq_plugins.corpus.subwords import EncodedBlock, PieceEncoder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, write_atomically
from fairseq_plugins.utils.progress import Progress
from fairseq_plugins.utils.workers import Block, blocks_of, in_order, read_block

__all__ = [
    "ENDINGS",
    "BinarisedText",
    "Dictionary",
    "EncodedText",
    "binarise",
    "binary_names",
    "encode",
    "inspect",
    "write_binary",
]

ENDINGS = (".ids", ".lengths", ".pieces")


def encode(encoder: PieceEncoder, text: Path, prefix: Path, *, workers: int) -> int:
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


# fairseq.data.indexed_dataset.MMapIndexedDataset.Index: magic, version, element type
# and number of sentences; an int32 length for each and then an int64 place follow.
_HEADER = struct.Struct("<9sQBQ")
_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_ELEMENT_TYPES: dict[int, np.dtype] = {
    4: np.dtype("int32"),
    8: np.dtype("uint16"),
    9: np.dtype("uint32"),
}
# fairseq's own limit of a dictionary for two bytes a token.
_MOST_IN_UINT16 = 65_500
_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_END_ID, _UNKNOWN_ID = 2, 3
_MULTIPLE = 8  # fairseq pads its dictionaries to this
_SENTENCES_AT_ONCE = 20_000
_AT_ONCE = 1 << 22


class BinarisedText(NamedTuple):
    """What a ``.bin`` file holds; every sentence ends with an end mark."""

    sentences: int
    tokens: int
    unknown: int


class Dictionary:
    """fairseq's dictionary: special symbols, then words by falling frequency."""

    def __init__(self, words: Sequence[tuple[str, int]]) -> None:
        self.words = list(words)
        self._ids = {
            word: number
            for number, word in enumerate([*_SPECIALS, *(word for word, _ in words)])
        }

    @classmethod
    def build(cls, counts: Counter[str]) -> Dictionary:
        """Order words as fairseq does, and pad their number to a multiple of eight."""
        found = [item for item in counts.items() if item[0] not in _SPECIALS]
        words = sorted(found, key=lambda item: (-item[1], item[0]))
        padding = -(len(words) + len(_SPECIALS)) % _MULTIPLE
        return cls([*words, *((f"madeupword{i:04d}", 0) for i in range(padding))])

    @classmethod
    def load(cls, path: Path) -> Dictionary:
        """Read fairseq's ``dict.LANGUAGE.txt``.

        Raises:
            UserError: names the line that is no word with its count.
        """
        words = []
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                word, _, count = line.rstrip("\n").rpartition(" ")
                if not word or not count.isdigit():
                    raise UserError(
                        f"`{path}` must hold a word and its count in each line, but "
                        f"line {number} does not."
                    )
                words.append((word, int(count)))
        return cls(words)

    def __len__(self) -> int:
        return len(_SPECIALS) + len(self.words)

    def save(self, path: Path) -> None:
        """Write it as fairseq does."""
        with write_atomically(path) as stream:
            stream.writelines(f"{word} {count}\n" for word, count in self.words)

    def ids(self, words: Sequence[str]) -> np.ndarray:
        """Return the number of each word, or that of the unknown one."""
        get = self._ids.get
        return np.array([get(word, _UNKNOWN_ID) for word in words], np.int64)


def binary_names(
    subsets: Iterable[str], *, source_lang: str, target_lang: str
) -> list[str]:
    """Return the names of all files that fairseq-preprocess makes."""
    direction = f"{source_lang}-{target_lang}"
    languages = (source_lang, target_lang)
    return [f"dict.{language}.txt" for language in languages] + [
        f"{subset}.{direction}.{language}.{ending}"
        for subset in subsets
        for language in languages
        for ending in ("bin", "idx")
    ]


def binarise(
    encoded: Path,
    destination: Path,
    *,
    pairs: Mapping[str, int],
    source_lang: str,
    target_lang: str,
) -> dict[str, dict[str, int]]:
    """Do what ``fairseq-preprocess --joined-dictionary`` does.

    Args:
        encoded: folder with the encoded ``SUBSET.LANGUAGE``.
        destination: gets its name when everything in it is there and checked, and
            replaces what was there before.
        pairs: how many there are in each subset; ``train`` makes the dictionary.

    Returns:
        for each ``SUBSET.LANGUAGE`` the fields of :class:`BinarisedText`.

    Raises:
        UserError: the encoded text is not whole.
    """
    languages = (source_lang, target_lang)
    texts = {
        (subset, language): EncodedText.open(encoded / f"{subset}.{language}")
        for subset in pairs
        for language in languages
    }
    counts: Counter[str] = Counter()
    for language in languages:
        counts.update(texts["train", language].counter())
    dictionary = Dictionary.build(counts)
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    report = {}
    try:
        for language in languages:
            dictionary.save(partial / f"dict.{language}.txt")
        for (subset, language), text in texts.items():
            prefix = partial / f"{subset}.{source_lang}-{target_lang}.{language}"
            write_binary(text, prefix, dictionary)
            report[f"{subset}.{language}"] = _counts(prefix, pairs=pairs[subset])
        shutil.rmtree(destination, ignore_errors=True)
        os.replace(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def write_binary(text: EncodedText, prefix: Path, dictionary: Dictionary) -> None:
    """Write ``prefix.bin`` and ``prefix.idx``."""
    code = 8 if len(dictionary) < _MOST_IN_UINT16 else 9
    element = _ELEMENT_TYPES[code]
    numbers = dictionary.ids(text.pieces).astype(element)
    lengths_path = prefix.with_name(f".{prefix.name}.lengths.partial")
    with contextlib.ExitStack() as stack:
        stack.callback(lengths_path.unlink, missing_ok=True)
        binary = stack.enter_context(write_atomically(Path(f"{prefix}.bin"), "wb"))
        lengths_file = stack.enter_context(open(lengths_path, "w+b"))
        for ids, lengths in text.chunks(sentences=_SENTENCES_AT_ONCE):
            ends = np.cumsum(lengths, dtype=np.int64)
            binary.write(np.insert(numbers[ids], ends, _END_ID).tobytes())
            lengths_file.write((lengths + 1).astype(np.int32).tobytes())
        lengths_file.flush()
        _write_index(Path(f"{prefix}.idx"), lengths_path, code)


def _write_index(index: Path, lengths_path: Path, code: int) -> None:
    sentences = lengths_path.stat().st_size // 4
    with write_atomically(index, "wb") as stream, open(lengths_path, "rb") as lengths:
        stream.write(_HEADER.pack(_MAGIC, _VERSION, code, sentences))
        shutil.copyfileobj(lengths, stream, _AT_ONCE)
        lengths.seek(0)
        place = 0
        while content := lengths.read(_AT_ONCE):
            sizes = np.frombuffer(content, np.int32).astype(np.int64)
            sizes *= _ELEMENT_TYPES[code].itemsize
            ends = place + np.cumsum(sizes)
            stream.write((ends - sizes).tobytes())
            place = int(ends[-1])


def _counts(prefix: Path, *, pairs: int) -> dict[str, int]:
    text = inspect(prefix)
    if text.sentences != pairs:
        raise UserError(
            f"{text.sentences:,} sentences of {pairs:,} were written to {prefix.name}."
        )
    return text._asdict()


def inspect(prefix: Path) -> BinarisedText:
    """Count what stands in ``prefix.bin``, by ``prefix.idx``.

    Args:
        prefix: such as ``bin/train.de-en.de``.

    Raises:
        UserError: the two files do not belong together or are not fairseq's.
    """
    index, binary = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    try:
        with open(index, "rb") as stream:
            head = stream.read(_HEADER.size)
        magic, _, element_code, sentences = _HEADER.unpack_from(head)
        element = _ELEMENT_TYPES[element_code]
        if magic != _MAGIC or index.stat().st_size != _HEADER.size + 12 * sentences:
            raise ValueError
    except (struct.error, ValueError, KeyError):
        raise UserError(f"`{index}` is not an index that fairseq wrote.") from None
    tokens = 0
    if sentences:
        lengths = np.memmap(index, np.int32, "r", _HEADER.size, (sentences,))
        tokens = int(lengths.sum(dtype=np.int64))
    if binary.stat().st_size != tokens * element.itemsize:
        raise UserError(f"`{binary}` has not the size that `{index}` says.")
    unknown = 0
    with open(binary, "rb") as stream:
        while content := stream.read(_AT_ONCE):
            ids = np.frombuffer(content, element)
            unknown += int(np.count_nonzero(ids == _UNKNOWN_ID))
    return BinarisedText(sentences, tokens, unknown)
