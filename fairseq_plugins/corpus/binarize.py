"""Make the files that ``fairseq-train`` reads, byte by byte as fairseq-preprocess does.

:func:`encode` splits a text into pieces with all cores. It writes three files:
``.ids``, the numbers of all its pieces, one after the other (int32); ``.lengths``, the
number of pieces of each line (int32); and ``.pieces``, JSON with the text of each
number and its frequency.

:func:`binarize` writes fairseq's formats from them: ``fairseq.data.indexed_dataset.
MMapIndexedDataset`` and ``fairseq.data.Dictionary``. Tests compare both with fairseq's
own output.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from fairseq_plugins.corpus.blocks import Block, map_in_order, split_into_blocks
from fairseq_plugins.corpus.subwords import EncodedBlock, PieceEncoder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, write_atomically
from fairseq_plugins.utils.progress import progress_bar

__all__ = [
    "ENDINGS",
    "Dictionary",
    "EncodedText",
    "binarize",
    "binary_names",
    "encode",
    "write_binary",
]

ENDINGS = (".ids", ".lengths", ".pieces")
_SENTENCES_AT_ONCE = 20_000
# fairseq.data.indexed_dataset.MMapIndexedDataset.Index: magic, version, element type
# and number of sentences, followed by an int32 length and an int64 offset for each.
_HEADER = struct.Struct("<9sQBQ")
_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_ELEMENT_TYPES: dict[int, np.dtype] = {8: np.dtype("uint16"), 9: np.dtype("uint32")}
_MOST_IN_UINT16 = 65_500  # fairseq's limit of a dictionary for two bytes per token
_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_END_ID, _UNKNOWN_ID = 2, 3
_MULTIPLE = 8  # fairseq pads its dictionaries to a multiple of this


def encode(
    make_encoder: Callable[[], PieceEncoder], text: Path, prefix: Path, *, workers: int
) -> int:
    """Write ``prefix.ids``, ``prefix.lengths`` and ``prefix.pieces``.

    Args:
        make_encoder: called here and in each worker process.
        text: plain text; the last line must have its end, too.

    Returns:
        the number of pieces.
    """

    def make_function() -> Callable[[Block], EncodedBlock]:
        encoder = make_encoder()
        return lambda block: encoder.encode(block.read_lines())

    pieces = {piece: number for number, piece in enumerate(make_encoder().pieces())}
    known = len(pieces)
    counts: np.ndarray = np.zeros(known, np.int64)
    ids_path, lengths_path, pieces_path = _encoded_files(prefix)
    with write_atomically(ids_path, "wb") as ids_out, write_atomically(
        lengths_path, "wb"
    ) as lengths_out, progress_bar("lines") as bar:
        blocks = split_into_blocks(text)
        for block in map_in_order(make_function, blocks, workers=workers):
            ids = block.ids
            if block.extra:
                extra = [pieces.setdefault(piece, len(pieces)) for piece in block.extra]
                ids = np.array([*range(known), *extra], np.int32)[ids]
            counts = np.pad(counts, (0, len(pieces) - len(counts)))
            counts += np.bincount(ids, minlength=len(pieces))
            ids_out.write(ids.tobytes())
            lengths_out.write(block.lengths.tobytes())
            bar.update(len(block.lengths))
    with write_atomically(pieces_path) as stream:
        json.dump({"pieces": list(pieces), "counts": counts.tolist()}, stream)
    return int(counts.sum())


def _encoded_files(prefix: Path) -> list[Path]:
    return [prefix.with_name(prefix.name + ending) for ending in ENDINGS]


@dataclass(frozen=True)
class EncodedText:
    """The output of :func:`encode`, read again in chunks.

    Attributes:
        pieces: the text of each number.
        counts: the frequency of each number.
    """

    ids_path: Path
    lengths_path: Path
    pieces: list[str]
    counts: list[int]

    @classmethod
    def open(cls, prefix: Path) -> EncodedText:
        ids_path, lengths_path, pieces_path = _encoded_files(prefix)
        content = read_json(pieces_path)
        return cls(ids_path, lengths_path, content["pieces"], content["counts"])

    def frequencies(self) -> Counter[str]:
        """Return the frequencies of the pieces that occur."""
        return Counter(
            {piece: count for piece, count in zip(self.pieces, self.counts) if count}
        )

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids and lengths of some thousand sentences at a time.

        Raises:
            UserError: the two files do not belong together.
        """
        with open(self.ids_path, "rb") as ids_in:
            for lengths in _read_lengths(self.lengths_path):
                size = 4 * int(lengths.sum(dtype=np.int64))
                ids = np.frombuffer(ids_in.read(size), np.int32)
                if 4 * ids.size != size:
                    raise UserError(
                        f"`{ids_in.name}` is shorter than its lengths require."
                    )
                yield ids, lengths


def _read_lengths(path: Path) -> Iterator[np.ndarray]:
    with open(path, "rb") as stream:
        while content := stream.read(4 * _SENTENCES_AT_ONCE):
            yield np.frombuffer(content, np.int32)


class Dictionary:
    """fairseq's dictionary: special symbols, then words by falling frequency."""

    def __init__(self, words: Sequence[tuple[str, int]]) -> None:
        self.words = list(words)
        symbols = [*_SPECIALS, *(word for word, _ in words)]
        self._ids = {symbol: number for number, symbol in enumerate(symbols)}

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
            UserError: a line is not a word with its count.
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
        """Write the file as fairseq does."""
        with write_atomically(path) as stream:
            stream.writelines(f"{word} {count}\n" for word, count in self.words)

    def ids(self, words: Sequence[str]) -> np.ndarray:
        """Return the number of each word, or that of the unknown word."""
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


def binarize(
    encoded: Path,
    destination: Path,
    *,
    pairs: Mapping[str, int],
    source_lang: str,
    target_lang: str,
) -> dict[str, dict[str, int]]:
    """Do the work of ``fairseq-preprocess --joined-dictionary``.

    Args:
        encoded: folder with the encoded ``SUBSET.LANGUAGE``.
        destination: gets its name when everything in it is complete and verified, and
            replaces an earlier folder.
        pairs: the number of pairs of each subset; ``train`` makes the dictionary.

    Returns:
        for each ``SUBSET.LANGUAGE`` the counts of :func:`write_binary`.

    Raises:
        UserError: the encoded text is not complete.
    """
    languages = (source_lang, target_lang)
    texts = {
        (subset, language): EncodedText.open(encoded / f"{subset}.{language}")
        for subset in pairs
        for language in languages
    }
    frequencies: Counter[str] = Counter()
    for language in languages:
        frequencies.update(texts["train", language].frequencies())
    dictionary = Dictionary.build(frequencies)
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    report = {}
    try:
        for language in languages:
            dictionary.save(partial / f"dict.{language}.txt")
        for (subset, language), text in texts.items():
            prefix = partial / f"{subset}.{source_lang}-{target_lang}.{language}"
            counts = write_binary(text, prefix, dictionary)
            if counts["sentences"] != pairs[subset]:
                raise UserError(
                    f"`{prefix.name}` must have {pairs[subset]:,} sentences, but has "
                    f"{counts['sentences']:,}."
                )
            report[f"{subset}.{language}"] = counts
        shutil.rmtree(destination, ignore_errors=True)
        os.replace(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def write_binary(
    text: EncodedText, prefix: Path, dictionary: Dictionary
) -> dict[str, int]:
    """Write ``prefix.bin`` and ``prefix.idx``; each sentence gets an end mark.

    Returns:
        the numbers of ``sentences``, ``tokens`` (with end marks) and ``unknown`` ones.
    """
    code = 8 if len(dictionary) < _MOST_IN_UINT16 else 9
    element = _ELEMENT_TYPES[code]
    numbers = dictionary.ids(text.pieces).astype(element)
    counts = {"sentences": 0, "tokens": 0, "unknown": 0}
    with write_atomically(Path(f"{prefix}.bin"), "wb") as binary:
        for ids, lengths in text.chunks():
            ends = np.cumsum(lengths, dtype=np.int64)
            tokens = np.insert(numbers[ids], ends, _END_ID)
            binary.write(tokens.tobytes())
            counts["sentences"] += len(lengths)
            counts["tokens"] += len(tokens)
            counts["unknown"] += int(np.count_nonzero(tokens == _UNKNOWN_ID))
    with write_atomically(Path(f"{prefix}.idx"), "wb") as index:
        index.write(_HEADER.pack(_MAGIC, _VERSION, code, counts["sentences"]))
        for lengths in _read_lengths(text.lengths_path):
            index.write((lengths + 1).astype(np.int32).tobytes())
        start = 0
        for lengths in _read_lengths(text.lengths_path):
            sizes = (lengths.astype(np.int64) + 1) * element.itemsize
            ends = start + np.cumsum(sizes)
            index.write((ends - sizes).tobytes())
            start = int(ends[-1])
    return counts
