"""From a recipe to the folder that ``fairseq-train`` reads: the stages, in order.

The folder receives ``raw`` (plain text), ``spm`` (the SentencePiece model),
``pieces`` (the text in pieces), ``bin`` (binarised) and ``manifest.json``.
"""
from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import platform
from pathlib import Path
from typing import Any, Mapping, Sequence

from fairseq_plugins.pipeline import binarised, parallel_text, subwords
from fairseq_plugins.pipeline.output_folder import claimed
from fairseq_plugins.pipeline.recipe import Recipe
from fairseq_plugins.pipeline.sources import LocatedPart, locate
from fairseq_plugins.pipeline.stages import Stage, Workshop

__all__ = ["prepare"]

logger = logging.getLogger(__name__)

_MODEL = "spm/joint.model"
_VOCAB = "spm/joint.vocab"
_BIN = "bin"


def prepare(name: str, recipe: Recipe, *, sources: Path, out: Path) -> None:
    """Bring ``out`` up to date with a recipe and its files.

    Args:
        name: of the recipe; a folder belongs to one recipe.
        sources: folder with the recipe's files, plain, ``.gz`` or ``.xz``.
        out: folder for the results; made if need be.

    Raises:
        UserError: files are missing or wrong, or ``out`` cannot be used.
    """
    located = locate(recipe, sources)
    with claimed(out):
        _Plan(recipe, located, Workshop(out, recipe=name)).carry_out()


class _Plan:
    """The stages of a recipe in a folder."""

    def __init__(
        self,
        recipe: Recipe,
        located: Mapping[str, Sequence[LocatedPart]],
        workshop: Workshop,
    ) -> None:
        self._recipe = recipe
        self._located = located
        self._workshop = workshop
        self._folder = workshop.folder
        self._languages = (recipe.source_lang, recipe.target_lang)

    def carry_out(self) -> None:
        """Run the stages that must be run and write the manifest."""
        stages = [
            *map(self._text_stage, self._located),
            self._subwords_stage(),
            *map(self._pieces_stage, self._located),
            self._binarise_stage(),
        ]
        num_run = self._workshop.bring_up_to_date(stages)
        self._workshop.finish(self._description())
        if num_run:
            logger.info("Complete: fairseq-train reads `%s`.", self._folder / _BIN)
        else:
            logger.info("`%s` is up to date; nothing to do.", self._folder)

    def _text_stage(self, subset: str) -> Stage:
        """Read, check and join the parts of a subset; clean those of ``train``."""
        parts = self._located[subset]
        cleaning = self._recipe.cleaning if subset == "train" else None
        source, target = self._files("raw", subset)
        return Stage(
            name=f"text-{subset}",
            title=f"reading {subset}",
            inputs={
                path.name: path
                for located in parts
                for path in (located.source, located.target)
            },
            outputs=[source, target],
            settings={
                "parts": [dataclasses.asdict(located.part) for located in parts],
                **(dataclasses.asdict(cleaning) if cleaning else {}),
            },
            versions=_versions(),
            run=lambda: parallel_text.write_subset(
                parts, self._folder / source, self._folder / target, cleaning=cleaning
            ),
        )

    def _subwords_stage(self) -> Stage:
        settings = self._recipe.subwords
        texts = self._inputs(self._files("raw", "train"))
        return Stage(
            name="subwords",
            title=f"training a {settings.model_type} model of "
            f"{settings.vocab_size:,} pieces",
            inputs=texts,
            outputs=[_MODEL, _VOCAB],
            settings=dataclasses.asdict(settings),
            versions=_versions("sentencepiece"),
            run=lambda: subwords.train(
                list(texts.values()),
                self._folder / _MODEL,
                self._folder / _VOCAB,
                subwords=settings,
            ),
        )

    def _pieces_stage(self, subset: str) -> Stage:
        texts, pieces = self._files("raw", subset), self._files("pieces", subset)

        def run() -> dict[str, Any]:
            return {
                f"{language}_pieces": subwords.encode(
                    self._folder / _MODEL, self._folder / text, self._folder / out
                )
                for language, text, out in zip(self._languages, texts, pieces)
            }

        return Stage(
            name=f"pieces-{subset}",
            title=f"splitting {subset} into pieces",
            inputs=self._inputs([*texts, _MODEL]),
            outputs=pieces,
            settings={},
            versions=_versions("sentencepiece"),
            run=run,
        )

    def _binarise_stage(self) -> Stage:
        files = [self._files("pieces", subset) for subset in self._located]
        names = binarised.binary_names(
            self._located,
            source_lang=self._recipe.source_lang,
            target_lang=self._recipe.target_lang,
        )
        return Stage(
            name="binarise",
            title="binarising for fairseq",
            inputs=self._inputs([name for pair in files for name in pair]),
            outputs=[f"{_BIN}/{name}" for name in names],
            settings={},
            versions=_versions("fairseq-fixed", "fairseq"),
            run=lambda: binarised.binarise(
                self._folder / "pieces",
                self._folder / _BIN,
                pairs={subset: self._pairs(subset) for subset in self._located},
                source_lang=self._recipe.source_lang,
                target_lang=self._recipe.target_lang,
                log=self._folder / "binarise.log",
            ),
        )

    def _description(self) -> dict[str, Any]:
        """Return what the manifest says besides the records of the stages."""
        subsets = {}
        for subset in self._located:
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
            "source_lang": recipe.source_lang,
            "target_lang": recipe.target_lang,
            "subsets": subsets,
            "spm_model": _MODEL,
            "bin_dir": _BIN,
        }

    def _title(self, subset: str) -> str:
        is_test = subset not in ("train", "valid")
        return self._located[subset][0].part.name if is_test else subset

    def _pairs(self, subset: str) -> int:
        pairs: int = self._workshop.counts(f"text-{subset}")["pairs"]
        return pairs

    def _files(self, folder: str, subset: str) -> list[str]:
        return [f"{folder}/{subset}.{language}" for language in self._languages]

    def _inputs(self, names: Sequence[str]) -> dict[str, Path]:
        return {name: self._folder / name for name in names}


def _versions(*distributions: str) -> dict[str, str]:
    """Return the version of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
