"""Translate options to arguments of ``fairseq-train``, list them, and check values."""

from __future__ import annotations

import argparse
import contextlib
import json
import textwrap
from typing import Any, Callable, Iterable, Mapping, NoReturn

import fairseq_plugins
from fairseq_plugins.utils.errors import UserError, did_you_mean

__all__ = ["build_arguments", "list_options", "parse_options"]

_RESERVED = {
    "user_dir": "it is always this project's fairseq_plugins",
    "save_dir": "it is always the folder `checkpoints` of `run`",
    "finetune_from_model": "use `start_from`",
    "restore_file": "use `start_from`, or an earlier `run` to resume it",
}
# fairseq would apply these at every restart, which would begin at update 0.
_RESETS = {
    f"reset_{part}" for part in ("optimizer", "lr_scheduler", "meters", "dataloader")
}
# Longer lists of choices (there are 200 architectures) are not shown in messages.
_MAX_LISTED_CHOICES = 12
_TEXT = "text"


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
    for key in _RESETS & options.keys():
        if options[key] is not False:
            raise UserError(
                f"`{key}` must not be given: it would apply again at every restart "
                "of the run. To continue a model with a new optimizer, use a new `run` "
                "and `start_from: CHECKPOINT`."
            )
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


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Return the values that fairseq derives from arguments, with its defaults."""
    from fairseq import options as fairseq_options

    parser = fairseq_options.get_training_parser()
    parsed: argparse.Namespace = fairseq_options.parse_args_and_arch(parser, arguments)
    return parsed


def list_options(config: Mapping[str, Any]) -> str:
    """Return the options of the architecture and the criterion, with their defaults.

    ``fairseq-train --help`` does not show them.

    Args:
        config: ``arch`` and ``criterion``; transformer and soft_beam_search by default.

    Raises:
        UserError: there is no such class.
    """
    from fairseq.models import ARCH_MODEL_REGISTRY
    from fairseq.registry import REGISTRIES

    chosen = {
        "arch": config.get("arch", "transformer"),
        "criterion": config.get("criterion", "soft_beam_search"),
    }
    words = build_arguments({**chosen, "optimizer": "adam", "max_tokens": 1})
    defaults = vars(parse_options(["data", *words]))
    criterions = REGISTRIES["criterion"]["registry"]
    lines = []
    for title, owner in (
        (f"arch: {chosen['arch']}", ARCH_MODEL_REGISTRY[chosen["arch"]]),
        (f"criterion: {chosen['criterion']}", criterions[chosen["criterion"]]),
    ):
        parser = argparse.ArgumentParser(add_help=False)
        owner.add_args(parser)
        lines.append(f"Options of `{title}`:")
        for name, action in sorted(_actions_by_name(parser).items()):
            if action.help != argparse.SUPPRESS:
                lines.append(f"  {name}: {defaults.get(action.dest, action.default)}")
                lines += textwrap.wrap(
                    action.help or "",
                    84,
                    initial_indent=" " * 6,
                    subsequent_indent=" " * 6,
                )
    return "\n".join(lines)
