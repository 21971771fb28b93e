"""Turn a training configuration into a ``fairseq-train`` command and run it."""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Callable

import fairseq_plugins
from fairseq_plugins.training.config import (
    OURS,
    Config,
    binarised_folder,
    training_arguments,
    update_freq,
    whole_numbers,
)
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.process import run_logged

__all__ = ["follow", "follows", "num_processes", "train", "training_command"]

logger = logging.getLogger(__name__)


def follows() -> bool:
    """Tell whether this is a process of ``torchrun`` and not its first.

    Only the first keeps the run folder; the others train with it.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0"


def num_processes(config: Config) -> int:
    """Return among how many processes fairseq will share a batch.

    ``torchrun`` says it, else ``distributed_world_size``, else it is one for each GPU.

    Raises:
        UserError: ``distributed_world_size`` is no whole number.
    """
    import torch

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if "distributed_world_size" in config:
        return whole_numbers(config, "distributed_world_size")[0]
    return max(1, torch.cuda.device_count())


def training_command(config: Config) -> list[str]:
    """Return the checked command; imports fairseq, which takes seconds.

    Raises:
        UserError: an option is unknown or missing, or its value is wrong.
    """
    import torch

    options = {key: value for key, value in config.items() if key not in OURS}
    _check_tensorboard(options)
    add_cpu = "cpu" not in options and not torch.cuda.is_available()
    if add_cpu:
        options["cpu"] = True
    if "batches_per_update" in config:
        if "update_freq" in config:
            raise UserError(
                "`update_freq` and `batches_per_update` must not both be given."
            )
        options["update_freq"] = update_freq(
            config["batches_per_update"], num_processes(config)
        )
    if options.get("cpu") and num_processes(config) > 1:
        options.setdefault("distributed_backend", "gloo")  # fairseq's is for GPUs
    arguments = training_arguments(options, also_known=OURS)
    if add_cpu:
        logger.info("No GPU here: training on the CPU (--cpu).")
    run = RunFolder(Path(config["run"]))
    command = [sys.executable, "-m", "fairseq_cli.train"]
    command += [str(binarised_folder(Path(config["data"])))]
    command += ["--user-dir", str(Path(fairseq_plugins.__file__).parent)]
    command += [*arguments, "--save-dir", str(run.checkpoints)]
    if "start_from" in config:
        # fairseq heeds it only while the folder has no checkpoint_last.pt.
        command += ["--finetune-from-model", config["start_from"]]
    return command


def _check_tensorboard(options: Config) -> None:
    """Without the package fairseq trains, says so once and logs nothing."""
    there = map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))
    if "tensorboard_logdir" in options and not any(there):
        raise UserError(
            "`tensorboard_logdir` needs the package tensorboard: "
            "pip install -e '.[tensorboard]'."
        )


def train(config: Config, command: list[str], *, on_line: Callable[[str], None]) -> int:
    """Train, or go on from the run's last checkpoint; return fairseq's status.

    Args:
        config: with its inputs pinned.
        command: from :func:`training_command`.
        on_line: receives fairseq's output line by line.

    Raises:
        UserError: the run folder is in use, or its last checkpoint is damaged.
    """
    run = RunFolder(Path(config["run"]))
    with run.in_use():
        if not _has_all_updates(config, run):
            run.record_start(config, shlex.join(command))
            outcome = run_logged(command, log=run.log, append=True, on_line=on_line)
            if outcome.status:
                logger.error(
                    "fairseq-train ended with status %d: %s. All of its output: %s",
                    outcome.status,
                    next(filter(str.strip, reversed(outcome.last_lines)), "no output"),
                    run.log,
                )
                return outcome.status
        run.record_end(_progress(config, run))
    return 0


def follow(config: Config, command: list[str]) -> None:
    """Become fairseq, as one more process of the training that the first one keeps.

    Returns only if there is nothing to train. Until all processes have met nobody
    writes checkpoints, so that they all see the same ones and decide alike.
    """
    if not _has_all_updates(config, RunFolder(Path(config["run"]))):
        os.execv(command[0], command)


def _has_all_updates(config: Config, run: RunFolder) -> bool:
    """Tell whether the last checkpoint has ``max_update`` updates or more.

    It may after a kill in the last second; fairseq would then do one update more.
    """
    max_update = int(config.get("max_update", 0))
    if not (max_update and run.last_checkpoint.is_file()):
        return False
    updates, _ = _read_checkpoint(run.last_checkpoint)
    if updates < max_update:
        return False
    logger.info("`%s` has had its %d updates already.", run.path, updates)
    return True


def _progress(config: Config, run: RunFolder) -> dict[str, float | None]:
    """Return the run's updates, and its seconds over all of its starts."""
    if not run.last_checkpoint.is_file():  # with --no-save or --no-last-checkpoints
        return {"updates": None, "seconds": None}
    updates, seconds = _read_checkpoint(run.last_checkpoint)
    if "start_from" in config:  # fairseq goes on counting where that one stopped
        start = Path(config["start_from"])
        if not start.is_file():
            return {"updates": updates, "seconds": None}
        seconds -= _read_checkpoint(start)[1]
    return {"updates": updates, "seconds": round(seconds, 1)}


def _read_checkpoint(path: Path) -> tuple[int, float]:
    """Return the number of updates and the seconds of training in a checkpoint."""
    from fairseq import checkpoint_utils

    fairseq_plugins.register()  # for safe loading
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    except Exception as error:  # torch has many for a file that was cut off
        raise UserError(
            f"`{path}` cannot be read ({error}). Put another checkpoint of the same "
            "folder in its place, or remove it to begin anew."
        ) from None
    updates = state["optimizer_history"][-1]["num_updates"]
    # Several processes leave their mean of it, as a tensor.
    return updates, float(state["extra_state"]["previous_training_time"])
