"""From a recipe to the folder that ``fairseq-train`` reads: the stages, in order.

The folder receives ``text`` (each part as plain aligned text), ``raw`` (each subset,
the training text cleaned), ``spm`` (the SentencePiece model), ``ids`` (the text in
numbers of pieces), ``bin`` (binarised) and ``manifest.json``.
"""
from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path
from typing import Any, Mapping

from fairseq_plugins.pipeline.errors import UserError
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
