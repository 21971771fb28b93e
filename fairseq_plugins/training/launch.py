"""Turn a training configuration into a ``fairseq-train`` command and run it."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NoReturn

import fairseq_plugins
from fairseq_plugins.compat.checkpoints import read_checkpoint
from fairseq_plugins.training.config import (
    PROJECT_KEYS,
    Config,
    compute_update_freq,
    find_binarized_folder,
    parse_whole_numbers,
)
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError, did_you_mean
from fairseq_plugins.utils.process import run_logged

__all__ = [
    "add_architecture",
    "join_training",
    "is_follower",
    "count_processes",
    "train",
    "build_arguments",
    "build_command",
]

logger = logging.getLogger(__name__)

_RESERVED = {
    "user_dir": "it is always this project's fairseq_plugins",
    "save_dir": "it is always the folder `checkpoints` of `run`",
    "finetune_from_model": "use `start_from`",
    "restore_file": "use `start_from`, or an earlier `run` to resume it",
}
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
# Longer lists of choices (there are 200 architectures) are not shown in messages.
_MAX_LISTED_CHOICES = 12
_TEXT = "text"


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
    ours = _parse_options(
        {key: value for key, value in completed.items() if key not in PROJECT_KEYS}
    )
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


def _parse_options(options: Config) -> dict[str, Any]:
    """Return the values that fairseq derives from options, with its defaults."""
    from fairseq import options as fairseq_options

    arguments = build_arguments(options, also_known=PROJECT_KEYS)
    parser = fairseq_options.get_training_parser()
    parsed = fairseq_options.parse_args_and_arch(parser, ["data", *arguments])
    return _plain(vars(parsed))


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


def build_arguments(
    options: Mapping[str, Any], *, also_known: Iterable[str] = ()
) -> list[str]:
    """Return the arguments of ``fairseq-train`` for these options, checked.

    They are checked by the parser that fairseq builds for the architecture, criterion,
    optimizer, ... among the options, with this plug-in registered.

    Args:
        options: option names with underscores and their values: text, numbers,
            booleans for flags, lists and mappings (as JSON).
        also_known: keys that are not options, to suggest for a misspelt key.

    Raises:
        UserError: an option is unknown, reserved or missing, or its value is wrong.
    """
    for key in _RESERVED.keys() & options.keys():
        raise UserError(f"`{key}` must not be given: {_RESERVED[key]}.")
    for key in ("arch", "optimizer"):
        if key not in options:
            raise UserError(f"`{key}` must be given.")
    if not {"max_tokens", "batch_size", "max_sentences"} & options.keys():
        raise UserError("`max_tokens` or `batch_size` must be given.")
    parser = _build_parser(options)
    known = _actions_by_name(parser)
    arguments = []
    for key, value in options.items():
        if key not in known:
            raise UserError(
                f"unknown key `{key}`.{did_you_mean(key, [*known, *also_known])} "
                "fairseq-train has no such option with this `arch`, `criterion`, "
                "`optimizer` and `lr_scheduler`."
            )
        arguments += _format_option(key, value, known[key])
    parser.parse_args(["data", *arguments])
    return arguments


def _build_parser(options: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Build the parser of fairseq-train with the options of the chosen classes."""
    from fairseq import options as fairseq_options
    from fairseq.registry import REGISTRIES

    fairseq_plugins.register()
    parser: argparse.ArgumentParser = fairseq_options.get_training_parser()
    setattr(parser, "error", _refuse)
    general = _actions_by_name(parser)
    chosen = []
    for key in sorted({"arch", "task", *REGISTRIES} & options.keys()):
        chosen += _format_option(key, options[key], general[key])
    # Parsing has the side effect that is needed here: the chosen classes add their
    # options to the parser. That required options are missing does not matter.
    with contextlib.suppress(UserError):
        fairseq_options.parse_args_and_arch(parser, [*chosen, "data"], parse_known=True)
    return parser


def _refuse(message: str) -> NoReturn:
    raise UserError(f"fairseq-train does not accept these options: {message}.")


def _actions_by_name(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {
        option[2:].replace("-", "_"): action
        for option, action in parser._option_string_actions.items()
        if option.startswith("--") and option != "--help"
    }


def _format_option(key: str, value: Any, action: argparse.Action) -> list[str]:
    flag = "--" + key.replace("_", "-")
    if flag not in action.option_strings:  # a few of fairseq's have underscores
        flag = "--" + key
    if isinstance(value, bool) or action.nargs == 0:
        return _format_boolean(key, value, action, flag)
    if isinstance(value, list) and action.nargs in ("+", "*"):
        return [flag, *(_check_value(key, str(item), action) for item in value)]
    if isinstance(value, (list, dict)):
        value = json.dumps(value)
    text = _check_value(key, str(value), action)
    # argparse would read a value that begins with a dash as another option.
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _format_boolean(
    key: str, value: Any, action: argparse.Action, flag: str
) -> list[str]:
    """Give a flag if it sets the value that the configuration asks for.

    ``left_pad_source: false`` gives ``--left-pad-source``, which switches it off.
    """
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"`{key}` must be true or false, but is `{value}`.")
        return [flag] if value == action.const else []
    if action.nargs == "?":  # a flag that may have a value
        return [flag] if value else []
    name = getattr(action.type, "__name__", "")
    if action.metavar == "BOOL" or name == "eval_bool":
        return [flag, str(value)]
    rule = _describe_values(action)
    message = f"`{key}` must be {rule}, but is `{str(value).lower()}`."
    if rule == _TEXT:
        message += " YAML reads on, off, yes and no so, unless in quotes."
    raise UserError(message)


def _describe_values(action: argparse.Action) -> str:
    if action.choices is not None:
        choices = [str(choice) for choice in action.choices]
        if len(choices) <= _MAX_LISTED_CHOICES:
            return "one of " + ", ".join(f"`{choice}`" for choice in choices)
        return f"one of fairseq's {len(choices)} choices"
    names: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        str: _TEXT,
        None: _TEXT,
    }
    return names.get(action.type, "a number, or a list such as `[0.5, 0.25]`")


def _check_value(key: str, text: str, action: argparse.Action) -> str:
    """Return the text if the option accepts it."""
    rule = _describe_values(action)
    convert: Callable[[str], Any] = action.type if callable(action.type) else str
    try:
        value = convert(text)
    except (ValueError, TypeError, SyntaxError, argparse.ArgumentTypeError):
        raise UserError(f"`{key}` must be {rule}, but is `{text}`.") from None
    if action.choices is not None and value not in action.choices:
        hint = did_you_mean(text, map(str, action.choices))
        raise UserError(f"`{key}` must be {rule}, but is `{text}`.{hint}")
    return text


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
        run.record_end(_measure_progress(config, run))
    return 0


def join_training(config: Config, command: list[str]) -> None:
    """Replace this process by fairseq, to train together with the first process.

    Returns only if there is nothing to train. No process writes checkpoints before all
    processes have met, so that all of them see the same checkpoints here.
    """
    if not _has_all_updates(config, RunFolder(Path(config["run"]))):
        os.execv(command[0], command)


def _has_all_updates(config: Config, run: RunFolder) -> bool:
    """Return whether the last checkpoint has ``max_update`` updates or more.

    That is so after a kill in the last second; fairseq would then do one more update.
    """
    max_update = int(config.get("max_update", 0))
    if not (max_update and run.last_checkpoint.is_file()):
        return False
    if _read_last_checkpoint(run)[0] < max_update:
        return False
    logger.info("`%s` already has its %d updates.", run.path, max_update)
    return True


def _measure_progress(config: Config, run: RunFolder) -> dict[str, float | None]:
    """Return the updates of the run, and its seconds over all of its starts."""
    if not run.last_checkpoint.is_file():  # with --no-save or --no-last-checkpoints
        return {"updates": None, "seconds": None}
    updates, seconds = _read_last_checkpoint(run)
    if "start_from" in config:  # fairseq continues to count from there
        start = Path(config["start_from"])
        if not start.is_file():
            return {"updates": updates, "seconds": None}
        seconds -= _training_seconds(read_checkpoint(start))
    return {"updates": updates, "seconds": round(seconds, 1)}


def _read_last_checkpoint(run: RunFolder) -> tuple[int, float]:
    """Return the number of updates and the seconds of training."""
    try:
        state = read_checkpoint(run.last_checkpoint)
    except UserError as error:
        raise UserError(
            f"{error} Put another checkpoint of the same folder in its place, or "
            "remove it to start over."
        ) from None
    return state["optimizer_history"][-1]["num_updates"], _training_seconds(state)


def _training_seconds(state: dict[str, Any]) -> float:
    # Several processes store their mean, as a tensor.
    return float(state["extra_state"]["previous_training_time"])
