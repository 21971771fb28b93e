"""Read a YAML file into dataclasses and say exactly what is wrong with it."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Hashable, TypeVar

import yaml

from fairseq_plugins.utils.errors import UserError, did_you_mean

__all__ = ["NOT_YAML", "build", "read_yaml"]

T = TypeVar("T")

# What PyYAML's safe loader raises: some values (a date that there is not, a number of
# 5,000 digits) and deep nesting give errors that are not its own.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)

_RULES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "`true` or `false`",
}


def read_yaml(path: Path, kind: type[T]) -> T:
    """Build a dataclass from a YAML mapping.

    Fields may be ``str``, ``int``, ``float``, ``bool``, dataclasses,
    ``tuple[X, ...]`` and ``X | None``. A field without a default must be given. What a
    dataclass itself raises as ``UserError`` is reported with the file and the place in
    it.

    Raises:
        UserError: the file is no YAML mapping; a key is unknown, missing or given
            twice; a value has the wrong type.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"`{path}` must be UTF-8 text, but {error}.") from None
    except NOT_YAML as error:
        raise UserError(f"`{path}` is not valid YAML: {error}.") from None
    try:
        return build(kind, content)
    except UserError as error:
        raise UserError(f"`{path}`: {error}") from None


def build(kind: type[T], content: Any) -> T:
    """Build a dataclass from a parsed mapping, by the rules of `read_yaml`."""
    return typing.cast(T, _build(kind, content, ""))


class _UniqueKeyLoader(yaml.SafeLoader):
    """Of two equal keys YAML keeps the last without a word; this refuses them."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key `{name}` is given twice",
                    problem_mark=key.start_mark,
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


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
        if name not in value and field.default is dataclasses.MISSING:
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
