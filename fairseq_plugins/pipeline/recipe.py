"""Recipes: which files make up a corpus, and how they are prepared.

A recipe is a YAML file in ``data/recipes``, or anywhere else; its fields are those of
:class:`Recipe`. No code knows any corpus by name.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fairseq_plugins.pipeline.errors import UserError, did_you_mean
from fairseq_plugins.pipeline.typed_yaml import read_yaml

__all__ = [
    "Cleaning",
    "Part",
    "Recipe",
    "Subwords",
    "TextFile",
    "load_recipe",
    "recipe_names",
]

RECIPES = Path(__file__).resolve().parents[2] / "data" / "recipes"
_MODEL_TYPES = ("bpe", "unigram")
# These are fairseq's names; a test set called so would be taken for another one.
_SUBSET_NAME = re.compile(r"train|valid|test\d*")


@dataclass(frozen=True)
class TextFile:
    """One side of a part.

    Attributes:
        file: its name without ``.gz`` or ``.xz``.
        sha256: of the uncompressed text, if it is known.
    """

    file: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.file in ("", ".", "..") or "/" in self.file:
            raise UserError(f"`file` must be the name of a file, but is `{self.file}`.")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise UserError("`sha256` must be 64 lower-case hexadecimal digits.")


@dataclass(frozen=True)
class Part:
    """Two files whose lines are translations of each other.

    Attributes:
        name: the parts of ``train`` and ``valid`` are joined, so that only the name of
            a test set is seen later.
        lines: how many each side must have, if it is known.
    """

    name: str
    source: TextFile
    target: TextFile
    lines: int | None = None


@dataclass(frozen=True)
class Subwords:
    """One SentencePiece model for both languages.

    Attributes:
        vocab_size: pieces of the model; the dictionary has those in use.
        model_type: ``bpe`` or ``unigram``.
        character_coverage: share of all characters that get pieces of their own.
        max_lines: train on this many lines at most, of both languages together.
        seed: draws these lines if there are more.
    """

    vocab_size: int
    model_type: str
    character_coverage: float
    max_lines: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_lines"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise UserError(f"`{name}` must be positive, but is {value}.")
        if self.model_type not in _MODEL_TYPES:
            raise UserError(
                f"`model_type` must be one of {', '.join(_MODEL_TYPES)}, but is "
                f"`{self.model_type}`.{did_you_mean(self.model_type, _MODEL_TYPES)}"
            )
        if not 0 < self.character_coverage <= 1:
            raise UserError(
                "`character_coverage` must be above 0 and at most 1, but is "
                f"{self.character_coverage}."
            )


@dataclass(frozen=True)
class Cleaning:
    """What training pairs must be like; valid and test are never touched.

    Attributes:
        max_words: most words, split at white space, on either side.
    """

    max_words: int

    def __post_init__(self) -> None:
        if self.max_words < 1:
            raise UserError(f"`max_words` must be positive, but is {self.max_words}.")


@dataclass(frozen=True)
class Recipe:
    """A corpus and its preparation.

    Attributes:
        published: where a person finds the files.
        train: parts that are joined.
        valid: parts that are joined.
        test: sets that stay by themselves, fairseq's ``test``, ``test1``, ...
        folder: where the files are, relative to the recipe's own file; without it they
            must be given with ``--source``.
    """

    description: str
    source_lang: str
    target_lang: str
    licence: str
    published: str
    train: tuple[Part, ...]
    valid: tuple[Part, ...]
    test: tuple[Part, ...]
    subwords: Subwords
    cleaning: Cleaning
    folder: str | None = None

    def __post_init__(self) -> None:
        for language in (self.source_lang, self.target_lang):
            if not re.fullmatch("[A-Za-z0-9_]+", language):
                raise UserError(f"`{language}` must be a language code such as `de`.")
        if self.source_lang == self.target_lang:
            raise UserError("`source_lang` and `target_lang` must differ.")
        names = [part.name for part in self.test]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"`test` must not hold two sets named `{name}`.")
            if _SUBSET_NAME.fullmatch(name):
                raise UserError(f"`name` of a test set must not be `{name}`.")

    def subsets(self) -> dict[str, tuple[Part, ...]]:
        """Return the parts of each of fairseq's subsets, ``train`` first."""
        tests = {f"test{i or ''}": (part,) for i, part in enumerate(self.test)}
        return {"train": self.train, "valid": self.valid, **tests}


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str) -> tuple[Path, Recipe]:
    """Return a recipe and its file, given its name or the path of a YAML file.

    Raises:
        UserError: there is no such recipe, or its file is wrong.
    """
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_path else RECIPES / f"{name}.yaml"
    if path.is_file():
        return path, read_yaml(path, Recipe)
    names = recipe_names()
    raise UserError(
        f"there is no recipe `{name}`.{did_you_mean(name, names)} Recipes: "
        f"{', '.join(names)}; or give the path of a YAML file."
    )
