"""Train a model: turn a YAML file into a ``fairseq-train`` command and run it.

    python scripts/train.py CONFIG.yaml [key=value ...] [--dry-run] [--verbose]
    python scripts/train.py --options [CONFIG.yaml] [key=value ...]

CONFIG.yaml holds lines of ``key: value``. ``base`` names files to start with, ``data``
is the folder that scripts/prepare.py wrote, ``run`` the folder for the results and
``start_from`` (optional) a checkpoint with the initial weights. Every other key is an
option of fairseq-train. A second call resumes from the last checkpoint, or does nothing
if training is complete.

It trains on all GPUs of this machine. `torchrun ... scripts/train.py CONFIG.yaml` works
as well, also on several machines: see docs/distributed.md.
"""

from __future__ import annotations

import environment

environment.ensure()

import argparse
import logging
import shlex
import sys
from pathlib import Path

from fairseq_plugins.training.config import (
    Config,
    format_config,
    merge_layers,
    pin_inputs,
    read_layers,
)
from fairseq_plugins.training.dry_run import check_training
from fairseq_plugins.training.fairseq_options import list_options
from fairseq_plugins.training.launch import (
    add_architecture,
    build_command,
    count_processes,
    is_follower,
    join_training,
    train,
)
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.training.train_log import TrainingProgress
from fairseq_plugins.utils.arguments import parse_assignment
from fairseq_plugins.utils.errors import run_command_line

logger = logging.getLogger("fairseq_plugins.train")


def main() -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    if arguments.options:
        print(list_options(_read_given(arguments)))
        return 0
    layers = read_layers(arguments.config, arguments.overrides)
    config = merge_layers(arguments.config, layers)
    run = RunFolder(Path(config["run"]))
    recorded = run.read_results_config()
    config = pin_inputs(config, recorded=recorded, processes=count_processes(config))
    config = add_architecture(config, recorded=recorded)
    if arguments.dry_run:
        command = build_command(config)
        check_training(config, command, build_model=True)
        print(format_config(config, layers) + "\n" + shlex.join(command))
        return 0
    if run.is_finished_with(config):
        if not is_follower():
            print(f"`{run.path}` is complete: nothing to do.")
        return 0
    if not arguments.resume_anyway:
        run.check_resumable(config)
    command = build_command(config)
    if is_follower():
        join_training(config, command)
        return 0
    check_training(config, command)
    if arguments.verbose:
        print(shlex.join(command), flush=True)
        return train(
            config, command, on_line=lambda line: print(line, end="", flush=True)
        )
    logger.info("Training `%s`; fairseq's output goes to %s.", run.path, run.log)
    with TrainingProgress(
        max_update=int(config.get("max_update", 0)),
        max_epoch=int(config.get("max_epoch", 0)),
    ) as progress:
        status = train(config, command, on_line=progress)
    if status == 0:
        print(f"`{run.path}` is complete{progress.summary()}.")
    return status


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="wins over the files"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check and print the flat configuration, the file that each value comes "
        "from, and the command; do not train",
    )
    parser.add_argument(
        "--options",
        action="store_true",
        help="list the options of the criterion and the architecture, with defaults",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print all of fairseq's output"
    )
    parser.add_argument(
        "--resume-anyway",
        action="store_true",
        help="resume in a run folder whose results come from another configuration",
    )
    arguments = parser.parse_intermixed_args()
    if arguments.config is None and not arguments.options:
        parser.error("the following arguments are required: CONFIG.yaml")
    if arguments.options and "=" in str(arguments.config or ""):
        arguments.overrides.insert(0, str(arguments.config))
        arguments.config = None
    return arguments


def _read_given(arguments: argparse.Namespace) -> Config:
    """Return all keys of the configuration, which may lack some, and the overrides."""
    if arguments.config is None:
        return dict(map(parse_assignment, arguments.overrides))
    config: Config = {}
    for _, values in read_layers(arguments.config, arguments.overrides):
        config |= values
    return config


if __name__ == "__main__":
    run_command_line(main)
