"""What a recipe says of files: archives, and the texts that make up each part.

Recipes: which files make up a corpus, and how they are prepared.

A recipe is a YAML file in ``data/recipes``, or anywhere else; its fields are those of
:class:`Recipe`. No code knows any corpus by name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fairseq_plugins.utils.errors import UserError, did_you_mean
from fairseq_plugins.utils.typed_yaml import read_dataclass

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

_FORMS = ("plain", "sgm", "ted", "tmx")
_DIGITS = {"sha256": 64, "md5": 32}


@dataclass(frozen=True)
class Archive:
    """A file to download, which holds the texts of one or more parts.

    Attributes:
        file: its name, here and in ``--source``.
        url: where it is published.
        mirrors: other places with the same bytes, tried in order.
        bytes: its size, if known.
        sha256: its digest, if known; otherwise it is recorded at the first download.
        md5: what its publishers give instead; checked as well.
        licence: its own, where it differs from the recipe's.
    """

    file: str
    url: str
    mirrors: tuple[str, ...] = ()
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        _check_file_name(self.file)
        _check_digests(self)
        for url in (self.url, *self.mirrors):
            if not _is_web_address(url):
                raise UserError(f"`url` must begin with http or https, but is `{url}`.")
        if self.bytes is not None and self.bytes < 1:
            raise UserError(f"`bytes` must be positive, but is {self.bytes}.")


@dataclass(frozen=True)
class TextFile:
    """One side of a part.

    Attributes:
        file: its name without ``.gz`` or ``.xz``, as plain text in ``--source``.
        sha256: of the uncompressed text, if it is known.
        members: what to read from the part's archive, one after the other; a member
            may be compressed itself. They may also stand in ``--source`` unpacked.
        local: other names of the same text in ``--source``, with wildcards.
        sample: names of texts of the same kind that ``--smoke`` may use instead.
        form: ``plain`` (one segment a line), ``sgm`` (``<seg>`` elements), ``tmx`` or
            ``ted`` (IWSLT's training text with its ``<tags>``); without it the ending
            of the name decides.
    """

    file: str
    sha256: str | None = None
    members: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()
    form: str | None = None

    def __post_init__(self) -> None:
        _check_file_name(self.file)
        _check_digests(self)
        if self.form is not None and self.form not in _FORMS:
            raise UserError(
                f"`form` must be one of {', '.join(_FORMS)}, but is `{self.form}`."
            )
        for name in (*self.members, *self.local, *self.sample):
            if name.startswith("/") or ".." in name.split("/"):
                raise UserError(f"`{name}` must be a path below the folder.")


@dataclass(frozen=True)
class Part:
    """Two texts whose segments are translations of each other.

    Attributes:
        name: the parts of ``train`` and ``valid`` are joined, so that only the name of
            a test set is seen later.
        lines: how many each side must have, if it is known.
        archive: the name of the archive that holds both sides.
        local_index: where ``local`` names a longer text: the file in ``--source`` with
            the numbers, from 0, of the lines that make up this part, in its order.
        every: take only the lines whose number, from 1, is a multiple of this.
        but_every: take only the other lines.
        tokenised: the published text is tokenised by Moses and is to be detokenised.
        licence: its own, where it differs from the recipe's.
        mtdata: the identifier of exactly this text in the tool ``mtdata``.
    """

    name: str
    source: TextFile
    target: TextFile
    lines: int | None = None
    archive: str | None = None
    local_index: str | None = None
    every: int | None = None
    but_every: int | None = None
    tokenised: bool = False
    licence: str | None = None
    mtdata: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", self.name):
            raise UserError(
                "`name` of a part must be made of letters, digits and `_.+-`, but is "
                f"`{self.name}`."
            )
        for name in ("every", "but_every"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise UserError(f"`{name}` must be at least 2, but is {value}.")
        if self.archive and not (self.source.members and self.target.members):
            raise UserError("both sides of a part with an `archive` need `members`.")


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname)
    except ValueError:
        return False
    # urlsplit leaves out line ends and leading spaces without a word.
    is_plain = url.isprintable() and not any(map(str.isspace, url))
    return is_plain and has_host and parts.scheme in ("http", "https")


def _check_file_name(file: str) -> None:
    if file in ("", ".", "..") or "/" in file:
        raise UserError(f"`file` must be the name of a file, but is `{file}`.")


def _check_digests(owner: object) -> None:
    for name, length in _DIGITS.items():
        value = getattr(owner, name, None)
        if value is not None and not re.fullmatch(f"[0-9a-f]{{{length}}}", value):
            raise UserError(f"`{name}` must be {length} lower-case hexadecimal digits.")


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
        return path, read_dataclass(path, Recipe)
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
