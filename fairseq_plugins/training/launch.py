"""Turn a training configuration into a ``fairseq-train`` command and run it."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Callable, Mapping

import fairseq_plugins
from fairseq_plugins.compat.checkpoints import read_checkpoint
from fairseq_plugins.compat.training_state import EARLY_STOPPING
from fairseq_plugins.training.config import (
    PROJECT_KEYS,
    Config,
    compute_update_freq,
    find_binarized_folder,
    parse_whole_numbers,
)
from fairseq_plugins.training.fairseq_options import build_arguments, parse_options
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.training.train_log import find_error
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.process import run_logged

__all__ = [
    "add_architecture",
    "join_training",
    "is_follower",
    "count_processes",
    "train",
    "build_command",
]

logger = logging.getLogger(__name__)

# fairseq prints this before it writes a checkpoint.
_SAVING = "Preparing to save checkpoint"
# The options of fairseq translation models that decide the shapes or the meaning of
# the weights.
_SIZES = tuple(
    f"{part}_{size}"
    for part in ("encoder", "decoder")
    for size in (
        "embed_dim",
        "hidden_size",
        "ffn_embed_dim",
        "out_embed_dim",
        "layers",
        "attention_heads",
        "bidirectional",
        "attention",
        "normalize_before",
        "learned_pos",
    )
) + (
    "share_all_embeddings",
    "share_decoder_input_output_embed",
    "no_token_positional_embeddings",
    "layernorm_embedding",
    "activation_fn",
)


def add_architecture(config: Config, *, recorded: Config | None) -> Config:
    """Return the configuration with the architecture of the checkpoint ``start_from``.

    Only options that the configuration does not give, and that differ from the defaults
    of its ``arch``, are added.

    Args:
        config: with its inputs pinned.
        recorded: the configuration of the results that the run folder already holds.

    Raises:
        UserError: the configuration contradicts the checkpoint, or the checkpoint
            cannot be read.
    """
    if "start_from" not in config:
        return config
    if recorded and recorded.get("start_from") == config["start_from"]:
        same = {key: recorded[key] for key in ("arch", *_SIZES) if key in recorded}
        return {**same, **config}
    theirs = _read_model_options(Path(config["start_from"]))
    completed = {"arch": theirs["arch"], **config}
    given = {key: value for key, value in completed.items() if key not in PROJECT_KEYS}
    arguments = build_arguments(given, also_known=PROJECT_KEYS)
    ours = _plain(vars(parse_options(["data", *arguments])))
    _check_model_class(config, theirs)
    for key in _SIZES:
        if key not in ours or key not in theirs or ours[key] == theirs[key]:
            continue
        if key in config:
            raise _contradiction(key, config, theirs)
        completed[key] = theirs[key]
    return completed


def _read_model_options(checkpoint: Path) -> dict[str, Any]:
    state = read_checkpoint(checkpoint)
    options = (state.get("cfg") or {}).get("model") or state.get("args")
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    if not isinstance(options, Mapping) or not {"arch", "_name"} & options.keys():
        raise UserError(f"`{checkpoint}` must hold the options of its model.")
    return _plain({"arch": options.get("_name"), **options})


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options whose values can be compared: ``"1"`` and ``"True"`` are true."""
    plain = {}
    for key, value in options.items():
        if isinstance(value, str) and key in _SIZES:
            with contextlib.suppress(ValueError, SyntaxError):
                value = ast.literal_eval(value)
        plain[key] = value
    # fairseq sets the second option by itself when it builds a model with the first.
    if plain.get("share_all_embeddings"):
        plain["share_decoder_input_output_embed"] = True
    return plain


def _check_model_class(config: Config, theirs: dict[str, Any]) -> None:
    from fairseq.models import ARCH_MODEL_REGISTRY

    if "arch" not in config:
        return
    ours = ARCH_MODEL_REGISTRY[config["arch"]]
    other = ARCH_MODEL_REGISTRY.get(theirs["arch"], ours)
    if not (issubclass(ours, other) or issubclass(other, ours)):
        raise _contradiction("arch", config, theirs)


def _contradiction(key: str, config: Config, theirs: dict[str, Any]) -> UserError:
    return UserError(
        f"`{key}` must be {theirs[key]} as in `start_from`, but is {config[key]} "
        f"(checkpoint: `{config['start_from']}`). Leave it out or change it."
    )


def is_follower() -> bool:
    """Return whether this is a process of ``torchrun`` other than the first.

    Only the first process writes to the run folder; the others only train.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0"


def count_processes(config: Config) -> int:
    """Return the number of processes that will share a batch.

    It is that of ``torchrun`` or, without it, ``distributed_world_size`` or, if that is
    not given, one for each GPU.

    Raises:
        UserError: ``distributed_world_size`` is not a whole number.
    """
    import torch

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if "distributed_world_size" in config:
        return parse_whole_numbers(config, "distributed_world_size")[0]
    return max(1, torch.cuda.device_count())


def build_command(config: Config) -> list[str]:
    """Return the checked command; imports fairseq, which takes seconds.

    Raises:
        UserError: an option is unknown or missing, or its value is wrong.
    """
    import torch

    options = {key: value for key, value in config.items() if key not in PROJECT_KEYS}
    _check_tensorboard(options)
    add_cpu = "cpu" not in options and not torch.cuda.is_available()
    if add_cpu:
        options["cpu"] = True
    if "batches_per_update" in config:
        if "update_freq" in config:
            raise UserError(
                "`update_freq` and `batches_per_update` must not both be given."
            )
        options["update_freq"] = compute_update_freq(
            config["batches_per_update"], count_processes(config)
        )
    if options.get("cpu") and count_processes(config) > 1:
        options.setdefault("distributed_backend", "gloo")  # fairseq's is for GPUs
    arguments = build_arguments(options, also_known=PROJECT_KEYS)
    if add_cpu:
        logger.info("No GPU here: training on the CPU (--cpu).")
    if options.get("save_interval_updates") and options.get("validate_after_updates"):
        logger.warning(
            "`validate_after_updates` also delays the checkpoints of "
            "`save_interval_updates`."
        )
    run = RunFolder(Path(config["run"]))
    command = [sys.executable, "-m", "fairseq_cli.train"]
    command += [str(find_binarized_folder(Path(config["data"])))]
    command += ["--user-dir", str(Path(fairseq_plugins.__file__).parent)]
    command += [*arguments, "--save-dir", str(run.checkpoints)]
    if "start_from" in config:
        # fairseq ignores it once the folder has a checkpoint_last.pt.
        command += ["--finetune-from-model", config["start_from"]]
    return command


def _check_tensorboard(options: Config) -> None:
    """Without the package, fairseq prints one warning and logs nothing."""
    packages = map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))
    if "tensorboard_logdir" in options and not any(packages):
        raise UserError(
            "`tensorboard_logdir` needs the package tensorboard: "
            "pip install -e '.[tensorboard]'."
        )


def train(config: Config, command: list[str], *, on_line: Callable[[str], None]) -> int:
    """Train, or resume from the last checkpoint of the run; return fairseq's status.

    Args:
        config: with its inputs pinned.
        command: from :func:`build_command`.
        on_line: receives fairseq's output line by line.

    Raises:
        UserError: the run folder is in use, or its last checkpoint is damaged.
    """
    run = RunFolder(Path(config["run"]))
    with run.lock():
        if not _is_complete(config, run):
            status = _run_fairseq(config, run, command, on_line)
            if status:
                return status
        run.record_end(_measure_progress(config, run))
    return 0


def _run_fairseq(
    config: Config, run: RunFolder, command: list[str], on_line: Callable[[str], None]
) -> int:
    """Run the command; record the configuration as soon as results depend on it."""
    is_recorded = False

    def record() -> None:
        nonlocal is_recorded
        if not is_recorded:
            run.record_start(config, shlex.join(command))
            is_recorded = True

    def follow(line: str) -> None:
        if _SAVING in line:
            record()
        on_line(line)

    # A start that fails before its first checkpoint must leave the record of the
    # results that are there.
    before = run.last_save()
    if before is None:
        record()
    log_start = run.log.stat().st_size if run.log.is_file() else 0
    outcome = run_logged(command, log=run.log, append=True, on_line=follow)
    if outcome.status == 0 or run.last_save() != before:
        record()
    if outcome.status:
        with open(run.log, encoding="utf-8", errors="replace") as log:
            log.seek(log_start)
            error = find_error(log.read())
        logger.error(
            "fairseq-train ended with status %d: %s. All of its output: %s",
            outcome.status,
            error,
            run.log,
        )
    return outcome.status


def join_training(config: Config, command: list[str]) -> None:
    """Replace this process by fairseq, to train together with the first process.

    Returns only if there is nothing to train. No process writes checkpoints before all
    processes have met, so that all of them see the same checkpoints here.
    """
    if not _is_complete(config, RunFolder(Path(config["run"]))):
        os.execv(command[0], command)


def _is_complete(config: Config, run: RunFolder) -> bool:
    """Return whether the last checkpoint is the end of the training.

    That is so after a kill in the last second; fairseq would then continue to train.
    """
    max_update = int(config.get("max_update", 0))
    patience = int(config.get("patience", -1))
    if not (max_update or patience > 0) or not run.last_checkpoint.is_file():
        return False
    state = _read_last_checkpoint(run)
    if max_update and _count_updates(state) >= max_update:
        logger.info("`%s` already has its %d updates.", run.path, max_update)
        return True
    stopping = state["extra_state"].get(EARLY_STOPPING, {})
    if 0 < patience <= stopping.get("num_runs", 0):
        logger.info("`%s` has stopped early: `patience` is %d.", run.path, patience)
        return True
    return False


def _measure_progress(config: Config, run: RunFolder) -> dict[str, float | None]:
    """Return the updates of the run, and its seconds over all of its starts."""
    if not run.last_checkpoint.is_file():  # with --no-save or --no-last-checkpoints
        return {"updates": None, "seconds": None}
    state = _read_last_checkpoint(run)
    updates, seconds = _count_updates(state), _training_seconds(state)
    if "start_from" in config:  # fairseq continues to count from there
        start = Path(config["start_from"])
        if not start.is_file():
            return {"updates": updates, "seconds": None}
        seconds -= _training_seconds(read_checkpoint(start))
    return {"updates": updates, "seconds": round(seconds, 1)}


def _read_last_checkpoint(run: RunFolder) -> dict[str, Any]:
    try:
        return read_checkpoint(run.last_checkpoint)
    except UserError as error:
        raise UserError(
            f"{error} Put another checkpoint of the same folder in its place, or "
            "remove it to start over."
        ) from None


def _count_updates(state: dict[str, Any]) -> int:
    updates: int = state["optimizer_history"][-1]["num_updates"]
    return updates


def _training_seconds(state: dict[str, Any]) -> float:
    # Several processes store their mean, as a tensor.
    return float(state["extra_state"]["previous_training_time"])
