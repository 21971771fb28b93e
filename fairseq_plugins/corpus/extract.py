"""Find the texts of a recipe and write each part as plain aligned text."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, NamedTuple, Sequence

from fairseq_plugins.corpus.readers import Text, form_of, read_pairs
from fairseq_plugins.corpus.recipe import Archive, Part, Recipe, TextFile
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_lines, write_atomically
from fairseq_plugins.utils.progress import progress_bar

__all__ = ["Located", "LocatedPart", "extract", "locate", "source_folder"]

_ENDINGS = ("", ".gz", ".xz", ".zst")
_LINES_BETWEEN_UPDATES = 10_000
_OTHER_TEXT = (
    "To prepare another text than the recipe's, copy the recipe to a file of your own, "
    "remove `lines` and `sha256` and pass its path as the recipe."
)


class LocatedPart(NamedTuple):
    """A part of a recipe and the texts that hold its sides.

    If the texts hold more than the part, ``line_numbers`` is the file with the numbers
    of its lines. ``is_sample`` tells that the texts only resemble those of the recipe.
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
        left_out: names of the parts that were not found (only with ``--smoke``).
        archives: the archives to read from, by the paths that they have or will have
            after the download.
    """

    subsets: Mapping[str, Sequence[LocatedPart]]
    left_out: Sequence[str]
    archives: Mapping[Path, Archive]

    def parts(self) -> list[LocatedPart]:
        """Return the parts of all subsets."""
        return list(itertools.chain.from_iterable(self.subsets.values()))


def source_folder(recipe_file: Path, recipe: Recipe, given: Path | None) -> Path | None:
    """Return the folder with the recipe's files: the given one or the recipe's own.

    Returns:
        ``None`` if the files have to be downloaded.

    Raises:
        UserError: the given folder does not exist; or none is given, none comes with
            the recipe, and not everything can be downloaded.
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
    if all(part.archive for part in recipe.parts()):
        return None
    raise UserError(
        f"the files of `{recipe_file.stem}` do not come with the recipe and cannot be "
        "downloaded. Pass the folder that holds them with `--source DIR`.\n"
        f"{_describe_needs(recipe, recipe.parts())}"
    )


def locate(
    recipe: Recipe,
    folder: Path | None,
    *,
    downloads: Path | None = None,
    smoke: bool = False,
) -> Located:
    """Find every part in ``folder``, otherwise in an archive that can be downloaded.

    Args:
        folder: contains the files that the recipe names, plain, ``.gz`` or ``.xz``, or
            the archives.
        downloads: where downloaded archives are or will be; ``None`` forbids them.
        smoke: use samples in place of missing parts, and leave out parts without them.

    Raises:
        UserError: names all parts that are missing, and where they are published.
    """
    finder = _Finder(recipe, folder, downloads, smoke)
    subsets: dict[str, list[LocatedPart]] = {}
    missing: list[Part] = []
    for subset, parts in recipe.subsets().items():
        for part in parts:
            located = finder.find(part)
            if located is None:
                missing.append(part)
            else:
                subsets.setdefault(subset, []).append(located)
    if missing and not (smoke and {"train", "valid", "test"} <= subsets.keys()):
        names = itertools.chain.from_iterable(map(finder.missing_names, missing))
        raise UserError(
            f"`{folder or downloads}` lacks {', '.join(dict.fromkeys(names))}.\n"
            f"{_describe_needs(recipe, missing)}"
        )
    return Located(subsets, [part.name for part in missing], finder.archives)


class _Finder:
    def __init__(
        self, recipe: Recipe, folder: Path | None, downloads: Path | None, smoke: bool
    ) -> None:
        self._known = {archive.file: archive for archive in recipe.archives}
        self._folder = folder
        self._downloads = downloads
        self._smoke = smoke
        self.archives: dict[Path, Archive] = {}

    def find(self, part: Part) -> LocatedPart | None:
        sides = (part.source, part.target)
        own = [self._find_text(side, _own_names(side)) for side in sides]
        if own[0] and own[1]:
            return LocatedPart(part, own[0], own[1])
        index = self._find_file([part.local_index]) if part.local_index else None
        if index or not part.local_index:
            longer = [
                self._find_text(side, [*_own_names(side), *side.local])
                for side in sides
            ]
            if longer[0] and longer[1]:
                return LocatedPart(part, longer[0], longer[1], index)
        archive = self._find_archive(part.archive) if part.archive else None
        if archive is not None:
            source, target = (_as_text(archive, side, side.members) for side in sides)
            return LocatedPart(part, source, target)
        if self._smoke:
            samples = [
                self._find_text(TextFile(side.file), side.sample) for side in sides
            ]
            if samples[0] and samples[1]:
                return LocatedPart(part, samples[0], samples[1], is_sample=True)
        return None

    def missing_names(self, part: Part) -> list[str]:
        """Return the missing files, or the part itself if it is in an archive."""
        if part.archive is not None:
            return [part.name]
        return [
            side.file
            for side in (part.source, part.target)
            if self._find_file([*_own_names(side), *side.local]) is None
        ]

    def _find_text(self, side: TextFile, names: Sequence[str]) -> Text | None:
        path = self._find_file(names)
        return _as_text(path, side) if path else None

    def _find_file(self, patterns: Sequence[str]) -> Path | None:
        for pattern, ending in itertools.product(patterns, _ENDINGS):
            name = pattern + ending
            if Path(name).is_absolute():
                exact, matches = Path(name), []
            elif self._folder is not None:
                exact = self._folder / name
                matches = sorted(self._folder.glob(name))
            else:
                continue
            # The exact name first: it may contain characters such as `[`.
            for path in (exact, *matches):
                if path.is_file():
                    return path
        return None

    def _find_archive(self, name: str) -> Path | None:
        folders = [each for each in (self._folder, self._downloads) if each is not None]
        for folder in folders:
            if (folder / name).is_file() or folder == self._downloads:
                self.archives[folder / name] = self._known[name]
                return folder / name
        return None


def _as_text(path: Path, side: TextFile, members: tuple[str, ...] = ()) -> Text:
    form = side.form or form_of(members[0] if members else path.name)
    return Text(path, members, form, side.lang, side.translator, side.system)


def _own_names(side: TextFile) -> list[str]:
    return [side.file, *(side.members if len(side.members) == 1 else ())]


def _describe_needs(recipe: Recipe, parts: Sequence[Part]) -> str:
    rows = [
        f"  {part.source.file}, {part.target.file}"
        + (f" ({part.lines:,} lines each)" if part.lines else "")
        + (f", or {part.archive}" if part.archive else "")
        for part in parts
    ]
    return "\n".join(
        [
            "These files are needed, each with this name or with .gz or .xz after it:",
            *rows,
            f"They are published in {recipe.published}.",
            f"Licence: {recipe.licence}.",
        ]
    )


def extract(
    located: LocatedPart,
    outputs: tuple[Path, Path],
    *,
    languages: tuple[str, str],
    limit: int | None = None,
) -> dict[str, int]:
    """Write the source and the target side of a part, one segment per line.

    Args:
        outputs: files for the two sides.
        languages: of the two sides.
        limit: stop after this number of pairs, without the checks of the whole text.

    Returns:
        the number of ``lines`` that were read and, if it differs, of ``pairs`` that
        were written.

    Raises:
        UserError: a file is empty, damaged, not UTF-8 or not the text that the recipe
            names, or the sides have different numbers of segments.
    """
    part = located.part
    whole = _WholeText(located, languages)
    pairs: _Pairs = iter(whole)
    if located.line_numbers is not None:
        pairs = _pick(pairs, located.line_numbers)
    if not located.is_sample:
        pairs = _thin_out(pairs, part)
        if part.tokenised:
            pairs = _detokenize(pairs, part.name, languages)
    written = 0
    with write_atomically(outputs[0], "wb") as first, write_atomically(
        outputs[1], "wb"
    ) as second, progress_bar("lines") as bar:
        for source, target in itertools.islice(pairs, limit):
            first.write(source + b"\n")
            second.write(target + b"\n")
            written += 1
            if not written % _LINES_BETWEEN_UPDATES:
                bar.update(_LINES_BETWEEN_UPDATES)
        if limit is None:
            whole.check(written)
        if not written:
            raise UserError(f"`{located.source}` is empty.")
    lines = whole.num_pairs
    return {"lines": lines} if lines == written else {"lines": lines, "pairs": written}


_Pairs = Iterator[tuple[bytes, bytes]]


class _WholeText:
    """All pairs of a part, counted and hashed while they are read."""

    def __init__(self, located: LocatedPart, languages: tuple[str, str]) -> None:
        self.num_pairs = 0
        self._located = located
        self._languages = languages
        self._digests = (hashlib.sha256(), hashlib.sha256())

    def __iter__(self) -> _Pairs:
        source, target = self._located.source, self._located.target
        for pair in read_pairs(source, target, self._languages):
            self.num_pairs += 1
            for digest, segment in zip(self._digests, pair):
                digest.update(segment + b"\n")
            yield pair

    def check(self, written: int) -> None:
        """Compare what was read, and the number of written pairs, with the recipe."""
        part, source, target = self._located[:3]
        has_index = self._located.line_numbers is not None
        is_thinned = part.every is not None or part.but_every is not None
        lines = written if has_index else self.num_pairs
        if part.lines is not None and lines != part.lines and not is_thinned:
            raise UserError(
                f"`{source}` and `{target}` must have {part.lines:,} lines, but have "
                f"{lines:,}. {_OTHER_TEXT}"
            )
        if has_index:
            return  # the digests are those of the part, and a longer text was read
        files = (part.source, part.target)
        for text, file, sha256 in zip((source, target), files, self._digests):
            digest = sha256.hexdigest()
            if file.sha256 not in (None, digest):
                raise UserError(
                    f"`{text}` must hold the text with sha256 {file.sha256}, but its "
                    f"text has {digest}. {_OTHER_TEXT}"
                )


def _pick(pairs: _Pairs, index: Path) -> _Pairs:
    try:
        numbers = [int(line) for line in read_lines(index)]
    except ValueError as error:
        raise UserError(
            f"`{index}` must hold one line number per line: {error}."
        ) from None
    text = list(pairs)
    for place, number in enumerate(numbers, start=1):
        if not 0 <= number < len(text):
            raise UserError(
                f"`{index}` has line number {number} in its line {place}, but the text "
                f"has {len(text):,} lines."
            )
        yield text[number]


def _thin_out(pairs: _Pairs, part: Part) -> _Pairs:
    for number, pair in enumerate(pairs, start=1):
        if part.every is not None and number % part.every:
            continue
        if part.but_every is not None and not number % part.but_every:
            continue
        yield pair


def _detokenize(pairs: _Pairs, name: str, languages: tuple[str, str]) -> _Pairs:
    try:
        from sacremoses import MosesDetokenizer
    except ImportError:
        raise UserError(
            f"`{name}` is published tokenized. To detokenize it, install sacremoses: "
            "pip install -e '.[moses]'."
        ) from None
    join_source, join_target = (
        MosesDetokenizer(language).detokenize for language in languages
    )
    for source, target in pairs:
        yield (
            join_source(source.decode().split()).encode(),
            join_target(target.decode().split()).encode(),
        )
