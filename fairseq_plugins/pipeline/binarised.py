"""Make the folder that ``fairseq-train`` reads, and look into it."""
from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import struct
import sys
from pathlib import Path
from typing import Iterable, Mapping, NamedTuple

import numpy as np

from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.process import run_logged

__all__ = ["BinarisedText", "binarise", "binary_names", "inspect"]

logger = logging.getLogger(__name__)

# fairseq.data.indexed_dataset.MMapIndexedDataset.Index: magic, version, element type
# and number of sentences; an int32 length for each and then an int64 place follow.
_HEADER = struct.Struct("<9sQBQ")
_MAGIC = b"MMIDIDX\x00\x00"
_ELEMENT_TYPES: dict[int, np.dtype] = {4: np.dtype("int32"), 8: np.dtype("uint16")}
# After <s>, <pad> and </s>, in every dictionary of fairseq.
_UNKNOWN_ID = 3


class BinarisedText(NamedTuple):
    """What a ``.bin`` file holds; every sentence ends with an end mark."""

    sentences: int
    tokens: int
    unknown: int


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
    pieces: Path,
    destination: Path,
    *,
    pairs: Mapping[str, int],
    source_lang: str,
    target_lang: str,
    log: Path,
) -> dict[str, dict[str, int]]:
    """Run fairseq-preprocess with one dictionary for both languages.

    Args:
        pieces: folder with ``SUBSET.LANGUAGE`` for every subset and language.
        destination: gets its name when everything in it is there and checked, and
            replaces what was there before.
        pairs: how many there are in ``train``, in ``valid`` and in the test sets, which
            come in fairseq's order.
        log: receives what fairseq-preprocess prints.

    Returns:
        for each ``SUBSET.LANGUAGE`` the fields of :class:`BinarisedText`.

    Raises:
        UserError: fairseq-preprocess failed.
        OSError: it failed because the disk is full.
    """
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tests = [str(pieces / name) for name in pairs if name.startswith("test")]
    options = {
        "--source-lang": source_lang,
        "--target-lang": target_lang,
        "--trainpref": pieces / "train",
        "--validpref": pieces / "valid",
        "--testpref": ",".join(tests),
        "--destdir": partial,
        # The processes of a pool would outlive their parent if it were killed.
        "--workers": 1,
    }
    try:
        _preprocess(options, log=log)
        direction = f"{source_lang}-{target_lang}"
        counts = {
            f"{subset}.{language}": _counts(
                partial / f"{subset}.{direction}.{language}", pairs=expected
            )
            for subset, expected in pairs.items()
            for language in (source_lang, target_lang)
        }
        # The same as our log, but with the name of a folder that is about to vanish.
        (partial / "preprocess.log").unlink()
        shutil.rmtree(destination, ignore_errors=True)
        os.replace(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def _counts(prefix: Path, *, pairs: int) -> dict[str, int]:
    text = inspect(prefix)
    if text.sentences != pairs:
        raise UserError(
            f"fairseq-preprocess wrote {text.sentences:,} sentences of {pairs:,} to "
            f"{prefix.name}."
        )
    return text._asdict()


def _preprocess(options: Mapping[str, object], *, log: Path) -> None:
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--joined-dictionary"]
    for option, value in options.items():
        command += [option, str(value)]
    outcome = run_logged(command, log=log, on_line=_show)
    if outcome.status == 0:
        return
    last_lines = "\n".join(outcome.last_lines)
    # "OSError: [Errno 28] No space left on device" after a long traceback.
    reason = re.search(r"OSError: \[Errno (\d+)\]", last_lines)
    if reason and int(reason[1]) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise OSError(int(reason[1]), os.strerror(int(reason[1])), str(log.parent))
    raise UserError(
        f"fairseq-preprocess failed with status {outcome.status}. The end of "
        f"`{log}`:\n{last_lines}"
    )


def _show(line: str) -> None:
    """Show how far fairseq-preprocess has come: it reports each file at its end."""
    report = re.search(r"[^/]*: \d+ sents, .*", line)
    if report:
        logger.info("      %s", report[0])


def inspect(prefix: Path) -> BinarisedText:
    """Count what stands in ``prefix.bin``, by ``prefix.idx``.

    Args:
        prefix: such as ``bin/train.de-en.de``.

    Raises:
        UserError: the two files do not belong together or are not fairseq's.
    """
    index, binary = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    content = index.read_bytes()
    try:
        magic, _, element_code, sentences = _HEADER.unpack_from(content)
        lengths = np.frombuffer(content, np.int32, sentences, _HEADER.size)
        element = _ELEMENT_TYPES[element_code]
    except (struct.error, ValueError, KeyError):
        magic = None
    if magic != _MAGIC:
        raise UserError(f"`{index}` is not an index that fairseq wrote.")
    tokens = int(lengths.sum(dtype=np.int64))
    if binary.stat().st_size != tokens * element.itemsize:
        raise UserError(f"`{binary}` has not the size that `{index}` says.")
    ids = np.memmap(binary, element, mode="r")
    return BinarisedText(sentences, tokens, int(np.count_nonzero(ids == _UNKNOWN_ID)))
