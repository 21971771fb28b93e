"""Recipes: which files make up a corpus, and how they are prepared.

A recipe is a YAML file in ``data/recipes`` or anywhere else. Its keys are the fields of
:class:`Recipe`. The code contains no names of corpora.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from fairseq_plugins.utils.errors import UserError, did_you_mean
from fairseq_plugins.utils.files import data_path
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
_CHECKS = ("warn", "refuse")
_MODEL_TYPES = ("bpe", "unigram", "subword-nmt")
# fairseq's names of subsets: a test set with such a name would be taken for another.
_SUBSET_NAME = re.compile(r"train|valid|test\d*")


@dataclass(frozen=True)
class Archive:
    """A file to download, which holds the texts of one or more parts.

    Attributes:
        file: its name, here and in ``--source``.
        url: where it is published.
        mirrors: other places with the same bytes, tried in order.
        bytes: its size, if known.
        sha256: its digest, if known; otherwise the first download records it.
        md5: the digest that its publishers give; it is checked as well.
        licence: only if it differs from that of the recipe.
    """

    file: str
    url: str
    mirrors: tuple[str, ...] = ()
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        if "/" in self.file:
            raise UserError(f"`file` must be the name of a file, but is `{self.file}`.")
        _check_file_name(self.file)
        _check_digest("sha256", self.sha256, 64)
        _check_digest("md5", self.md5, 32)
        _check_positive(self, "bytes")
        for url in (self.url, *self.mirrors):
            if not _is_web_address(url):
                raise UserError(f"`url` must begin with http or https, but is `{url}`.")


@dataclass(frozen=True)
class TextFile:
    """One side of a part.

    Attributes:
        file: its name without ``.gz``, ``.xz`` or ``.zst``, as plain text in
            ``--source``; or an absolute path.
        sha256: of the uncompressed text, if known.
        members: what to read from the part's archive, one after the other. A member
            may itself be compressed, and may also lie unpacked in ``--source``.
        local: other names of the same text in ``--source``, with wildcards.
        sample: names of texts of the same kind that ``--smoke`` may use instead.
        form: ``plain`` (one segment per line), ``sgm`` (``<seg>`` elements of SGML and
            XML), ``tmx`` or ``ted`` (IWSLT's training text with its ``<tags>``). By
            default the ending of the name determines the form.
        lang: the language code in a TMX or XML file, if it is not the recipe's.
        translator: of the reference to read, if an XML file has several. In SGML this
            is the ``sysid`` of the reference.
        system: read the output of this system instead of a reference.
    """

    file: str
    sha256: str | None = None
    members: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()
    form: str | None = None
    lang: str | None = None
    translator: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        _check_file_name(self.file)
        _check_digest("sha256", self.sha256, 64)
        if self.translator is not None and self.system is not None:
            raise UserError("a side has either `translator` or `system`, not both.")
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
        name: of a test set, this is the name that users see.
        lines: the number of lines of each side, if known.
        archive: the name of the archive that holds both sides.
        local_index: where ``local`` names a longer text, the file in ``--source`` with
            the numbers, from 0, of the lines that make up this part, in its order.
        every: take only the lines with a number, from 1, that is a multiple of this.
        but_every: take only the other lines.
        tokenised: the published text is tokenized by Moses and must be detokenized.
        licence: only if it differs from that of the recipe.
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
                "`name` of a part must consist of letters, digits and `_.+-`, but is "
                f"`{self.name}`."
            )
        for name in ("every", "but_every"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise UserError(f"`{name}` must be at least 2, but is {value}.")
        if self.archive and not (self.source.members and self.target.members):
            raise UserError("both sides of a part with an `archive` need `members`.")


@dataclass(frozen=True)
class Subwords:
    """One SentencePiece model, or one set of subword-nmt's merges, for both languages.

    Attributes:
        vocab_size: the number of pieces, or of merges. The dictionary holds those that
            occur in the training text.
        model_type: ``bpe`` or ``unigram`` of SentencePiece, or ``subword-nmt`` after
            Moses' tokenizer, as in older papers.
        character_coverage: SentencePiece's option: the fraction of all characters that
            get pieces of their own.
        max_lines: train on at most this many lines, both languages together.
        seed: for the selection of these lines.
    """

    vocab_size: int
    model_type: str = "bpe"
    character_coverage: float = 1.0
    max_lines: int = 1_000_000
    seed: int = 1

    def __post_init__(self) -> None:
        _check_positive(self, "vocab_size", "max_lines")
        if self.model_type not in _MODEL_TYPES:
            raise UserError(
                f"`model_type` must be one of {', '.join(_MODEL_TYPES)}, but is "
                f"`{self.model_type}`.{did_you_mean(self.model_type, _MODEL_TYPES)}"
            )
        _check_fraction(self, "character_coverage")


@dataclass(frozen=True)
class Cleaning:
    """The rules for training pairs; valid and test text is never changed.

    A pair with an empty side is always dropped. The other rules run only if they are
    given, in this order. Each one counts the pairs that it drops.

    Attributes:
        max_words: the most words, separated by white space, on either side.
        normalise: convert the text to Unicode NFC, remove control and format
            characters and use single spaces. This drops nothing.
        max_ratio: the longer side may have at most this many times as many words (plus
            one) as the shorter side (plus one).
        max_word_length: the most characters in one word. Longer ones are addresses,
            tables or sentences in another script.
        min_letters: the least fraction of letters among the characters of a side that
            are not spaces.
        drop_copies: drop pairs whose sides are equal.
        drop_duplicates: keep only the first of equal pairs.
    """

    max_words: int = 250
    normalise: bool = False
    max_ratio: float | None = None
    max_word_length: int | None = None
    min_letters: float | None = None
    drop_copies: bool = False
    drop_duplicates: bool = False

    def __post_init__(self) -> None:
        _check_positive(self, "max_words", "max_word_length")
        _check_fraction(self, "min_letters")
        if self.max_ratio is not None and not 1 <= self.max_ratio < math.inf:
            raise UserError(f"`max_ratio` must be at least 1, but is {self.max_ratio}.")


@dataclass(frozen=True)
class Recipe:
    """A corpus and its preparation.

    Attributes:
        published: where users find the files.
        train: parts that are joined.
        valid: parts that are joined.
        test: separate sets, fairseq's ``test``, ``test1``, ...
        folder: where the files are, relative to the recipe's own file. Without it they
            are downloaded or given by ``--source``.
        archives: the files that can be downloaded.
        checks: what follows if the text looks wrong (see
            :mod:`fairseq_plugins.corpus.checks`): ``warn`` or ``refuse``.
    """

    description: str
    source_lang: str
    target_lang: str
    train: tuple[Part, ...]
    valid: tuple[Part, ...]
    test: tuple[Part, ...]
    subwords: Subwords
    cleaning: Cleaning = field(default_factory=Cleaning)
    folder: str | None = None
    archives: tuple[Archive, ...] = ()
    licence: str = "not stated"
    published: str = "not published"
    checks: str = "warn"

    def __post_init__(self) -> None:
        for language in (self.source_lang, self.target_lang):
            if not re.fullmatch("[A-Za-z0-9_]+", language):
                raise UserError(f"`{language}` must be a language code such as `de`.")
        if self.source_lang == self.target_lang:
            raise UserError("`source_lang` and `target_lang` must differ.")
        for place in ("train", "valid", "test"):
            names = [part.name for part in getattr(self, place)]
            repeated = [name for name in names if names.count(name) > 1]
            if repeated:
                kind = "sets" if place == "test" else "parts"
                raise UserError(
                    f"`{place}` must not hold two {kind} named `{repeated[0]}`."
                )
        if self.checks not in _CHECKS:
            raise UserError(
                f"`checks` must be one of {', '.join(_CHECKS)}, but is `{self.checks}`."
            )
        for part in self.test:
            if _SUBSET_NAME.fullmatch(part.name):
                raise UserError(f"`name` of a test set must not be `{part.name}`.")
        files = [archive.file for archive in self.archives]
        for part in self.parts():
            if part.archive is not None and part.archive not in files:
                raise UserError(
                    f"`archive` of `{part.name}` is `{part.archive}`, which is not in "
                    f"`archives`.{did_you_mean(part.archive, files)}"
                )

    def subsets(self) -> dict[str, tuple[Part, ...]]:
        """Return the parts of each of fairseq's subsets, ``train`` first."""
        tests = {f"test{i or ''}": (part,) for i, part in enumerate(self.test)}
        return {"train": self.train, "valid": self.valid, **tests}

    def parts(self) -> list[Part]:
        """Return the parts of all subsets."""
        return list(itertools.chain.from_iterable(self.subsets().values()))


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the project."""
    return sorted(path.stem for path in data_path("recipes").glob("*.yaml"))


def load_recipe(name: str) -> tuple[Path, Recipe]:
    """Return a recipe and its file, given its name or the path of a YAML file.

    Raises:
        UserError: there is no such recipe, or its file is wrong.
    """
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_path else data_path("recipes") / f"{name}.yaml"
    if path.is_file():
        return path, read_dataclass(path, Recipe)
    names = recipe_names()
    raise UserError(
        f"there is no recipe `{name}`.{did_you_mean(name, names)} Recipes: "
        f"{', '.join(names)}. A path of a YAML file is possible, too."
    )


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname)
    except ValueError:
        return False
    # urlsplit silently removes line ends and leading spaces.
    is_plain = url.isprintable() and not any(map(str.isspace, url))
    return is_plain and has_host and parts.scheme in ("http", "https")


def _check_file_name(file: str) -> None:
    if file in ("", ".", "..") or ("/" in file and not Path(file).is_absolute()):
        raise UserError(
            "`file` must be the name of a file or an absolute path, but is "
            f"`{file}`."
        )


def _check_digest(name: str, value: str | None, length: int) -> None:
    if value is not None and not re.fullmatch(f"[0-9a-f]{{{length}}}", value):
        raise UserError(f"`{name}` must be {length} lower-case hexadecimal digits.")


def _check_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and value < 1:
            raise UserError(f"`{name}` must be positive, but is {value}.")


def _check_fraction(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if value is not None and not 0 < value <= 1:
        raise UserError(f"`{name}` must be above 0 and at most 1, but is {value}.")
