"""From a recipe to the folder that ``fairseq-train`` reads: the stages, in order.

The folder receives ``text`` (each part as plain aligned text), ``raw`` (each subset,
the training text cleaned), ``spm`` (the SentencePiece model), ``ids`` (the text in
numbers of pieces), ``bin`` (binarised) and ``manifest.json``.
"""
from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from fairseq_plugins.pipeline.fetch import check, fetch
from fairseq_plugins.pipeline.output_folder import claimed
from fairseq_plugins.pipeline.plan import Plan
from fairseq_plugins.pipeline.recipe import Recipe
from fairseq_plugins.pipeline.sources import Located, locate
from fairseq_plugins.pipeline.stages import Workshop
from fairseq_plugins.pipeline.workers import default_workers

__all__ = ["STAGES", "prepare", "smoke_recipe"]

logger = logging.getLogger(__name__)

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
        UserError: files are missing or wrong, or ``out`` cannot be used.
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
        plan = Plan(recipe, located, workshop, smoke, workers or default_workers())
        plan.carry_out(stage)


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
