"""Train features for k nearest neighbors by SOFT top-k, and compare methods.

    python scripts/knn.py                       # digits of scikit-learn, some minutes
    python scripts/knn.py --mnist FOLDER        # four IDX files, plain or .gz
    python scripts/knn.py --cifar10 FOLDER --device cuda    # Python batches
    python scripts/knn.py --on valid --methods soft --seeds 9 epsilons.soft=3

All methods have the same network, images and number of updates. The settings are those
of configs/knn or of --config, with changes as key=value. Finished runs are kept
under --runs and skipped, and interrupted ones are resumed. The accuracies are printed
and written to --results as JSON. Choose settings with --on valid, which holds out some
of the training images as test images.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import environment

environment.ensure()

import torch

from fairseq_plugins.knn.data import cifar10, digits, mnist
from fairseq_plugins.knn.study import (
    Study,
    check_drawing_packages,
    draw,
    format_summary,
    hold_out,
)
from fairseq_plugins.knn.training import METHODS, Settings, change_settings
from fairseq_plugins.utils.errors import UserError, run_command_line
from fairseq_plugins.utils.files import write_json
from fairseq_plugins.utils.typed_yaml import read_dataclass

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "knn"


def main() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse()
    try:
        torch.empty(1, device=arguments.device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"`--device {arguments.device}` cannot be used: {reason}."
        ) from None
    if arguments.picture:
        check_drawing_packages()
    if arguments.mnist:
        data, splits = "mnist", mnist(arguments.mnist)
    elif arguments.cifar10:
        data, splits = "cifar10", cifar10(arguments.cifar10)
    else:
        data, splits = "digits", digits()
    path = arguments.config or CONFIGS / f"{data}.yaml"
    settings = change_settings(read_dataclass(path, Settings), arguments.changes)
    if settings.data != data:
        raise UserError(
            f"`data` of `{path}` must be `{data}`, the given images, but is "
            f"`{settings.data}`."
        )
    study = Study(
        settings,
        hold_out(splits) if arguments.on == "valid" else splits,
        methods=arguments.methods,
        seeds=arguments.seeds,
        folder=arguments.runs,
        device=arguments.device,
    )
    study.run()
    summary = study.summary()
    name = data if arguments.on == "test" else f"{data}_valid"
    results = arguments.results or arguments.runs
    write_json(results / f"{name}.json", {"on": arguments.on, **summary})
    if arguments.picture:
        draw(study, summary, arguments.picture)
    print(format_summary(summary))


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
    add(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        default=list(METHODS),
        metavar="METHOD",
        help=f"of {', '.join(METHODS)} (default: all)",
    )
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N")
    add("--on", choices=("test", "valid"), default="test")
    add("--runs", type=Path, default=Path("runs/knn"), metavar="FOLDER")
    add("--results", type=Path, metavar="FOLDER", help="default: that of --runs")
    add("--picture", type=Path, metavar="FILE", help="PNG file; needs matplotlib")
    add("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
