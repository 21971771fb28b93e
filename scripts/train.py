"""Train a model: turn one YAML file into a ``fairseq-train`` command and run it.

    python scripts/train.py CONFIG.yaml [key=value ...] [--dry-run]

CONFIG.yaml holds lines of ``key: value``. ``data`` is what scripts/prepare.py wrote,
``run`` the folder for the results, ``start_from`` (optional) a checkpoint to start
with; every other key is an option of fairseq-train. Called again, it goes on from the
last checkpoint, or does nothing if training has reached its end.

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

from fairseq_plugins.training.config import pin_inputs, read_config
from fairseq_plugins.training.launch import (
    follow,
    follows,
    num_processes,
    train,
    training_command,
)
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import run_command_line


def main() -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    config = read_config(arguments.config, arguments.overrides)
    run = RunFolder(Path(config["run"]))
    config = pin_inputs(
        config, recorded=run.results_config(), processes=num_processes(config)
    )
    if arguments.dry_run:
        print(shlex.join(training_command(config)))
        return 0
    if run.is_finished_with(config):
        if not follows():
            print(f"`{run.path}` is complete: nothing to do.")
        return 0
    if not arguments.resume_anyway:
        run.check_goes_on(config)
    command = training_command(config)
    if follows():
        follow(config, command)
        return 0
    print(shlex.join(command), flush=True)
    return train(config, command, on_line=lambda line: print(line, end="", flush=True))


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="wins over the file"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check and print the command only"
    )
    parser.add_argument(
        "--resume-anyway",
        action="store_true",
        help="go on in a run folder whose results come from another configuration",
    )
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_command_line(main)
