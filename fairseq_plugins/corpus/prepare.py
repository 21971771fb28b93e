"""From a recipe to the folder that ``fairseq-train`` reads: the stages, in order.

The folder receives ``text`` (each part as plain aligned text), ``raw`` (each subset,
the training text cleaned), ``spm`` (the SentencePiece model) or ``bpe``, ``ids`` (the
text in numbers of pieces), ``bin`` (the binarized text) and ``manifest.json``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import math
import platform
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from fairseq_plugins.corpus import binarize, clean
from fairseq_plugins.corpus.blocks import default_workers
from fairseq_plugins.corpus.checks import check_text, check_unknown
from fairseq_plugins.corpus.extract import Located, LocatedPart, extract, locate
from fairseq_plugins.corpus.fetch import fetch, verify
from fairseq_plugins.corpus.recipe import Part, Recipe
from fairseq_plugins.corpus.stages import Stage, StageRunner, lock_output_dir
from fairseq_plugins.corpus.subwords import SubwordModel
from fairseq_plugins.utils.errors import UserError

__all__ = ["SMOKE_VOCABULARY", "STAGES", "prepare"]

logger = logging.getLogger(__name__)

STAGES = ("fetch", "extract", "clean", "subwords", "encode", "binarise")
_BIN = "bin"
# A tiny slice is enough to run all later steps, in minutes on a CPU.
_SMOKE_PAIRS = {"train": 2000, "valid": 100, "test": 50}
SMOKE_VOCABULARY = 1000  # pieces that such a slice can fill


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
        sources: folder with the recipe's files; missing ones are downloaded.
        out: folder for the results; created if necessary.
        downloads: folder for downloaded archives; ``None`` forbids downloads.
        stage: one of :data:`STAGES`, to run only this one.
        smoke: prepare a tiny slice of the files that exist.
        workers: number of processes; by default one per core.

    Raises:
        UserError: files are missing or wrong, or ``out`` cannot be used or holds
            another corpus.
    """
    located = locate(recipe, sources, downloads=downloads, smoke=smoke)
    for part in located.left_out:
        logger.info("Left out, because the source lacks it: %s", part)
    if stage in ("", "fetch"):
        _fetch_archives(located, downloads, smoke)
    if stage == "fetch":
        return
    with lock_output_dir(out):
        runner = StageRunner(out, recipe=name)
        _refuse_another_corpus(runner, recipe, located)
        plan = _Plan(recipe, located, runner, smoke, workers or default_workers())
        num_run = runner.run(list(plan.stages()), only=stage)
        if stage not in ("", STAGES[-1]):
            return
        runner.finish(plan.describe())
        if num_run:
            logger.info("Complete: fairseq-train reads `%s`.", out / _BIN)
        else:
            logger.info("`%s` is up to date; nothing to do.", out)


def _fetch_archives(located: Located, downloads: Path | None, smoke: bool) -> None:
    """Download missing archives; verify those of the user."""
    for path, archive in located.archives.items():
        if path.parent == downloads:
            if not path.is_file():
                logger.info("fetching %s", archive.file)
            fetch(archive, path)
        elif not smoke:
            logger.info("verifying %s", path)
            verify(archive, path)


class _Plan:
    """The stages of a recipe in a folder."""

    def __init__(
        self,
        recipe: Recipe,
        located: Located,
        runner: StageRunner,
        smoke: bool,
        workers: int,
    ) -> None:
        self._recipe = recipe
        self._located = located
        self._subsets = located.subsets
        self._runner = runner
        self._folder = runner.folder
        self._languages = (recipe.source_lang, recipe.target_lang)
        self._smoke = smoke
        self._workers = workers
        self._model = SubwordModel(recipe.subwords)

    def stages(self) -> Iterator[Stage]:
        for subset, parts in self._subsets.items():
            for located in parts:
                yield self._extract_stage(subset, located)
        for subset in self._subsets:
            yield self._clean_stage(subset)
        yield self._check_stage()
        yield self._subwords_stage()
        for subset in self._subsets:
            yield self._encode_stage(subset)
        yield self._binarize_stage()

    def _extract_stage(self, subset: str, located: LocatedPart) -> Stage:
        """Write a part as plain aligned text."""
        part, limit = located.part, None
        if self._smoke:
            pairs = _SMOKE_PAIRS["test" if subset.startswith("test") else subset]
            limit = math.ceil(pairs / len(self._subsets[subset]))
        source, target = self._text_files(subset, part)
        inputs = [located.source.path, located.target.path]
        if located.line_numbers is not None:
            inputs.append(located.line_numbers)
        settings = {
            "part": part.name,
            "lines": part.lines,
            "every": part.every,
            "but_every": part.but_every,
            "tokenised": part.tokenised,
            "sha256": [part.source.sha256, part.target.sha256],
            "forms": [located.source.form, located.target.form],
            "members": [*located.source.members, *located.target.members],
            "is_sample": located.is_sample,
            **({"limit": limit} if limit else {}),
            **{
                f"{side}_{key}": getattr(getattr(part, side), key)
                for side in ("source", "target")
                for key in ("lang", "translator", "system")
                if getattr(getattr(part, side), key) is not None
            },
        }
        return Stage(
            name=f"text-{subset}-{part.name}",
            group="extract",
            title=f"reading {part.name} for {subset}",
            inputs=_name_inputs(inputs),
            outputs=[source, target],
            settings=settings,
            versions=_versions(*(["sacremoses"] if part.tokenised else [])),
            run=lambda: extract(
                located,
                (self._folder / source, self._folder / target),
                languages=self._languages,
                limit=limit,
            ),
        )

    def _clean_stage(self, subset: str) -> Stage:
        """Join the parts of a subset; clean those of ``train``."""
        cleaning, is_train = self._recipe.cleaning, subset == "train"
        parts, inputs = [], []
        for located in self._subsets[subset]:
            source, target = self._text_files(subset, located.part)
            names = (str(located.source), str(located.target))
            parts.append(
                clean.PlainPart(self._folder / source, self._folder / target, names)
            )
            inputs += [source, target]
        outputs = self._files("raw", subset)
        paths = [self._folder / name for name in outputs]

        def run() -> dict[str, int]:
            if is_train:
                return clean.clean_training_text(
                    parts, *paths, cleaning=cleaning, workers=self._workers
                )
            return clean.join_whole_text(parts, *paths)

        return Stage(
            name=f"clean-{subset}",
            group="clean",
            title=f"{'cleaning' if is_train else 'joining'} {subset}",
            inputs=self._paths(inputs),
            outputs=outputs,
            settings=dataclasses.asdict(cleaning) if is_train else {},
            versions=_versions(),
            run=run,
        )

    def _check_stage(self) -> Stage:
        """Look for text that is silently wrong; writes nothing."""
        files = {subset: self._files("raw", subset) for subset in self._subsets}
        texts = {
            subset: (self._folder / source, self._folder / target)
            for subset, (source, target) in files.items()
        }
        return Stage(
            name="check",
            group="clean",
            title="checking alignment, languages and overlap",
            inputs=self._paths([name for names in files.values() for name in names]),
            outputs=[],
            settings={"checks": self._recipe.checks},
            versions=_versions(),
            run=lambda: check_text(texts, self._languages, mode=self._recipe.checks),
        )

    def _subwords_stage(self) -> Stage:
        texts = self._paths(self._files("raw", "train"))
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

        def run() -> dict[str, int]:
            return {
                f"{language}_pieces": binarize.encode(
                    self._model.encoder_factory(self._folder, language),
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
            inputs=self._paths([*texts, self._model.outputs[0]]),
            outputs=self._encoded_files(subset),
            settings={},
            versions=_versions("sentencepiece", "sacremoses", "subword-nmt"),
            run=run,
        )

    def _binarize_stage(self) -> Stage:
        source_lang, target_lang = self._languages
        names = binarize.binary_names(
            self._subsets, source_lang=source_lang, target_lang=target_lang
        )
        inputs = [name for each in self._subsets for name in self._encoded_files(each)]

        def run() -> dict[str, Any]:
            counts = binarize.binarize(
                self._folder / "ids",
                self._folder / _BIN,
                pairs={subset: self._num_pairs(subset) for subset in self._subsets},
                source_lang=source_lang,
                target_lang=target_lang,
            )
            check_unknown(counts, mode=self._recipe.checks)
            return counts

        return Stage(
            name="binarise",
            group="binarise",
            title="binarizing for fairseq",
            inputs=self._paths(inputs),
            outputs=[f"{_BIN}/{name}" for name in names],
            settings={},
            versions=_versions("numpy"),
            run=run,
        )

    def describe(self) -> dict[str, Any]:
        """Return the content of the manifest except the records of the stages."""
        recipe, subsets = self._recipe, {}
        for subset, parts in self._subsets.items():
            title = subset
            if subset not in ("train", "valid"):
                # A slice must not be taken for the test set that it was cut from.
                title = parts[0].part.name + ("-smoke" if self._smoke else "")
            source, target = self._files("raw", subset)
            subsets[subset] = {
                "title": title,
                "source": source,
                "target": target,
                "pairs": self._num_pairs(subset),
            }
        smoke = {"smoke": {"left_out": list(self._located.left_out)}}
        return {
            "description": recipe.description,
            "licence": recipe.licence,
            "published": recipe.published,
            **(smoke if self._smoke else {}),
            "source_lang": recipe.source_lang,
            "target_lang": recipe.target_lang,
            "subsets": subsets,
            self._model.key: self._model.outputs[0],
            "bin_dir": _BIN,
        }

    def _num_pairs(self, subset: str) -> int:
        pairs: int = self._runner.counts(f"clean-{subset}")["pairs"]
        return pairs

    def _text_files(self, subset: str, part: Part) -> list[str]:
        return self._files("text", f"{subset}.{part.name}")

    def _encoded_files(self, subset: str) -> list[str]:
        prefixes = self._files("ids", subset)
        return [prefix + ending for prefix in prefixes for ending in binarize.ENDINGS]

    def _files(self, folder: str, stem: str) -> list[str]:
        return [f"{folder}/{stem}.{language}" for language in self._languages]

    def _paths(self, names: Sequence[str]) -> dict[str, Path]:
        return {name: self._folder / name for name in names}


def _name_inputs(paths: Sequence[Path]) -> dict[str, Path]:
    """Name files without their folders, which may move; keep those of equal names."""
    named: dict[str, Path] = {}
    for number, path in enumerate(dict.fromkeys(paths)):
        name = f"{path.name} ({number})" if path.name in named else path.name
        named[name] = path
    return named


def _versions(*distributions: str) -> dict[str, str]:
    """Return the version of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _refuse_another_corpus(
    runner: StageRunner, recipe: Recipe, located: Located
) -> None:
    """Refuse a finished folder of another recipe that has the same name.

    Raises:
        UserError: it has other languages, or was made from none of the source files.
    """
    finished = runner.finished
    if finished is None:
        return
    before = (finished.get("source_lang"), finished.get("target_lang"))
    now = (recipe.source_lang, recipe.target_lang)
    if before != now:
        how = f"from {before[0]} to {before[1]} and not from {now[0]} to {now[1]}"
    elif not _shares_a_source(runner, finished, located):
        how = "made of other source files, none of them this recipe's"
    else:
        return
    raise UserError(
        f"`{runner.folder}` holds another corpus of the name "
        f"`{finished['recipe']}`, {how}. Choose another `--out` or delete it."
    )


def _shares_a_source(
    runner: StageRunner, finished: Mapping[str, Any], located: Located
) -> bool:
    """Tell whether the folder was made from one of these texts or files.

    One is enough, because others may have been corrected since. If no file is there,
    for instance because downloads were deleted, the answer is yes.
    """
    known: set[str | None] = set()
    for record in finished["stages"].values():
        known.update(record["settings"].get("sha256", ()), record["inputs"].values())
    known.discard(None)
    parts = located.parts()
    declared = {
        s.sha256 for each in parts for s in (each.part.source, each.part.target)
    }
    paths = [text.path for each in parts for text in (each.source, each.target)]
    existing = [path for path in paths if path.is_file()]
    if known & declared or not existing:
        return True
    return any(runner.digest(path) in known for path in existing)
