"""Find the texts of a recipe, and say which are missing and where to get them.

Write both sides of a part as plain aligned text, and check that they are it.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Iterator, Mapping, NamedTuple, Sequence

from fairseq_plugins.corpus.readers import Text, form_of, segments
from fairseq_plugins.corpus.recipe import Archive, Part, Recipe, TextFile
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_lines, write_atomically
from fairseq_plugins.utils.progress import Progress

__all__ = ["Located", "LocatedPart", "extract", "locate", "source_folder"]

_ENDINGS = ("", ".gz", ".xz")


class LocatedPart(NamedTuple):
    """A part of a recipe and the texts that hold its sides.

    ``line_numbers`` is the file with the numbers of its lines, where they are not all
    its own. ``is_sample`` tells that the texts are of its kind but not what the recipe
    names.
    """

    part: Part
    source: Text
    target: Text
    line_numbers: Path | None = None
    is_sample: bool = False


@dataclass(frozen=True)
class Located:
    """Where all the texts of a recipe are.

    Attributes:
        subsets: the parts that were found, by fairseq's names of the subsets.
        left_out: names of the parts that were not (only with ``--smoke``).
        archives: those that the parts are read from, with the files that they are, or
            will be when they are downloaded.
    """

    subsets: Mapping[str, Sequence[LocatedPart]]
    left_out: Sequence[str]
    archives: Mapping[Path, Archive]


def source_folder(recipe_file: Path, recipe: Recipe, given: Path | None) -> Path | None:
    """Return the folder with the recipe's files: the given one or the recipe's own.

    Returns:
        ``None`` if they are to be downloaded.

    Raises:
        UserError: none is given, none comes with the recipe and nothing can be
            downloaded, or the folder does not exist.
    """
    if given is not None:
        if not given.is_dir():
            fault = "is not a folder" if given.exists() else "does not exist"
            raise UserError(
                f"`--source` must be a folder with the files of the recipe, but "
                f"`{given}` {fault}."
            )
        return given
    if recipe.folder is not None:
        return (recipe_file.parent / recipe.folder).resolve()
    if all(part.archive for part in _parts(recipe)):
        return None
    raise UserError(
        f"the files of `{recipe_file.stem}` do not come with the recipe and cannot be "
        "downloaded. Give the folder that holds them with `--source DIR`.\n"
        f"{_needs(recipe, list(_parts(recipe)))}"
    )


def locate(
    recipe: Recipe,
    folder: Path | None,
    *,
    downloads: Path | None = None,
    smoke: bool = False,
) -> Located:
    """Find every part: in ``folder``, else in an archive that can be downloaded.

    Args:
        folder: files as the recipe names them, plain, ``.gz`` or ``.xz``, or archives.
        downloads: where downloaded archives are or will be; ``None`` forbids them.
        smoke: take samples for what is not there, and leave out what has none.

    Raises:
        UserError: names all parts that are missing, and where they are published.
    """
    finder = _Finder(recipe, folder, downloads, smoke)
    found = {
        subset: [(part, finder.find(part)) for part in parts]
        for subset, parts in recipe.subsets().items()
    }
    pairs = list(itertools.chain.from_iterable(found.values()))
    missing = [part for part, located in pairs if located is None]
    names = itertools.chain.from_iterable(map(finder.missing_names, missing))
    subsets = {
        subset: tuple(located for _, located in parts if located is not None)
        for subset, parts in found.items()
    }
    empty = not all(subsets[subset] for subset in ("train", "valid", "test"))
    if missing and (empty or not smoke):
        listed = ", ".join(dict.fromkeys(names))
        raise UserError(
            f"`{folder or downloads}` lacks {listed}.\n{_needs(recipe, missing)}"
        )
    return Located(
        {name: parts for name, parts in subsets.items() if parts},
        [part.name for part in missing],
        finder.archives,
    )


class _Finder:
    def __init__(
        self, recipe: Recipe, folder: Path | None, downloads: Path | None, smoke: bool
    ) -> None:
        self._recipe = recipe
        self._folder = folder
        self._downloads = downloads
        self._smoke = smoke
        self.archives: dict[Path, Archive] = {}

    def find(self, part: Part) -> LocatedPart | None:
        index = self._index(part)
        local = part.local_index is None or index is not None
        sides = [self._whole(text, local) for text in (part.source, part.target)]
        if sides[0] and sides[1]:
            own = all(self._whole(text, False) for text in (part.source, part.target))
            return LocatedPart(part, sides[0], sides[1], None if own else index)
        if part.archive is not None:
            path = self._archive(part.archive)
            if path is not None:
                texts = [Text(path, side.members, side.form or form_of(side.members[0]))
                         for side in (part.source, part.target)]  # fmt: skip
                return LocatedPart(part, texts[0], texts[1])
        if self._smoke:
            samples = [self._first(side.sample) for side in (part.source, part.target)]
            if samples[0] and samples[1]:
                texts = [Text(path, (), form_of(path.name)) for path in samples if path]
                return LocatedPart(part, texts[0], texts[1], is_sample=True)
        return None

    def missing_names(self, part: Part) -> list[str]:
        """Return what a person has to look for: files, or the part in an archive."""
        if part.archive is not None:
            return [part.name]
        sides = (part.source, part.target)
        return [side.file for side in sides if self._whole(side, True) is None]

    def _whole(self, side: TextFile, local: bool) -> Text | None:
        names = [side.file, *(side.members if len(side.members) == 1 else ())]
        path = self._first([*names, *(side.local if local else ())])
        if path is None:
            return None
        return Text(path, (), side.form or form_of(path.name))

    def _first(self, patterns: Sequence[str]) -> Path | None:
        if self._folder is None:
            return None
        for pattern, ending in itertools.product(patterns, _ENDINGS):
            matches = sorted(self._folder.glob(pattern + ending))
            for path in matches:
                if path.is_file():
                    return path
        return None

    def _index(self, part: Part) -> Path | None:
        return self._first([part.local_index]) if part.local_index else None

    def _archive(self, name: str) -> Path | None:
        folders = [self._folder, self._downloads]
        paths = [folder / name for folder in folders if folder is not None]
        there = [path for path in paths if path.is_file()]
        if not there and self._downloads is not None:
            there = [self._downloads / name]
        if not there:
            return None
        self.archives[there[0]] = self._recipe.archive(name)
        return there[0]


def _parts(recipe: Recipe) -> Iterable[Part]:
    return itertools.chain.from_iterable(recipe.subsets().values())


def _needs(recipe: Recipe, parts: Sequence[Part]) -> str:
    rows = [
        f"  {part.source.file}, {part.target.file}"
        + (f" ({part.lines:,} lines each)" if part.lines else "")
        + (f", or {part.archive}" if part.archive else "")
        for part in parts
    ]
    return "\n".join(
        [
            "These files are needed, each as it is named here or as .gz or .xz:",
            *rows,
            f"They are published in {recipe.published}.",
            f"Licence: {recipe.licence}.",
        ]
    )


_LINES_BETWEEN_LOOKS = 10_000
_OTHER_TEXT = (
    "To prepare another text than the recipe's, copy the recipe to a file of your own, "
    "take `lines` and `sha256` out and give its path as the recipe."
)


def extract(
    located: LocatedPart,
    outputs: tuple[Path, Path],
    *,
    languages: tuple[str, str],
    limit: int | None = None,
) -> dict[str, int]:
    """Write ``outputs``, one segment a line.

    Args:
        located: the part and where its texts are.
        outputs: files for the source and the target side.
        languages: of the two sides.
        limit: stop after so many pairs, without the checks that need the whole.

    Returns:
        the number of ``lines`` that were read and, if that is another one, of ``pairs``
        that were written.

    Raises:
        UserError: a file is empty, damaged, not UTF-8 or not the text that the recipe
            names; sides have different numbers of segments.
    """
    part = located.part
    sides = [
        _Side(text, language)
        for text, language in zip((located.source, located.target), languages)
    ]
    pairs: Iterator[tuple[bytes, bytes]] = _aligned(sides[0], sides[1])
    if located.line_numbers is not None:
        pairs = _picked(pairs, located.line_numbers)
    if not located.is_sample:
        pairs = _thinned(pairs, part)
    joined = part.tokenised and not located.is_sample
    finish = [_finisher(part.name if joined else "", each) for each in languages]
    written, progress = 0, Progress("lines")
    with write_atomically(outputs[0], "wb") as first, write_atomically(
        outputs[1], "wb"
    ) as second:
        for source, target in itertools.islice(pairs, limit):
            first.write(finish[0](source) + b"\n")
            second.write(finish[1](target) + b"\n")
            written += 1
            if not written % _LINES_BETWEEN_LOOKS:
                progress.add(_LINES_BETWEEN_LOOKS)
        if limit is None:
            _check(located, sides, written)
        if not written:
            raise UserError(f"`{sides[0].text}` is empty.")
    lines = sides[0].count
    return {"lines": lines} if lines == written else {"lines": lines, "pairs": written}


class _Side:
    """The segments of a side, counted and digested while they are read, once."""

    def __init__(self, text: Text, language: str) -> None:
        self.text = text
        self.count = 0
        self._language = language
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for segment in segments(self.text, self._language):
            self.count += 1
            self._digest.update(segment + b"\n")
            # White space of other kinds stays: only a line feed ends a line.
            yield segment.replace(b"\n", b" ")

    def sha256(self) -> str:
        """Return the digest of the text that was read so far, with ``\\n`` ends."""
        return self._digest.hexdigest()


def _aligned(source: _Side, target: _Side) -> Iterator[tuple[bytes, bytes]]:
    for first, second in itertools.zip_longest(source, target):
        if first is not None and second is not None:
            yield first, second


def _picked(
    pairs: Iterator[tuple[bytes, bytes]], index: Path
) -> Iterator[tuple[bytes, bytes]]:
    try:
        numbers = [int(line) for line in read_lines(index)]
    except ValueError as error:
        raise UserError(
            f"`{index}` must hold one line number a line: {error}."
        ) from None
    text = list(pairs)
    for place, number in enumerate(numbers, start=1):
        if not 0 <= number < len(text):
            raise UserError(
                f"`{index}` has line number {number} in its line {place}, but the text "
                f"has {len(text):,} lines."
            )
        yield text[number]


def _thinned(
    pairs: Iterator[tuple[bytes, bytes]], part: Part
) -> Iterator[tuple[bytes, bytes]]:
    for number, pair in enumerate(pairs, start=1):
        if part.every is not None and number % part.every:
            continue
        if part.but_every is not None and not number % part.but_every:
            continue
        yield pair


def _finisher(tokenised_part: str, language: str) -> Callable[[bytes], bytes]:
    if not tokenised_part:
        return lambda segment: segment
    try:
        from sacremoses import MosesDetokenizer
    except ImportError:
        raise UserError(
            f"`{tokenised_part}` is published tokenised; to join its tokens, install "
            "sacremoses: pip install -e '.[moses]'."
        ) from None
    join = MosesDetokenizer(language).detokenize
    return lambda segment: join(segment.decode().split()).encode()


def _check(located: LocatedPart, sides: list[_Side], written: int) -> None:
    part, (source, target) = located.part, sides
    for side in sides:
        if not side.count:
            raise UserError(f"`{side.text}` is empty.")
    if source.count != target.count:
        raise UserError(
            f"`{source.text}` and `{target.text}` must have equally many lines, but "
            f"have {source.count:,} and {target.count:,}."
        )
    thinned = part.every is not None or part.but_every is not None
    lines = written if located.line_numbers is not None else source.count
    if part.lines is not None and lines != part.lines and not thinned:
        raise UserError(
            f"`{source.text}` and `{target.text}` must have {part.lines:,} lines, but "
            f"have {lines:,}. {_OTHER_TEXT}"
        )
    if located.line_numbers is None:  # otherwise it was a longer text that was read
        for side, file in zip(sides, (part.source, part.target)):
            _check_digest(side, file)


def _check_digest(side: _Side, file: TextFile) -> None:
    if file.sha256 is not None and side.sha256() != file.sha256:
        raise UserError(
            f"`{side.text}` must hold the text with sha256 {file.sha256}, but its text "
            f"has {side.sha256()}. {_OTHER_TEXT}"
        )
