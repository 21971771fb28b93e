"""Train features for k nearest neighbours through SOFT top-k, and compare.

    python scripts/knn.py                       # scikit-learn's digits, a few minutes
    python scripts/knn.py --mnist FOLDER        # four IDX files, plain or .gz
    python scripts/knn.py --cifar10 FOLDER --device cuda    # python batches
    python scripts/knn.py --on valid --methods soft --seeds 9 epsilons.soft=3

All methods get the same network, images and number of updates; the settings are those
of configs/knn, or of --config, and key=value changes them. Trainings are kept under
--runs: what is done is not done again, and what was stopped goes on. The results go to
--results as JSON (docs/knn.md gets the table of the digits), and --picture FILE draws
them. To choose settings use --on valid, which holds out a part of the training images
and leaves the test images alone.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import environment

environment.ensure()

import torch

from fairseq_plugins.knn.data import Split, cifar10, digits, mnist
from fairseq_plugins.knn.study import (
    Study,
    draw,
    hold_out,
    markdown,
    plain,
    require,
)
from fairseq_plugins.knn.training import METHODS, Settings, change, read_settings
from fairseq_plugins.utils.errors import UserError, run_command_line
from fairseq_plugins.utils.files import write_between, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "knn"
PAGE = ROOT / "docs" / "knn.md"


def main() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    options = _parse()
    device = _device(options.device)
    if options.picture:
        require()
    data = "mnist" if options.mnist else "cifar10" if options.cifar10 else "digits"
    settings = _settings(options, data)
    splits = _splits(options, data)
    study = Study(
        settings,
        hold_out(splits) if options.on == "valid" else splits,
        methods=options.methods,
        seeds=options.seeds,
        folder=options.runs,
        device=device,
    )
    study.run()
    summary = study.summary()
    name = data if options.on == "test" else f"{data}_valid"
    write_json(options.results / f"{name}.json", {"on": options.on, **summary})
    if options.picture:
        draw(study, summary, options.picture)
    if options.on == "test" and options.results == RESULTS and data == "digits":
        write_between(PAGE, "digits", markdown(summary))
    print(plain(summary))


def _settings(options: argparse.Namespace, data: str) -> Settings:
    path = options.config or ROOT / "configs" / "knn" / f"{data}.yaml"
    settings = change(read_settings(path), options.changes)
    if settings.data != data:
        raise UserError(
            f"`data` of {path} must be `{data}`, the images given, "
            f"but is `{settings.data}`."
        )
    return settings


def _splits(options: argparse.Namespace, data: str) -> list[Split]:
    if data == "mnist":
        return mnist(options.mnist)
    if data == "cifar10":
        return cifar10(options.cifar10)
    return digits()


def _device(name: str) -> str:
    try:
        torch.empty(1, device=name)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"`--device {name}` cannot be used: {reason}.") from None
    return name


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--mnist", type=Path, metavar="FOLDER")
    data.add_argument("--cifar10", type=Path, metavar="FOLDER")
    add("changes", nargs="*", metavar="KEY=VALUE", help="changes of the settings")
    add("--config", type=Path, metavar="FILE", help="default: configs/knn/DATA.yaml")
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS),
        metavar="METHOD", help=f"of {', '.join(METHODS)} (default: all)")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N")
    add("--on", choices=("test", "valid"), default="test")
    add("--runs", type=Path, default=Path("runs/knn"), metavar="FOLDER")
    add("--results", type=Path, default=RESULTS, metavar="FOLDER")
    add("--picture", type=Path, metavar="FILE", help="a PNG; needs matplotlib")
    add("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
