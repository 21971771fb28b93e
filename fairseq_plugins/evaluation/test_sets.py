"""Published test sets by name, and the test set on which a run is evaluated.

``newstest2014`` has 3,003 English-German sentences, and ``newstest2014/2737`` is the
part of it that sacrebleu calls ``wmt14``. Papers use "newstest2014" for both.
``data/test_sets.yaml`` lists the published sets.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from dataclasses import dataclass
from typing import Mapping, Sequence, TypeVar

import yaml

from fairseq_plugins.corpus.manifest import PreparedCorpus, Subset
from fairseq_plugins.utils.errors import UserError, did_you_mean
from fairseq_plugins.utils.files import data_path, read_lines, sha256_of

__all__ = [
    "RunTestSet",
    "TestSet",
    "check_size",
    "find_test_set",
    "identify_test_set",
    "load_test_sets",
    "published_name",
    "select_lines",
    "find_part",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TestSet:
    """A published test set.

    Attributes:
        name: as in papers, but unambiguous.
        sentences: the number of its sentences.
        sha256: digest of the raw text, by language.
        lines_of: the set of which this is a part.
        lines: ranges of line numbers in that set, from 0 and inclusive, in order.
    """

    __test__ = False  # pytest would collect it because of its name

    name: str
    sentences: int
    sha256: Mapping[str, str]
    lines_of: str | None = None
    lines: str | None = None

    def numbers(self) -> list[int]:
        """Return the line numbers, from 0, in the set of which this is a part."""
        numbers: list[int] = []
        for span in (self.lines or "").split(","):
            first, _, last = span.strip().partition("-")
            numbers += range(int(first), int(last or first) + 1)
        return numbers


@functools.cache
def load_test_sets() -> tuple[TestSet, ...]:
    """Return all sets; sets of different language pairs may have the same name."""
    entries = yaml.safe_load(data_path("test_sets.yaml").read_text(encoding="utf-8"))
    return tuple(TestSet(**entry) for entry in entries)


def identify_test_set(lines: Sequence[str]) -> TestSet | None:
    """Return the set that has exactly this text on one side."""
    text = "".join(line + "\n" for line in lines).encode()
    digest = hashlib.sha256(text).hexdigest()
    for test_set in load_test_sets():
        if digest in test_set.sha256.values():
            return test_set
    return None


def check_size(name: str, languages: tuple[str, str], sentences: int) -> None:
    """Refuse a text with the name of a known set but another number of sentences.

    Raises:
        UserError: the message names a known set of this size, if there is one.
    """
    for test_set in load_test_sets():
        if test_set.name != name or not set(languages) <= test_set.sha256.keys():
            continue
        if test_set.sentences != sentences:
            raise UserError(
                f"`{name}` has {test_set.sentences:,} sentences, but the text of this "
                f"name has {sentences:,}.{_name_sets_of_size(sentences, languages)}"
            )


def find_part(name: str, languages: tuple[str, str] | None = None) -> TestSet:
    """Return a set that consists of lines of another one.

    Raises:
        UserError: no such set has this name and these languages.
    """
    parts = [test_set for test_set in load_test_sets() if test_set.lines is not None]
    for test_set in parts:
        fits = languages is None or set(languages) <= test_set.sha256.keys()
        if test_set.name == name and fits:
            return test_set
    raise _unknown_test_set(name, [test_set.name for test_set in parts])


def select_lines(name: str, lines: Sequence[str]) -> list[str]:
    """Return the lines of a known set.

    Args:
        name: such as ``newstest2014`` or ``newstest2014/2737``.
        lines: text of the set, or of the whole set if the named one is a part.

    Raises:
        UserError: no set has this name, or the text has another number of lines.
    """
    named = [test_set for test_set in load_test_sets() if test_set.name == name]
    if not named:
        raise _unknown_test_set(name, [test_set.name for test_set in load_test_sets()])
    part = named[0]
    if len(lines) == part.sentences:
        return list(lines)
    rule = f"the {part.sentences:,} lines of `{name}`"
    if part.lines is not None:
        whole = next(t for t in load_test_sets() if t.name == part.lines_of)
        if len(lines) == whole.sentences:
            return [lines[number] for number in part.numbers()]
        rule += f" or the {whole.sentences:,} of `{whole.name}`"
    raise UserError(f"the text must have {rule}, but has {len(lines):,}.")


def _unknown_test_set(name: str, names: Sequence[str]) -> UserError:
    names = list(dict.fromkeys(names))
    listed = ", ".join(f"`{other}`" for other in names)
    return UserError(
        f"`{name}` is not a known test set.{did_you_mean(name, names)} Known: {listed}."
    )


def _name_sets_of_size(sentences: int, languages: tuple[str, str]) -> str:
    names = [
        test_set.name
        for test_set in load_test_sets()
        if test_set.sentences == sentences and set(languages) <= test_set.sha256.keys()
    ]
    return f" This is the size of `{'`, `'.join(names)}`." if names else ""


T = TypeVar("T")


@dataclass(frozen=True)
class RunTestSet:
    """A test set of a prepared corpus.

    Attributes:
        subset: fairseq's name of the translated sentences.
        title: name of the test set.
        text: raw text of the subset.
        numbers: lines of the subset, from 0, that make up the test set; ``None`` for
            all of them.
        lines_of: title of the subset if the test set is a part of it.
    """

    subset: str
    title: str
    text: Subset
    numbers: tuple[int, ...] | None = None
    lines_of: str | None = None

    def pick(self, lines: Sequence[T]) -> list[T]:
        """Return the test set's items of a sequence with one item per sentence."""
        if self.numbers is None:
            return list(lines)
        return [lines[number] for number in self.numbers]

    # Each is read once for all beams.

    @functools.cached_property
    def references(self) -> list[str]:
        return self.pick(read_lines(self.text.target))

    @functools.cached_property
    def sources(self) -> list[str]:
        return self.pick(read_lines(self.text.source))

    @functools.cached_property
    def reference_sha256(self) -> str:
        if self.numbers is None:
            return sha256_of(self.text.target)
        text = "".join(line + "\n" for line in self.references)
        return hashlib.sha256(text.encode()).hexdigest()


def find_test_set(corpus: PreparedCorpus, name: str) -> RunTestSet:
    """Find a test set by fairseq's name, by its title, or as a part of another.

    Args:
        corpus: the corpus of the run.
        name: such as ``test``, ``newstest2014`` or, if the corpus has that one,
            ``newstest2014/2737``.

    Raises:
        UserError: no test set has this name, or its text has the wrong length.
    """
    languages = (corpus.source_lang, corpus.target_lang)
    titles = {subset.title for subset in corpus.subsets.values()}
    if "/" in name and name not in titles:
        part = find_part(name, languages)
        assert part.lines_of is not None
        whole = find_test_set(corpus, part.lines_of)
        numbers = tuple(part.numbers())
        return RunTestSet(whole.subset, name, whole.text, numbers, whole.title)
    key, text = corpus.subset(name)
    check_size(text.title, languages, text.pairs)
    return RunTestSet(key, text.title, text)


def published_name(title: str, references: Sequence[str]) -> str | None:
    """Return the name of the published set with these references, or ``None``."""
    known = identify_test_set(references)
    if known is not None:
        return known.name
    if any(test_set.name == title for test_set in load_test_sets()):
        logger.warning(
            "`%s` differs from the published text of this name: its scores may differ "
            "slightly from published ones.",
            title,
        )
    return None
