"""Prepare a corpus for fairseq-train: from raw text to a binarised folder.

    python scripts/prepare.py RECIPE [--source DIR] [--out DIR]

Called again, it goes on where it was, redoes what a changed setting or a damaged file
makes necessary, or does nothing.
"""
from __future__ import annotations

import _environment

_environment.ensure()

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from fairseq_plugins.pipeline.errors import run_command_line  # noqa: E402
from fairseq_plugins.pipeline.preparation import prepare  # noqa: E402
from fairseq_plugins.pipeline.recipe import load_recipe, recipe_names  # noqa: E402
from fairseq_plugins.pipeline.sources import source_folder  # noqa: E402


def main() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    recipe_file, recipe = load_recipe(arguments.recipe)
    name = recipe_file.stem
    changes = {
        key: getattr(arguments, key)
        for key in ("vocab_size", "model_type")
        if getattr(arguments, key) is not None
    }
    recipe = dataclasses.replace(
        recipe, subwords=dataclasses.replace(recipe.subwords, **changes)
    )
    prepare(
        name,
        recipe,
        sources=source_folder(recipe_file, recipe, arguments.source),
        out=arguments.out or _environment.ROOT / "runs" / "data" / name,
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
        help="folder with the recipe's files, plain, .gz or .xz",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs/data/RECIPE"
    )
    parser.add_argument(
        "--vocab-size", type=int, metavar="N", help="pieces, instead of the recipe's"
    )
    parser.add_argument("--model-type", help="bpe or unigram, instead of the recipe's")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
