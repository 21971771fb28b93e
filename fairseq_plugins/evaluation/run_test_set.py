"""The test set that a run is evaluated on: a subset of its corpus, or lines of one."""
from __future__ import annotations

import functools
import hashlib
import logging
from dataclasses import dataclass
from typing import Sequence, TypeVar

from fairseq_plugins.evaluation.test_sets import (
    check_size,
    identify,
    known_sets,
    selection,
)
from fairseq_plugins.pipeline.files import read_lines, sha256_of
from fairseq_plugins.pipeline.manifest import PreparedCorpus, Subset

__all__ = ["RunTestSet", "find_test_set", "published_name", "read_references"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class RunTestSet:
    """A test set of a prepared corpus.

    Attributes:
        subset: fairseq's name of the sentences that are translated.
        title: what it is called.
        text: raw text of the subset.
        numbers: lines of the subset, from 0, that the test set is made of; all of them
            if ``None``.
        lines_of: title of the subset if the test set is a part of it.
    """

    subset: str
    title: str
    text: Subset
    numbers: tuple[int, ...] | None = None
    lines_of: str | None = None

    def pick(self, lines: Sequence[T]) -> list[T]:
        """Return what belongs to the test set out of one thing for each sentence."""
        if self.numbers is None:
            return list(lines)
        return [lines[number] for number in self.numbers]

    # Each is read once, however many beams are scored against it.

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
        corpus: what the run was trained on.
        name: such as ``test``, ``newstest2014`` or, if the corpus has that one,
            ``newstest2014/2737``.

    Raises:
        UserError: there is none of this name, or its text has not the right length.
    """
    languages = (corpus.source_lang, corpus.target_lang)
    titles = {subset.title for subset in corpus.subsets.values()}
    if "/" in name and name not in titles:
        part = selection(name, languages)
        assert part.lines_of is not None
        whole = find_test_set(corpus, part.lines_of)
        numbers = tuple(part.numbers())
        return RunTestSet(whole.subset, name, whole.text, numbers, whole.title)
    key, text = corpus.subset(name)
    check_size(text.title, languages, text.pairs)
    return RunTestSet(key, text.title, text)


def read_references(corpus: PreparedCorpus, title: str) -> list[str]:
    """Return the references that a row of ``scores.json`` was scored against."""
    return find_test_set(corpus, title).references


def published_name(title: str, references: Sequence[str]) -> str | None:
    """Return the published set that has these references; ``None`` if none has."""
    known = identify(references)
    if known is not None:
        return known.name
    if any(test_set.name == title for test_set in known_sets()):
        logger.warning(
            "`%s` is not, byte for byte, the published text of this name: its scores "
            "may differ a little from those of others.",
            title,
        )
    return None
