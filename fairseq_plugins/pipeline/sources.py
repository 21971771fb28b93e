"""Find the texts of a recipe, and say which are missing and where to get them."""
from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Mapping, NamedTuple, Sequence

from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.recipe import Archive, Part, Recipe, TextFile
from fairseq_plugins.pipeline.texts import Text, form_of

__all__ = ["LocatedPart", "Located", "locate", "source_folder"]

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
