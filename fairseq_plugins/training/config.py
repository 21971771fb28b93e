"""Check options against fairseq's own parser and write them as its arguments.

Read one flat YAML file and ``key=value`` overrides as a training configuration.

These keys are ours and the rest are options of ``fairseq-train``:

* ``data``: what ``scripts/prepare.py`` or ``fairseq-preprocess`` wrote;
* ``run``: the folder that receives the results;
* ``start_from``: optional, the checkpoint whose model the training starts with;
* ``batches_per_update``: optional, instead of ``update_freq``, which is this divided by
  the number of processes: the same training on any number of GPUs.

``data_sha256`` and ``start_from_sha256`` pin the content of two of them, and
``processes`` how many share a batch, if that is more than one. They are filled in when
a run starts and stand in ``RUN/config.yaml``, so that a result is never taken for one
on other data, from another start or with other batches.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NoReturn

import yaml

from fairseq_plugins.corpus.manifest import MANIFEST, PreparedCorpus
from fairseq_plugins.utils.errors import UserError, did_you_mean
from fairseq_plugins.utils.files import sha256_of
from fairseq_plugins.utils.typed_yaml import NOT_YAML

__all__ = [
    "OURS",
    "Config",
    "batches_per_update",
    "binarised_folder",
    "digest_of_data",
    "pin_inputs",
    "read_config",
    "training_arguments",
    "update_freq",
    "whole_numbers",
]

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


Config = dict[str, Any]

OURS = (
    "batches_per_update",
    "data",
    "data_sha256",
    "processes",
    "run",
    "start_from",
    "start_from_sha256",
)
_PATHS = ("data", "run", "start_from")


def read_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Return the configuration with underscores in its keys and absolute paths.

    An override wins over the file, and a key whose value is null is left out.

    Raises:
        UserError: the file is missing, is not YAML, is no mapping or gives a key
            twice; an override is not ``key=value``; ``data`` or ``run`` is missing.
    """
    config = _parse_file(path)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"`{override}` must be written as `key=value`.")
        key = _normal(key)
        # YAML would take a folder `007` for the number 7.
        is_path = key in _PATHS and value not in ("", "null")
        config[key] = value if is_path else _parse_value(override, value)
    config = {key: value for key, value in config.items() if value is not None}
    for key in ("data", "run"):
        if key not in config:
            raise UserError(f"`{path}` must give `{key}`, or add `{key}=...`.")
    for key in _PATHS:
        if key in config:
            config[key] = str(Path(str(config[key])).expanduser().resolve())
    return config


def binarised_folder(data: Path) -> Path:
    """Return the folder that fairseq reads: that of the corpus, or ``data`` itself.

    Raises:
        UserError: there is no data, or its preparation did not come to an end.
    """
    if (data / MANIFEST).is_file():
        return PreparedCorpus.load(data).bin_dir
    if any(data.glob("dict.*.txt")):
        return data
    found = "holds neither" if data.is_dir() else "does not exist"
    raise UserError(
        "`data` must be a folder that scripts/prepare.py finished (with manifest.json) "
        f"or that fairseq-preprocess wrote (with dict.*.txt), but `{data}` {found}."
    )


def digest_of_data(data: Path, subsets: Iterable[str]) -> str:
    """Digest dictionaries and sizes of binaries; gigabytes of them are not read.

    Raises:
        UserError: this is no folder that fairseq can read.
    """
    folder = binarised_folder(data)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("dict.*.txt")):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    for subset in subsets:
        for path in sorted(folder.glob(f"{subset}.*.bin")):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def pin_inputs(
    config: Config, *, recorded: Config | None, processes: int = 1
) -> Config:
    """Return the configuration with the digests of what it reads.

    Args:
        config: as :func:`read_config` returns it.
        recorded: the configuration of the results that the run folder holds already.
            They no longer need the checkpoint that they started from.
        processes: how many share a batch now, whatever the configuration says.

    Raises:
        UserError: data or start are missing or not what the configuration pins.
    """
    pinned = {key: value for key, value in config.items() if key != "processes"}
    if processes > 1:
        pinned["processes"] = processes
    _pin(pinned, "data", digest_of_data(Path(config["data"]), ("train", "valid")))
    if "start_from" in config:
        start = Path(config["start_from"])
        if start.is_file():
            _pin(pinned, "start_from", sha256_of(start))
        elif recorded and recorded.get("start_from") == config["start_from"]:
            _pin(pinned, "start_from", recorded["start_from_sha256"])
        else:
            raise UserError(f"`start_from` must be a file, but `{start}` is none.")
    return pinned


def batches_per_update(config: Config) -> list[int]:
    """Return how many batches of all processes make an update, by epochs.

    Eight processes give the gradient that one gives which accumulates eight.

    Raises:
        UserError: one of these options is no whole number.
    """
    if "batches_per_update" in config:
        return whole_numbers(config, "batches_per_update")
    processes = int(config.get("processes", 1))
    return [processes * each for each in whole_numbers(config, "update_freq", 1)]


def whole_numbers(config: Config, key: str, default: int = 0) -> list[int]:
    """Return the value of an option, or its values if it is a list, also as text.

    Raises:
        UserError: it is anything else.
    """
    value = config.get(key, default)
    try:
        found = ast.literal_eval(value) if isinstance(value, str) else value
        found = found if isinstance(found, (list, tuple)) else [found]
        numbers = [int(each) for each in found]
    except (ValueError, TypeError, SyntaxError, OverflowError):
        numbers = []
    if not numbers:
        raise UserError(f"`{key}` must be a whole number, but is `{value}`.")
    return numbers


def update_freq(batches: object, processes: int) -> int:
    """Return how many batches each process accumulates.

    Raises:
        UserError: ``batches`` is no positive multiple of the processes.
    """
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise UserError(
            f"`batches_per_update` must be a positive whole number, but is `{batches}`."
        )
    if batches % processes:
        raise UserError(
            "`batches_per_update` must be a multiple of the number of processes, but "
            f"is {batches} for {processes}."
        )
    return batches // processes


def _pin(config: Config, key: str, digest: str) -> None:
    expected = config.setdefault(f"{key}_sha256", digest)
    if expected != digest:
        raise UserError(
            f"`{key}_sha256` is {expected}, but `{config[key]}` now holds {digest}."
        )


def _parse_file(path: Path) -> Config:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"`{path}` is no configuration file.{_others(path)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"`{path}` must be UTF-8 text, but {error}.") from None
    try:
        tree = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except NOT_YAML as error:
        raise UserError(f"`{path}` is not valid YAML: {_where(error)}.") from None
    if not (isinstance(tree, yaml.MappingNode) and isinstance(values, dict)):
        raise UserError(f"`{path}` must hold lines of `key: value`.")
    _check_keys(path, tree)
    return {_normal(key): value for key, value in values.items()}


def _check_keys(path: Path, tree: yaml.MappingNode) -> None:
    """YAML keeps the last of two equal keys without a word."""
    lines: dict[str, int] = {}
    for node, _ in tree.value:
        line = node.start_mark.line + 1
        key = _normal(str(node.value))
        if key in lines:
            both = f"lines {lines[key]} and {line}"
            raise UserError(f"`{path}` gives `{key}` twice, on {both}.")
        lines[key] = line


def _parse_value(override: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except NOT_YAML as error:
        raise UserError(f"`{override}` is not valid YAML: {_where(error)}.") from None


def _normal(key: object) -> str:
    return str(key).strip().lstrip("-").replace("-", "_")


def _where(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return "too deeply nested" if isinstance(error, RecursionError) else str(error)


def _others(path: Path) -> str:
    names = [other.name for other in path.parent.glob("*.y*ml")]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    return f" Did you mean `{path.with_name(near[0])}`?" if near else ""
