"""Prepare a corpus for fairseq-train: from raw text to a binarized folder.

    python scripts/prepare.py RECIPE [--source DIR] [--out DIR] [--stage NAME] [--smoke]
    python scripts/prepare.py NAME --langs en fr --train FILE [FILE] \
        --valid (FILE [FILE] | N) --test (FILE [FILE] | N)
    python -m fairseq_plugins.corpus RECIPE ...     (with the installed package)

Stages: fetch, extract, clean, subwords, encode, binarise; all by default. A second call
continues an interrupted run, redoes the stages that a changed setting or a damaged file
makes necessary, or does nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import sys
from pathlib import Path

from fairseq_plugins.corpus.extract import source_folder
from fairseq_plugins.corpus.own_text import OwnText, import_text
from fairseq_plugins.corpus.prepare import SMOKE_VOCABULARY, STAGES, prepare
from fairseq_plugins.corpus.recipe import Recipe, load_recipe, recipe_names
from fairseq_plugins.corpus.stages import lock_output_dir
from fairseq_plugins.utils.arguments import at_least
from fairseq_plugins.utils.errors import UserError, run_command_line


def prepare_corpus(runs: Path = Path("runs")) -> None:
    """Read the command line and prepare; defaults of folders are below ``runs``."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments(runs)
    if arguments.train:
        out = arguments.out or runs / "data" / arguments.recipe
        arguments.recipe = str(_import_own_text(arguments, out))
        arguments.out = out
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
    if arguments.train:
        logging.getLogger("fairseq_plugins").info(
            "The recipe is `%s`. Next:\n  scripts/train.py configs/own_text.yaml "
            "data=%s run=%s",
            recipe_file,
            arguments.out,
            runs / name / "start",
        )


def _import_own_text(arguments: argparse.Namespace, out: Path) -> Path:
    """Write the files and the recipe of the user's own text; return the recipe."""
    name = arguments.recipe
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UserError(
            "with `--train`, the first argument is the name of the new corpus and must "
            f"consist of letters, digits and `_.-`, but is `{name}`."
        )
    if name in recipe_names():
        raise UserError(f"`{name}` is a recipe of this project; choose another name.")
    missing = [f"`--{key}`" for key in ("langs", "valid", "test")
               if getattr(arguments, key) is None]  # fmt: skip
    if missing:
        raise UserError(f"`--train` needs {' and '.join(missing)}.")
    own = OwnText(
        train=tuple(arguments.train),
        valid=tuple(arguments.valid),
        test=tuple(arguments.test),
        languages=tuple(arguments.langs),
        columns=tuple(arguments.columns) if arguments.columns else None,
        seed=arguments.seed,
        remove_overlap=arguments.remove_overlap,
    )
    with lock_output_dir(out):
        return import_text(name, own, out)


def _apply_options(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    if arguments.checks:
        recipe = dataclasses.replace(recipe, checks=arguments.checks)
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
    own = parser.add_argument_group(
        "your own text",
        "One TSV, TMX or XML file with both sides, or two aligned files; plain, .gz, "
        ".xz or .zst; `-` is a TSV file on the standard input. RECIPE is the name of "
        "the new corpus. The recipe is written to the output folder.",
    )
    own.add_argument("--langs", nargs=2, metavar=("SOURCE", "TARGET"), help="en fr")
    own.add_argument("--train", nargs="+", metavar="FILE")
    own.add_argument(
        "--valid",
        nargs="+",
        metavar="FILE",
        help="or a number: draw pairs from --train",
    )
    own.add_argument(
        "--test", nargs="+", metavar="FILE", help="or a number: draw pairs from --train"
    )
    own.add_argument(
        "--columns",
        nargs=2,
        metavar=("SOURCE", "TARGET"),
        help="of a TSV file: numbers from 1, or names in the first line",
    )
    own.add_argument("--seed", type=int, default=1, help="for drawing; default: 1")
    own.add_argument(
        "--remove-overlap",
        action="store_true",
        help="remove pairs from --train that share a side with --valid or --test",
    )
    add(
        "--checks",
        choices=("warn", "refuse"),
        help="what follows if the text looks wrong; default: refuse with --train, "
        "otherwise warn or what the recipe sets",
    )
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
