"""The stages that make a corpus of a recipe, and the files between them.

From a recipe to the folder that ``fairseq-train`` reads: the stages, in order.

The folder receives ``text`` (each part as plain aligned text), ``raw`` (each subset,
the training text cleaned), ``spm`` (the SentencePiece model), ``ids`` (the text in
numbers of pieces), ``bin`` (binarised) and ``manifest.json``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import logging
import math
import platform
from pathlib import Path
from typing import Any, Mapping, Sequence

from fairseq_plugins.corpus import (
    binarize,
    clean,
)
from fairseq_plugins.corpus.clean import PlainPart
from fairseq_plugins.corpus.extract import Located, LocatedPart, extract, locate
from fairseq_plugins.corpus.fetch import check, fetch
from fairseq_plugins.corpus.recipe import Part, Recipe
from fairseq_plugins.corpus.stages import Stage, Workshop, claimed
from fairseq_plugins.corpus.subwords import subword_model
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.workers import default_workers

__all__ = ["STAGES", "Plan", "prepare", "smoke_recipe"]

logger = logging.getLogger(__name__)

_BIN = "bin"
# A tiny slice: enough that everything downstream runs, in minutes on a CPU.
_SMOKE_PAIRS = {"train": 2000, "valid": 100, "test": 50}


class Plan:
    """The stages of a recipe in a folder."""

    def __init__(
        self,
        recipe: Recipe,
        located: Located,
        workshop: Workshop,
        smoke: bool,
        workers: int,
    ) -> None:
        self._recipe = recipe
        self._located = located
        self._subsets = located.subsets
        self._workshop = workshop
        self._folder = workshop.folder
        self._languages = (recipe.source_lang, recipe.target_lang)
        self._smoke = smoke
        self._workers = workers
        self._model = subword_model(recipe.subwords)

    def carry_out(self, only: str) -> None:
        """Run the stages that must be run and write the manifest."""
        stages = [
            *(
                self._extract_stage(subset, located)
                for subset, parts in self._subsets.items()
                for located in parts
            ),
            *map(self._clean_stage, self._subsets),
            self._subwords_stage(),
            *map(self._encode_stage, self._subsets),
            self._binarise_stage(),
        ]
        num_run = self._workshop.bring_up_to_date(stages, only=only)
        if only and only != "binarise":
            return
        self._workshop.finish(self._description())
        if num_run:
            logger.info("Complete: fairseq-train reads `%s`.", self._folder / _BIN)
        else:
            logger.info("`%s` is up to date; nothing to do.", self._folder)

    def _extract_stage(self, subset: str, located: LocatedPart) -> Stage:
        """Write a part as plain aligned text."""
        part, limit = located.part, self._limit(subset)
        source, target = self._text_files(subset, part)
        inputs = [located.source.path, located.target.path]
        if located.line_numbers is not None:
            inputs.append(located.line_numbers)
        return Stage(
            name=f"text-{subset}-{part.name}",
            group="extract",
            title=f"reading {part.name} for {subset}",
            inputs=_by_name(inputs),
            outputs=[source, target],
            settings={
                **_facts(located),
                **({"limit": limit} if limit else {}),
            },
            versions=_versions(*(["sacremoses"] if part.tokenised else [])),
            run=lambda: extract(
                located,
                (self._folder / source, self._folder / target),
                languages=self._languages,
                limit=limit,
            ),
        )

    def _limit(self, subset: str) -> int | None:
        if not self._smoke:
            return None
        pairs = _SMOKE_PAIRS["test" if subset.startswith("test") else subset]
        return math.ceil(pairs / len(self._subsets[subset]))

    def _clean_stage(self, subset: str) -> Stage:
        """Join the parts of a subset; clean those of ``train``."""
        parts = [self._plain_part(subset, each) for each in self._subsets[subset]]
        cleaning = self._recipe.cleaning
        source, target = self._files("raw", subset)
        outputs = self._folder / source, self._folder / target
        is_train = subset == "train"

        def run() -> dict[str, int]:
            if is_train:
                return clean.clean_training_text(
                    parts, *outputs, cleaning=cleaning, workers=self._workers
                )
            return clean.join_whole_text(parts, *outputs)

        names = [
            name
            for located in self._subsets[subset]
            for name in self._text_files(subset, located.part)
        ]
        return Stage(
            name=f"clean-{subset}",
            group="clean",
            title=f"{'cleaning' if is_train else 'joining'} {subset}",
            inputs=self._inputs(names),
            outputs=[source, target],
            settings=dataclasses.asdict(cleaning) if is_train else {},
            versions=_versions(),
            run=run,
        )

    def _subwords_stage(self) -> Stage:
        texts = self._inputs(self._files("raw", "train"))
        by_language = dict(zip(self._languages, texts.values()))
        return Stage(
            name="subwords",
            group="subwords",
            title=self._model.title,
            inputs=texts,
            outputs=self._model.outputs,
            settings=dataclasses.asdict(self._recipe.subwords),
            versions=_versions(*self._model.packages),
            run=lambda: self._model.train(by_language, self._folder),
        )

    def _encode_stage(self, subset: str) -> Stage:
        texts, prefixes = self._files("raw", subset), self._files("ids", subset)

        def run() -> dict[str, Any]:
            return {
                f"{language}_pieces": binarize.encode(
                    self._model.encoder(self._folder, language),
                    self._folder / text,
                    self._folder / prefix,
                    workers=self._workers,
                )
                for language, text, prefix in zip(self._languages, texts, prefixes)
            }

        return Stage(
            name=f"encode-{subset}",
            group="encode",
            title=f"splitting {subset} into pieces",
            inputs=self._inputs([*texts, self._model.outputs[0]]),
            outputs=self._encoded_files(subset),
            settings={},
            versions=_versions("sentencepiece", "sacremoses", "subword-nmt"),
            run=run,
        )

    def _binarise_stage(self) -> Stage:
        names = binarize.binary_names(
            self._subsets,
            source_lang=self._recipe.source_lang,
            target_lang=self._recipe.target_lang,
        )
        files = [name for subset in self._subsets for name in
                 self._encoded_files(subset)]  # fmt: skip
        return Stage(
            name="binarise",
            group="binarise",
            title="binarising for fairseq",
            inputs=self._inputs(files),
            outputs=[f"{_BIN}/{name}" for name in names],
            settings={},
            versions=_versions("numpy"),
            run=lambda: binarize.binarise(
                self._folder / "ids",
                self._folder / _BIN,
                pairs={subset: self._pairs(subset) for subset in self._subsets},
                source_lang=self._recipe.source_lang,
                target_lang=self._recipe.target_lang,
            ),
        )

    def _description(self) -> dict[str, Any]:
        """Return what the manifest says besides the records of the stages."""
        subsets = {}
        for subset in self._subsets:
            source, target = self._files("raw", subset)
            subsets[subset] = {
                "title": self._title(subset),
                "source": source,
                "target": target,
                "pairs": self._pairs(subset),
            }
        recipe = self._recipe
        return {
            "description": recipe.description,
            "licence": recipe.licence,
            "published": recipe.published,
            **({"smoke": {"left_out": list(self._located.left_out)}}
               if self._smoke else {}),
            "source_lang": recipe.source_lang,
            "target_lang": recipe.target_lang,
            "subsets": subsets,
            self._model.key: self._model.outputs[0],
            "bin_dir": _BIN,
        }  # fmt: skip

    def _title(self, subset: str) -> str:
        if subset in ("train", "valid"):
            return subset
        name = self._subsets[subset][0].part.name
        # A slice must not be taken for the test set that it was cut from.
        return f"{name}-smoke" if self._smoke else name

    def _pairs(self, subset: str) -> int:
        pairs: int = self._workshop.counts(f"clean-{subset}")["pairs"]
        return pairs

    def _plain_part(self, subset: str, located: LocatedPart) -> PlainPart:
        source, target = self._text_files(subset, located.part)
        names = (str(located.source), str(located.target))
        return PlainPart(self._folder / source, self._folder / target, names)

    def _text_files(self, subset: str, part: Part) -> list[str]:
        stem = f"text/{subset}.{part.name}"
        return [f"{stem}.{language}" for language in self._languages]

    def _files(self, folder: str, subset: str) -> list[str]:
        return [f"{folder}/{subset}.{language}" for language in self._languages]

    def _encoded_files(self, subset: str) -> list[str]:
        return [
            prefix + ending
            for prefix in self._files("ids", subset)
            for ending in binarize.ENDINGS
        ]

    def _inputs(self, names: Sequence[str]) -> dict[str, Path]:
        return {name: self._folder / name for name in names}


def _by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """Name files without their folders, which may move; keep those of equal names."""
    named: dict[str, Path] = {}
    for number, path in enumerate(dict.fromkeys(paths)):
        name = f"{path.name} ({number})" if path.name in named else path.name
        named[name] = path
    return named


def _facts(located: LocatedPart) -> dict[str, Any]:
    """Return what decides the text of a part, besides the files that hold it."""
    part = located.part
    return {
        "part": part.name,
        "lines": part.lines,
        "every": part.every,
        "but_every": part.but_every,
        "tokenised": part.tokenised,
        "sha256": [part.source.sha256, part.target.sha256],
        "forms": [located.source.form, located.target.form],
        "members": [*located.source.members, *located.target.members],
        "is_sample": located.is_sample,
    }


def _versions(*distributions: str) -> dict[str, str]:
    """Return the version of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


STAGES = ("fetch", "extract", "clean", "subwords", "encode", "binarise")
_SMOKE_VOCABULARY = 1000  # pieces that a tiny slice can fill


def smoke_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe with a vocabulary that a tiny slice of it can fill."""
    size = min(recipe.subwords.vocab_size, _SMOKE_VOCABULARY)
    return dataclasses.replace(
        recipe, subwords=dataclasses.replace(recipe.subwords, vocab_size=size)
    )


def prepare(
    name: str,
    recipe: Recipe,
    *,
    sources: Path | None,
    out: Path,
    downloads: Path | None = None,
    stage: str = "",
    smoke: bool = False,
    workers: int | None = None,
) -> None:
    """Bring ``out`` up to date with a recipe and its files.

    Args:
        name: of the recipe; a folder belongs to one recipe.
        sources: folder with the recipe's files; what it lacks is downloaded.
        out: folder for the results; made if need be.
        downloads: folder for downloaded archives; ``None`` forbids downloads.
        stage: one of :data:`STAGES`, to run only this one.
        smoke: prepare a tiny slice of what there is.
        workers: number of processes; all cores if not given.

    Raises:
        UserError: files are missing or wrong, or ``out`` cannot be used or holds
            another corpus.
    """
    located = locate(recipe, sources, downloads=downloads, smoke=smoke)
    for part in located.left_out:
        logger.info("Left out, since the source lacks it: %s", part)
    if stage in ("", "fetch"):
        _fetch(located, downloads, smoke)
    if stage == "fetch":
        return
    with claimed(out):
        workshop = Workshop(out, recipe=name)
        _check_same_corpus(workshop, recipe, located)
        plan = Plan(recipe, located, workshop, smoke, workers or default_workers())
        plan.carry_out(stage)


def _check_same_corpus(workshop: Workshop, recipe: Recipe, located: Located) -> None:
    """Refuse a finished folder of another recipe that has this one's name.

    One source file in common is enough: others may have been mended since.

    Raises:
        UserError: its languages are others, or it was made of none of these files.
    """
    finished = workshop.finished
    if finished is None:
        return
    how = None
    before = (finished.get("source_lang"), finished.get("target_lang"))
    now = (recipe.source_lang, recipe.target_lang)
    if before != now:
        how = f"from {before[0]} to {before[1]} and not from {now[0]} to {now[1]}"
    elif not _shares_a_source(workshop, finished, located):
        how = "made of other source files, none of them this recipe's"
    if how is not None:
        raise UserError(
            f"`{workshop.folder}` holds another corpus of the name "
            f"`{finished['recipe']}`, {how}. Choose another --out or delete it."
        )


def _shares_a_source(
    workshop: Workshop, finished: Mapping[str, Any], located: Located
) -> bool:
    """Say whether the folder was made of one of these texts, or of one of their files.

    Where none of them is there, which is so after downloads were deleted, it may be.
    """
    records = finished["stages"].values()
    made = {name for record in records for name in record["outputs"]}
    known: set[str] = set()
    for record in records:
        known.update(filter(None, record["settings"].get("sha256", ())))
        known.update(d for name, d in record["inputs"].items() if name not in made)
    parts = list(itertools.chain.from_iterable(located.subsets.values()))
    declared = {
        side.sha256 for part in parts for side in (part.part.source, part.part.target)
    }
    paths = [text.path for part in parts for text in (part.source, part.target)]
    there = [path for path in paths if path.is_file()]
    if known & declared or not there:
        return True
    return any(workshop.digest(path) in known for path in there)


def _fetch(located: Located, downloads: Path | None, smoke: bool) -> None:
    """Download what is missing; verify what came from elsewhere."""
    for path, archive in located.archives.items():
        if path.parent == downloads:
            if not path.is_file():
                logger.info("fetching %s", archive.file)
            fetch(archive, path)
        elif not smoke:
            logger.info("verifying %s", path)
            check(archive, path)
