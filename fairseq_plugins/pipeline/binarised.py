"""Make the files that ``fairseq-train`` reads, byte by byte as fairseq-preprocess does.

Format: ``fairseq.data.indexed_dataset.MMapIndexedDataset`` and ``fairseq.data.
Dictionary``. A test compares both with fairseq's own.
"""
from __future__ import annotations

import contextlib
import os
import shutil
import struct
from collections import Counter
from pathlib import Path
from typing import Iterable, Mapping, NamedTuple, Sequence

import numpy as np

from fairseq_plugins.pipeline.encoding import EncodedText
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import write_atomically

__all__ = [
    "BinarisedText",
    "Dictionary",
    "binarise",
    "binary_names",
    "inspect",
    "write_binary",
]

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
