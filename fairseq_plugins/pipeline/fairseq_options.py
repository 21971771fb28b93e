"""Check options against fairseq's own parser and write them as its arguments."""
from __future__ import annotations

import argparse
import contextlib
import json
from typing import Any, Callable, Iterable, Mapping, NoReturn

from fairseq_plugins.pipeline.errors import UserError, did_you_mean

__all__ = ["training_arguments"]

_RESERVED = {
    "user_dir": "it is always this project's fairseq_plugins",
    "save_dir": "it is always the folder `checkpoints` of `run`",
    "finetune_from_model": "use `start_from`",
    "restore_file": "use `start_from`, or an earlier `run` to go on with it",
}
# Of more choices than this (there are 200 architectures) only the nearest is shown.
_MAX_LISTED_CHOICES = 12


def training_arguments(
    options: Mapping[str, Any], *, also_known: Iterable[str] = ()
) -> list[str]:
    """Return the arguments of ``fairseq-train`` for these options, checked.

    The parser is the one that fairseq builds for the very architecture, criterion,
    optimizer, ... among the options, with this plug-in registered.

    Args:
        options: option names with underscores and their values: text, numbers,
            booleans for flags, lists and mappings (as JSON).
        also_known: keys that are no options but that a misspelt one may have meant.

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
    known = _by_name(parser)
    arguments = []
    for key, value in options.items():
        if key not in known:
            raise UserError(_unknown(key, [*known, *also_known]))
        arguments += _arguments(key, value, known[key])
    parser.parse_args(["data", *arguments])
    return arguments


def _build_parser(options: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Build fairseq-train's parser with what the chosen classes add to it."""
    from fairseq import options as fairseq_options
    from fairseq.registry import REGISTRIES

    import fairseq_plugins

    fairseq_plugins.register()
    parser: argparse.ArgumentParser = fairseq_options.get_training_parser()
    setattr(parser, "error", _refuse)
    general = _by_name(parser)
    choosers = {"arch", "task", *REGISTRIES} & options.keys()
    chosen = []
    for key in sorted(choosers):
        chosen += _arguments(key, options[key], general[key])
    # What this parses lacks most options, also required ones. That is of no matter:
    # it is for its side effect, that the chosen classes add theirs to the parser.
    with contextlib.suppress(UserError):
        fairseq_options.parse_args_and_arch(parser, [*chosen, "data"], parse_known=True)
    return parser


def _refuse(message: str) -> NoReturn:
    raise UserError(f"fairseq-train cannot take these options: {message}.")


def _by_name(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {
        option[2:].replace("-", "_"): action
        for option, action in parser._option_string_actions.items()
        if option.startswith("--") and option != "--help"
    }


def _unknown(key: str, known: list[str]) -> str:
    return (
        f"unknown key `{key}`.{did_you_mean(key, known)} fairseq-train has no such "
        "option with this `arch`, `criterion`, `optimizer` and `lr_scheduler`."
    )


def _arguments(key: str, value: Any, action: argparse.Action) -> list[str]:
    flag = "--" + key.replace("_", "-")
    if flag not in action.option_strings:  # a few of fairseq's have underscores
        flag = "--" + key
    if isinstance(value, bool) or action.nargs == 0:
        return _boolean_arguments(key, value, action, flag)
    if isinstance(value, list) and action.nargs in ("+", "*"):
        return [flag, *(_checked(key, str(item), action) for item in value)]
    if isinstance(value, (list, dict)):
        value = json.dumps(value)
    text = _checked(key, str(value), action)
    # argparse would take a value that begins with a dash for another option.
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _boolean_arguments(
    key: str, value: Any, action: argparse.Action, flag: str
) -> list[str]:
    """A flag is given when it sets what the configuration asks for.

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
    message = f"`{key}` must be {_rule(action)}, but is `{str(value).lower()}`."
    if _rule(action) == _TEXT:
        message += " YAML reads on, off, yes and no so, unless in quotes."
    raise UserError(message)


_TEXT = "text"


def _rule(action: argparse.Action) -> str:
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


def _checked(key: str, text: str, action: argparse.Action) -> str:
    """Return the text if the option accepts it."""
    convert: Callable[[str], Any] = action.type if callable(action.type) else str
    try:
        value = convert(text)
    except (ValueError, TypeError, SyntaxError, argparse.ArgumentTypeError):
        raise UserError(f"`{key}` must be {_rule(action)}, but is `{text}`.") from None
    if action.choices is not None and value not in action.choices:
        hint = did_you_mean(text, map(str, action.choices))
        raise UserError(f"`{key}` must be {_rule(action)}, but is `{text}`.{hint}")
    return text
