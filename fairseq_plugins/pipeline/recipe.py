"""Recipes: which files make up a corpus, and how they are prepared.

A recipe is a YAML file in ``data/recipes``, or anywhere else; its fields are those of
:class:`Recipe`. No code knows any corpus by name.
"""
from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from fairseq_plugins.pipeline.errors import UserError, did_you_mean
from fairseq_plugins.pipeline.recipe_files import Archive, Part, TextFile
from fairseq_plugins.pipeline.typed_yaml import read_yaml

__all__ = [
    "Archive",
    "Cleaning",
    "Part",
    "Recipe",
    "Subwords",
    "TextFile",
    "load_recipe",
    "recipe_names",
]

RECIPES = Path(__file__).resolve().parents[2] / "data" / "recipes"
_MODEL_TYPES = ("bpe", "unigram", "subword-nmt")
# These are fairseq's names; a test set called so would be taken for another one.
_SUBSET_NAME = re.compile(r"train|valid|test\d*")


@dataclass(frozen=True)
class Subwords:
    """One SentencePiece model, or one set of subword-nmt's merges, for both languages.

    Attributes:
        vocab_size: pieces of the model, or merges; the dictionary has those in use.
        model_type: ``bpe`` or ``unigram`` of SentencePiece, or ``subword-nmt`` after
            Moses' tokeniser, as in older papers (``character_coverage`` is not used).
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
        _check_positive(self, "vocab_size", "max_lines")
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

    A pair with an empty side is always dropped. The other filters work if they are
    given, in this order, and each counts what it drops.

    Attributes:
        max_words: most words, split at white space, on either side.
        normalise: bring training text into Unicode's form NFC, without control and
            format characters, with single spaces. Nothing is dropped by it.
        max_ratio: most times as many words (plus one) on one side as on the other.
        max_word_length: most characters of a single word: longer ones are addresses,
            tables or another script's sentences.
        min_letters: least share of letters among the characters that are not spaces.
        drop_copies: drop pairs whose sides are equal.
        drop_duplicates: of equal pairs keep the first only.
    """

    max_words: int
    normalise: bool = False
    max_ratio: float | None = None
    max_word_length: int | None = None
    min_letters: float | None = None
    drop_copies: bool = False
    drop_duplicates: bool = False

    def __post_init__(self) -> None:
        _check_positive(self, "max_words", "max_word_length")
        if self.max_ratio is not None and not 1 <= self.max_ratio < math.inf:
            raise UserError(f"`max_ratio` must be at least 1, but is {self.max_ratio}.")
        if self.min_letters is not None and not 0 < self.min_letters <= 1:
            raise UserError(
                "`min_letters` must be above 0 and at most 1, but is "
                f"{self.min_letters}."
            )


@dataclass(frozen=True)
class Recipe:
    """A corpus and its preparation.

    Attributes:
        published: where a person finds the files.
        train: parts that are joined.
        valid: parts that are joined.
        test: sets that stay by themselves, fairseq's ``test``, ``test1``, ...
        folder: where the files are, relative to the recipe's own file; without it they
            are downloaded or given with ``--source``.
        archives: what can be downloaded.
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
    archives: tuple[Archive, ...] = ()

    def __post_init__(self) -> None:
        for language in (self.source_lang, self.target_lang):
            if not re.fullmatch("[A-Za-z0-9_]+", language):
                raise UserError(f"`{language}` must be a language code such as `de`.")
        if self.source_lang == self.target_lang:
            raise UserError("`source_lang` and `target_lang` must differ.")
        for place in ("train", "valid", "test"):
            names = [part.name for part in getattr(self, place)]
            for name in names:
                if names.count(name) > 1:
                    kind = "sets" if place == "test" else "parts"
                    raise UserError(
                        f"`{place}` must not hold two {kind} named `{name}`."
                    )
        for part in self.test:
            if _SUBSET_NAME.fullmatch(part.name):
                raise UserError(f"`name` of a test set must not be `{part.name}`.")
        self._check_archives()

    def _check_archives(self) -> None:
        names = [archive.file for archive in self.archives]
        for part in (*self.train, *self.valid, *self.test):
            if part.archive is not None and part.archive not in names:
                hint = did_you_mean(part.archive, names)
                raise UserError(
                    f"`archive` of `{part.name}` is `{part.archive}`, which is not in "
                    f"`archives`.{hint}"
                )

    def subsets(self) -> dict[str, tuple[Part, ...]]:
        """Return the parts of each of fairseq's subsets, ``train`` first."""
        tests = {f"test{i or ''}": (part,) for i, part in enumerate(self.test)}
        return {"train": self.train, "valid": self.valid, **tests}

    def archive(self, file: str) -> Archive:
        """Return the archive of this name."""
        return next(archive for archive in self.archives if archive.file == file)


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


def _check_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and value < 1:
            raise UserError(f"`{name}` must be positive, but is {value}.")
