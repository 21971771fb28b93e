"""Prepare a corpus for fairseq-train: from raw text to a binarized folder.

    python scripts/prepare.py RECIPE [--source DIR] [--out DIR] [--stage NAME] [--smoke]
    python -m fairseq_plugins.corpus RECIPE ...     (with the installed package)

Stages: fetch, extract, clean, subwords, encode, binarise; all by default. A second call
continues an interrupted run, redoes the stages that a changed setting or a damaged file
makes necessary, or does nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

from fairseq_plugins.corpus.extract import source_folder
from fairseq_plugins.corpus.prepare import SMOKE_VOCABULARY, STAGES, prepare
from fairseq_plugins.corpus.recipe import Recipe, load_recipe, recipe_names
from fairseq_plugins.utils.arguments import at_least
from fairseq_plugins.utils.errors import UserError, run_command_line


def prepare_corpus(runs: Path = Path("runs")) -> None:
    """Read the command line and prepare; defaults of folders are below ``runs``."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments(runs)
    recipe_file, recipe = load_recipe(arguments.recipe)
    recipe = _apply_options(recipe, arguments)
    name = recipe_file.stem + ("-smoke" if arguments.smoke else "")
    sources = source_folder(recipe_file, recipe, arguments.source)
    downloads = arguments.downloads
    if sources is None and arguments.smoke and not arguments.download:
        # A tiny slice must not cost gigabytes: use only what was downloaded before.
        if not downloads.is_dir():
            raise UserError(
                "`--smoke` takes a slice of files that exist. Pass their folder with "
                "`--source DIR`, or download all of them with `--download`."
            )
        sources = downloads
    may_download = arguments.download or sources is None
    prepare(
        name,
        recipe,
        sources=sources,
        out=arguments.out or runs / "data" / name,
        downloads=downloads if may_download else None,
        stage=arguments.stage or "",
        smoke=arguments.smoke,
        workers=arguments.workers,
    )


def _apply_options(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    vocab_size, model_type = arguments.vocab_size, arguments.model_type
    if vocab_size is None:
        vocab_size = recipe.subwords.vocab_size
        if arguments.smoke:
            vocab_size = min(vocab_size, SMOKE_VOCABULARY)
    subwords = dataclasses.replace(
        recipe.subwords,
        vocab_size=vocab_size,
        model_type=model_type or recipe.subwords.model_type,
    )
    return dataclasses.replace(recipe, subwords=subwords)


def _parse_arguments(runs: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Prepare a corpus for fairseq-train. A second call continues an "
        "interrupted run or does nothing.",
        epilog=f"Recipes: {', '.join(recipe_names())}.",
    )
    add = parser.add_argument
    add("recipe", help="the name of a recipe, or a YAML file in the same format")
    add(
        "--source",
        type=Path,
        metavar="DIR",
        help="folder with the recipe's files, as archives, plain, .gz or .xz",
    )
    add("--out", type=Path, metavar="DIR", help="default: runs/data/RECIPE")
    add("--vocab-size", type=int, metavar="N", help="pieces, instead of the recipe's")
    add("--model-type", help="bpe, unigram or subword-nmt, instead of the recipe's")
    add("--stage", choices=STAGES, help="run only this stage")
    add(
        "--smoke",
        action="store_true",
        help="prepare a tiny slice of the files, in a separate folder",
    )
    add(
        "--download",
        action="store_true",
        help="download what --source lacks (the default without --source)",
    )
    add(
        "--downloads",
        type=Path,
        metavar="DIR",
        default=runs / "downloads",
        help="for downloaded archives; default: runs/downloads",
    )
    add(
        "--workers",
        type=at_least(1),
        metavar="N",
        help="processes; default: one per core",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(prepare_corpus)
