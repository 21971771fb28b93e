"""Prepare a corpus for fairseq-train: from raw text to a binarised folder.

    python scripts/prepare.py RECIPE [--source DIR] [--out DIR] [--stage NAME] [--smoke]

Stages: fetch, extract, clean, subwords, encode, binarise; all by default.

Called again, it goes on where it was, redoes what a changed setting or a damaged file
makes necessary, or does nothing.
"""

from __future__ import annotations

import environment

environment.ensure()

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

from fairseq_plugins.corpus.extract import source_folder
from fairseq_plugins.corpus.prepare import STAGES, prepare, smoke_recipe
from fairseq_plugins.corpus.recipe import Recipe, load_recipe, recipe_names
from fairseq_plugins.utils.arguments import at_least
from fairseq_plugins.utils.errors import UserError, run_command_line


def main() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    recipe_file, recipe = load_recipe(arguments.recipe)
    recipe = _adapted(recipe, arguments)
    name = recipe_file.stem + ("-smoke" if arguments.smoke else "")
    runs = environment.ROOT / "runs"
    downloads = arguments.downloads or runs / "downloads"
    sources = source_folder(recipe_file, recipe, arguments.source)
    if sources is None and arguments.smoke and not arguments.download:
        # A tiny slice must not cost gigabytes: only what was downloaded before.
        if not downloads.is_dir():
            raise UserError(
                "`--smoke` takes a slice of files that are there. Give their folder "
                "with `--source DIR`, or download all of them with `--download`."
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


def _adapted(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """Return the recipe as the options change it."""
    changes = {
        key: getattr(arguments, key)
        for key in ("vocab_size", "model_type")
        if getattr(arguments, key) is not None
    }
    if arguments.smoke:  # first: its limit is not for what was asked for
        recipe = smoke_recipe(recipe)
    return dataclasses.replace(
        recipe, subwords=dataclasses.replace(recipe.subwords, **changes)
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Prepare a corpus for fairseq-train; called again, go on or stop.",
        epilog=f"Recipes: {', '.join(recipe_names())}.",
    )
    parser.add_argument("recipe", help="a recipe's name, or a YAML file like theirs")
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help="folder with the recipe's files, as archives, plain, .gz or .xz",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs/data/RECIPE"
    )
    parser.add_argument(
        "--vocab-size", type=int, metavar="N", help="pieces, instead of the recipe's"
    )
    parser.add_argument(
        "--model-type", help="bpe, unigram or subword-nmt, instead of the recipe's"
    )
    parser.add_argument("--stage", choices=STAGES, help="run only this stage")
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="a tiny slice of what the source has, into a folder of its own",
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="download what --source lacks (without --source that is the default)",
    )
    parser.add_argument(
        "--downloads",
        type=Path,
        metavar="DIR",
        help="for downloaded archives; default: runs/downloads",
    )
    parser.add_argument(
        "--workers", type=at_least(1), metavar="N", help="processes; default: all cores"
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
