"""Average the parameters of several checkpoints.

    python scripts/average.py RUN --last-updates 5
    python scripts/average.py RUN --last-epochs 10
    python scripts/average.py CHECKPOINT CHECKPOINT ... --output FILE

RUN is a folder written by scripts/train.py with `save_interval_updates` (and
`keep_interval_updates`) or with checkpoints of epochs. The default output is
RUN/checkpoints/checkpoint_average.pt; evaluate it with
`--checkpoint checkpoint_average.pt`. An existing average of the same checkpoints is
kept.
"""

from __future__ import annotations

import environment

environment.ensure()

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from fairseq_plugins.evaluation.average import average_checkpoints
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.arguments import at_least, output_file
from fairseq_plugins.utils.errors import UserError, run_command_line
from fairseq_plugins.utils.files import read_json, write_json

AVERAGE = "checkpoint_average.pt"

logger = logging.getLogger("average")


def main() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
    arguments = _parse_arguments()
    paths, output = _choose(arguments)
    record = output.with_name(f"{output.name}.inputs.json")
    inputs = [_identity(path) for path in paths]
    if output.is_file() and record.is_file() and read_json(record) == inputs:
        print(f"`{output}` is the mean of these checkpoints: nothing to do.")
        return
    record.unlink(missing_ok=True)
    for path in paths:
        logger.info("%s", path)
    average_checkpoints(paths, output)
    write_json(record, inputs)
    print(f"{output}: the mean of {len(paths)} checkpoints")


def _choose(arguments: argparse.Namespace) -> tuple[list[Path], Path]:
    """Return the checkpoints to average, oldest first, and the output."""
    paths: list[Path] = arguments.paths
    updates, epochs = arguments.last_updates, arguments.last_epochs
    count = updates or epochs
    if not count:
        checkpoints = _checkpoints(paths)
        if arguments.output is None:
            raise UserError("`--output` must be given with checkpoints.")
        return checkpoints, arguments.output
    if len(paths) != 1 or not paths[0].is_dir():
        raise UserError(
            "`--last-updates` and `--last-epochs` need one run folder, but "
            f"`{' '.join(map(str, paths))}` is given."
        )
    run = RunFolder(paths[0])
    run.read_config()  # refuses any other folder
    newest = run.newest_checkpoints(count, by_epochs=bool(epochs))
    if len(newest) < count:
        logger.warning(
            "`%s` has only %d of %d checkpoints.", paths[0], len(newest), count
        )
    return newest, arguments.output or run.checkpoints / AVERAGE


def _checkpoints(paths: list[Path]) -> list[Path]:
    for path in paths:
        if path.is_dir():
            raise UserError(
                f"`--last-updates` or `--last-epochs` must be given with the run "
                f"folder `{path}`."
            )
        if not path.is_file():
            raise UserError(f"checkpoint `{path}` does not exist.")
    return paths


def _identity(path: Path) -> dict[str, Any]:
    """Return what identifies a checkpoint without reading it."""
    status = path.stat()
    return {
        "file": str(path.resolve()),
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
    }


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("paths", type=Path, nargs="+", metavar="RUN or CHECKPOINT")
    last = parser.add_mutually_exclusive_group()
    last.add_argument("--last-updates", type=at_least(1), metavar="N",
                      help="the last N saved by number of updates")  # fmt: skip
    last.add_argument("--last-epochs", type=at_least(1), metavar="N",
                      help="the last N saved after an epoch")  # fmt: skip
    add("--output", type=output_file, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
