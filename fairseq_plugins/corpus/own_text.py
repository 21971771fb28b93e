"""Turn a user's own parallel text into plain aligned files and the recipe for them."""

from __future__ import annotations

import hashlib
import itertools
import logging
import random
import shutil
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

import yaml

from fairseq_plugins.corpus.readers import Text, form_of, read_pairs, read_segments
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import (
    read_json,
    sha256_of,
    write_atomically,
    write_json,
)

__all__ = ["OwnText", "import_text"]

logger = logging.getLogger(__name__)

Pair = tuple[str, str]

_STATE = "import.json"
# Of a small corpus, at most this fraction of the pairs is drawn for valid or test.
_MOST_DRAWN = 0.2


@dataclass(frozen=True)
class OwnText:
    """The files of a corpus, as given on the command line.

    Attributes:
        train: one file that holds both sides (TSV, TMX or XML), or one for each side.
            ``-`` is a TSV file on the standard input.
        valid: the same, or one number: draw so many pairs from ``train``.
        test: like ``valid``.
        languages: source and target.
        columns: the columns of a TSV file, as numbers from 1 or names in its header.
        seed: decides which pairs are drawn.
        remove_overlap: remove pairs from ``train`` if their source or target also
            occurs in the ``valid`` or ``test`` files. With drawn pairs this is always
            done.
    """

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    languages: tuple[str, str]
    columns: tuple[str, str] | None = None
    seed: int = 1
    remove_overlap: bool = False

    def __post_init__(self) -> None:
        if self.languages[0] == self.languages[1]:
            raise UserError(
                f"`--langs` must name two languages, but names `{self.languages[0]}` "
                "twice."
            )
        for option in ("train", "valid", "test"):
            files = getattr(self, option)
            if len(files) > 2:
                raise UserError(
                    f"`--{option}` must be one file with both sides or two files, but "
                    f"has {len(files)}."
                )
            if len(files) == 2 and Path(files[0]).resolve() == Path(files[1]).resolve():
                raise UserError(
                    f"`--{option}` must name a file for each side, but names "
                    f"`{files[0]}` twice."
                )
        if _number(self.train) is not None:
            raise UserError("`--train` must name files, but is a number.")


def import_text(name: str, own: OwnText, folder: Path) -> Path:
    """Write ``given/SUBSET.LANG`` and the recipe ``NAME.yaml`` below a folder.

    A second call with the same files and options does nothing. If valid or test pairs
    are drawn, memory grows with the number of pairs in ``train``.

    Returns:
        the path of the recipe.

    Raises:
        UserError: a file is missing, damaged or has another form than expected, or
            there are too few pairs to draw from.
    """
    given, recipe_file = folder / "given", folder / f"{name}.yaml"
    given.mkdir(parents=True, exist_ok=True)
    own = _spool_standard_input(own, given)
    state = _describe(own)
    if recipe_file.is_file() and _read_state(given / _STATE) == state:
        return recipe_file
    (given / _STATE).unlink(missing_ok=True)
    num_pairs = _write_subsets(own, given)
    _write_recipe(recipe_file, name, own, num_pairs)
    write_json(given / _STATE, state)
    return recipe_file


def _write_subsets(own: OwnText, folder: Path) -> int:
    """Write all subsets; return the number of training pairs."""
    read_train = _reader(own.train, own)
    held_out_keys: tuple[set[int], set[int]] = (set(), set())
    sizes: dict[str, int] = {}
    for subset, files in (("valid", own.valid), ("test", own.test)):
        size = _number(files)
        if size is not None:
            sizes[subset] = size
            continue
        read = _reader(files, own)
        if not _write(read(), folder, subset, own.languages):
            raise UserError(f"`--{subset}` must hold pairs, but is empty.")
        if own.remove_overlap:
            _add_keys(held_out_keys, read())
    drawn = _draw(read_train, sizes, own.seed)
    for subset, numbers in drawn.items():
        pairs = [pair for n, pair in enumerate(read_train()) if n in numbers]
        _write(pairs, folder, subset, own.languages)
        _add_keys(held_out_keys, pairs)
    left_out: set[int] = set().union(*drawn.values())
    num_removed = 0

    def remaining() -> Iterator[Pair]:
        nonlocal num_removed
        for number, pair in enumerate(read_train()):
            if number in left_out:
                continue
            if any(_key(side) in keys for side, keys in zip(pair, held_out_keys)):
                num_removed += 1
            else:
                yield pair

    num_pairs = _write(remaining(), folder, "train", own.languages)
    if num_removed:
        logger.info(
            "%s pairs removed from train: valid or test contains one of their sides",
            f"{num_removed:,}",
        )
    if not num_pairs:
        raise UserError("`--train` must hold pairs besides those of valid and test.")
    return num_pairs


def _number(files: Sequence[str]) -> int | None:
    return int(files[0]) if len(files) == 1 and files[0].isdigit() else None


def _spool_standard_input(own: OwnText, folder: Path) -> OwnText:
    if own.train != ("-",):
        return own
    spooled = folder / "standard_input.tsv"
    with write_atomically(spooled, "wb") as stream:
        shutil.copyfileobj(sys.stdin.buffer, stream)
    values = {**own.__dict__, "train": (str(spooled),)}
    return OwnText(**values)


def _describe(own: OwnText) -> dict[str, Any]:
    """Return everything that decides the written files, in types of JSON."""
    digests = {
        str(Path(file).resolve()): sha256_of(_existing(file))
        for files in (own.train, own.valid, own.test)
        if _number(files) is None
        for file in files
    }
    options = {key: list(value) if isinstance(value, tuple) else value
               for key, value in own.__dict__.items()}  # fmt: skip
    return {"options": options, "sha256": digests}


def _read_state(path: Path) -> Any:
    try:
        return read_json(path)
    except UserError:
        return None


def _existing(file: str) -> Path:
    path = Path(file)
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"`{file}` must be a file, but {fault}.")
    return path


def _reader(files: Sequence[str], own: OwnText) -> Callable[[], Iterator[Pair]]:
    """Return a function that reads the pairs of one or two files from the start."""
    paths = [_existing(file) for file in files]
    if len(paths) == 2:
        return lambda: _read_aligned(paths, own.languages)
    if form_of(paths[0].name) in ("sgm", "tmx"):
        return lambda: _read_aligned([paths[0], paths[0]], own.languages)
    return lambda: _read_tsv(paths[0], own.columns)


def _read_aligned(paths: Sequence[Path], languages: tuple[str, str]) -> Iterator[Pair]:
    source, target = (Text(path, (), form_of(path.name)) for path in paths)
    for pair in read_pairs(source, target, languages):
        yield pair[0].decode(), pair[1].decode()


def _read_tsv(path: Path, columns: tuple[str, str] | None) -> Iterator[Pair]:
    rows: Iterator[list[str]] = (
        line.decode().split("\t") for line in read_segments(Text(path, (), "plain"), "")
    )
    first = next(rows, None)
    if first is None:
        raise UserError(f"`{path}` must hold pairs, but is empty.")
    places, has_header = _find_columns(path, first, columns)
    if not has_header:
        rows = itertools.chain([first], rows)
    for number, row in enumerate(rows, start=1 + has_header):
        if len(row) <= max(places):
            raise UserError(
                f"line {number} of `{path}` must have at least {max(places) + 1} "
                f"columns with tabs between them, but has {len(row)}: "
                f"`{' | '.join(row)[:80]}`."
            )
        yield row[places[0]], row[places[1]]


def _find_columns(
    path: Path, first: list[str], columns: tuple[str, str] | None
) -> tuple[tuple[int, int], bool]:
    """Return the places of both columns, and whether the first line is a header."""
    if columns is None:
        if len(first) != 2:
            shown = ", ".join(f"{n} `{v[:30]}`" for n, v in enumerate(first, start=1))
            raise UserError(
                f"`{path}` must have two columns with a tab between them, but has "
                f"{len(first)}: {shown}. Choose two with `--columns`."
            )
        return (0, 1), False
    if all(column.isdigit() for column in columns):
        numbers = tuple(int(column) for column in columns)
        for number in numbers:
            if not 1 <= number <= len(first):
                raise UserError(
                    f"`--columns` must be between 1 and {len(first)}, the number of "
                    f"columns of `{path}`, but is {number}."
                )
        places = (numbers[0] - 1, numbers[1] - 1)
        has_header = False
    else:
        for column in columns:
            if column not in first:
                raise UserError(
                    f"`--columns` must be names in the first line of `{path}` "
                    f"({', '.join(first)}), but `{column}` is not there."
                )
        places = (first.index(columns[0]), first.index(columns[1]))
        has_header = True
    if places[0] == places[1]:
        raise UserError(
            f"`--columns` must be two columns, but is `{columns[0]}` twice."
        )
    return places, has_header


def _key(line: str) -> int:
    """Return 64 bits that are equal for sentences that differ only in form, 0 if empty.

    Case, width and white space are form.
    """
    text = " ".join(unicodedata.normalize("NFKC", line).casefold().split())
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") if text else 0


def _add_keys(sides: tuple[set[int], set[int]], pairs: Iterable[Pair]) -> None:
    for pair in pairs:
        for keys, side in zip(sides, pair):
            keys.add(_key(side))


def _draw(
    read: Callable[[], Iterator[Pair]], sizes: dict[str, int], seed: int
) -> dict[str, set[int]]:
    """Draw disjoint sets of pairs, no two of which share a source or a target.

    Returns:
        for each set the numbers of its lines, from 0.
    """
    if not sizes:
        return {}
    keys = [(_key(source), _key(target)) for source, target in read()]
    for subset, size in sizes.items():
        if not 1 <= size <= _MOST_DRAWN * len(keys):
            raise UserError(
                f"`--{subset}` must be between 1 and {_MOST_DRAWN:.0%} of the "
                f"{len(keys):,} pairs in `--train`, but is {size:,}."
            )
    order = list(range(len(keys)))
    random.Random(seed).shuffle(order)
    used: tuple[set[int], set[int]] = ({0}, {0})  # 0: sides without text
    chosen: list[int] = []
    for number in order:
        if any(key in known for key, known in zip(keys[number], used)):
            continue
        for key, known in zip(keys[number], used):
            known.add(key)
        chosen.append(number)
    if len(chosen) <= sum(sizes.values()):
        raise UserError(
            f"{sum(sizes.values()):,} pairs must be drawn for valid and test, but "
            f"`--train` has only {len(chosen):,} pairs with different sides."
        )
    numbers = iter(chosen)
    return {name: set(itertools.islice(numbers, size)) for name, size in sizes.items()}


def _write(
    pairs: Iterable[Pair], folder: Path, subset: str, languages: Sequence[str]
) -> int:
    """Write both sides of a subset; return the number of pairs."""
    source, target = (folder / f"{subset}.{language}" for language in languages)
    count = 0
    with write_atomically(source) as first, write_atomically(target) as second:
        for pair in pairs:
            first.write(pair[0] + "\n")
            second.write(pair[1] + "\n")
            count += 1
    return count


def _write_recipe(path: Path, name: str, own: OwnText, num_pairs: int) -> None:
    source, target = own.languages

    def part(subset: str, title: str) -> dict[str, Any]:
        return {
            "name": title,
            "source": {"file": f"{subset}.{source}"},
            "target": {"file": f"{subset}.{target}"},
        }

    # A small corpus cannot fill a large vocabulary.
    vocabulary = min(16000, max(1000, num_pairs // 5000 * 1000))
    content = {
        "description": f"{name}, {source} to {target}",
        "source_lang": source,
        "target_lang": target,
        "folder": "given",
        "train": [part("train", "train")],
        "valid": [part("valid", "valid")],
        "test": [part("test", f"{name}_test")],
        "subwords": {"vocab_size": vocabulary},
        "cleaning": {"max_words": 250, "normalise": True, "drop_duplicates": True},
        "checks": "refuse",
    }
    head = (
        f"# Written by scripts/prepare.py {name} --train ...; edit it and run\n"
        f"#   scripts/prepare.py {path}\n"
    )
    with write_atomically(path) as stream:
        stream.write(
            head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        )
