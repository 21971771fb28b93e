"""Read YAML files and build dataclasses from them, with exact error messages."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Callable, Hashable, TypeVar

import yaml

from fairseq_plugins.utils.errors import UserError, did_you_mean

__all__ = ["NOT_YAML", "build", "parse_yaml", "read_dataclass", "read_yaml"]

T = TypeVar("T")

# PyYAML's safe loader also raises errors that are not its own: for a date that does
# not exist, for a number of 5,000 digits and for deep nesting.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)

_RULES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "`true` or `false`",
}


def read_yaml(path: Path, *, normalize_key: Callable[[str], str] = str) -> Any:
    """Return the content of a YAML file; refuse keys that are given twice.

    Args:
        normalize_key: two keys of one mapping are the same key if this function
            returns the same text for both. The result keeps the keys as written.

    Raises:
        UserError: the file does not exist, is not UTF-8 or not YAML, or a mapping
            has two equal keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"`{path}` does not exist.") from None
    except IsADirectoryError:
        raise UserError(f"`{path}` must be a file, but is a folder.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"`{path}` must be UTF-8 text, but {error}.") from None
    return parse_yaml(text, str(path), normalize_key=normalize_key)


def parse_yaml(
    text: str, name: str, *, normalize_key: Callable[[str], str] = str
) -> Any:
    """Return the content of a YAML text; ``name`` stands for it in messages.

    Raises:
        UserError: see :func:`read_yaml`.
    """
    try:
        loader = _UniqueKeyLoader(text)  # refuses characters that YAML does not allow
        loader.normalize_key = normalize_key
        return loader.get_single_data()
    except _RepeatedKey as error:
        raise UserError(f"`{name}` gives {error}.") from None
    except NOT_YAML as error:
        raise UserError(f"`{name}` is not valid YAML: {_reason(error)}.") from None


def read_dataclass(path: Path, kind: type[T]) -> T:
    """Build a dataclass from a YAML file.

    Fields may be ``str``, ``int``, ``float``, ``bool``, dataclasses,
    ``tuple[X, ...]`` and ``X | None``. A field without a default must be given. A
    ``UserError`` of the dataclass itself is reported with the file and the place in it.

    Raises:
        UserError: the file is not a YAML mapping; a key is unknown, missing or given
            twice; a value has the wrong type.
    """
    content = read_yaml(path)
    try:
        return build(kind, content)
    except UserError as error:
        raise UserError(f"`{path}`: {error}") from None


def build(kind: type[T], content: Any) -> T:
    """Build a dataclass from a parsed mapping, by the rules of `read_dataclass`."""
    return typing.cast(T, _build(kind, content, ""))


class _RepeatedKey(Exception):
    pass


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML silently keeps the last of two equal keys; this loader refuses them."""

    normalize_key: Callable[[str], str] = str

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = self.normalize_key(str(key.value)), key.start_mark.line + 1
            if name in lines:
                both = f"lines {lines[name]} and {line}"
                raise _RepeatedKey(f"`{name}` twice, on {both}")
            lines[name] = line
        return super().construct_mapping(node, deep)


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return "too deeply nested" if isinstance(error, RecursionError) else str(error)


def _build(kind: Any, value: Any, path: str) -> Any:
    """Turn a parsed value into ``kind``; ``path`` leads to it, as ``test[0].lines``."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return None if value is None else _build(arguments[0], value, path)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list) or not value:
            raise UserError(f"{_place(path)} must be a list with at least one entry.")
        return tuple(
            _build(arguments[0], item, f"{path}[{index}]")
            for index, item in enumerate(value)
        )
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, path)
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or isinstance(value, bool) != (kind is bool):
        hint = " Put it in quotes." if kind is str and value is not None else ""
        raise UserError(
            f"{_place(path)} must be {_RULES[kind]}, but is `{value}`.{hint}"
        )
    return value


def _build_dataclass(kind: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{_place(path)} must hold lines of `key: value`.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            hint = did_you_mean(str(key), fields)
            raise UserError(f"unknown key `{key}` in {_place(path)}.{hint}")
    for name, field in fields.items():
        defaults = (field.default, field.default_factory)
        if name not in value and defaults == (dataclasses.MISSING,) * 2:
            raise UserError(f"key `{name}` is missing in {_place(path)}.")
    hints = typing.get_type_hints(kind)
    prefix = f"{path}." if path else ""
    values = {
        key: _build(hints[key], item, prefix + key) for key, item in value.items()
    }
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"in {_place(path)}, {error}") from None


def _place(path: str) -> str:
    return f"`{path}`" if path else "the file"
