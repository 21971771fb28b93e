"""Find the files of a recipe, and say which are missing and where to get them."""
from __future__ import annotations

import itertools
from pathlib import Path
from typing import Iterable, NamedTuple

from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.recipe import Part, Recipe

__all__ = ["LocatedPart", "locate", "source_folder"]

_ENDINGS = ("", ".gz", ".xz")


class LocatedPart(NamedTuple):
    """A part of a recipe and the two files that hold it, which may be compressed."""

    part: Part
    source: Path
    target: Path


def source_folder(recipe_file: Path, recipe: Recipe, given: Path | None) -> Path:
    """Return the folder with the recipe's files: the given one or the recipe's own.

    Raises:
        UserError: none is given and none comes with the recipe, or it does not exist.
    """
    if given is not None:
        if not given.is_dir():
            fault = "is not a folder" if given.exists() else "does not exist"
            raise UserError(
                f"`--source` must be a folder with the files of the recipe, but "
                f"`{given}` {fault}."
            )
        return given
    if recipe.folder is None:
        raise UserError(
            f"the files of `{recipe_file.stem}` do not come with the recipe. Give the "
            f"folder that holds them with `--source DIR`.\n{_needs(recipe)}"
        )
    return (recipe_file.parent / recipe.folder).resolve()


def locate(recipe: Recipe, folder: Path) -> dict[str, tuple[LocatedPart, ...]]:
    """Return the files of each subset; ``NAME``, ``NAME.gz`` or ``NAME.xz`` is one.

    Raises:
        UserError: names all files that are missing, and where they are published.
    """
    found = {name: _find(folder, name) for name in _file_names(recipe)}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise UserError(f"`{folder}` lacks {', '.join(missing)}.\n{_needs(recipe)}")
    paths = {name: path for name, path in found.items() if path is not None}
    return {
        subset: tuple(
            LocatedPart(part, paths[part.source.file], paths[part.target.file])
            for part in parts
        )
        for subset, parts in recipe.subsets().items()
    }


def _find(folder: Path, name: str) -> Path | None:
    for ending in _ENDINGS:
        path = folder / (name + ending)
        if path.is_file():
            return path
    return None


def _parts(recipe: Recipe) -> Iterable[Part]:
    return itertools.chain.from_iterable(recipe.subsets().values())


def _file_names(recipe: Recipe) -> list[str]:
    return [
        text.file for part in _parts(recipe) for text in (part.source, part.target)
    ]


def _needs(recipe: Recipe) -> str:
    rows = [
        f"  {part.source.file}, {part.target.file}"
        + (f" ({part.lines:,} lines each)" if part.lines else "")
        for part in _parts(recipe)
    ]
    return "\n".join(
        [
            "These files are needed, each as it is named here or as .gz or .xz:",
            *rows,
            f"They are published in {recipe.published}.",
            f"Licence: {recipe.licence}.",
        ]
    )
