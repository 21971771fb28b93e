"""Reading YAML: repeated keys, broken files and their messages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.typed_yaml import parse_yaml, read_dataclass, read_yaml


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    name: str
    inner: tuple[Inner, ...]
    rate: float | None = None


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: 2\na: 3\n", "gives `a` twice, on lines 1 and 3"),
        ("x:\n  - {b: 1}\n  - b: 1\n    b: 2\n", "gives `b` twice, on lines 3 and 4"),
        ("a: [1\n", "is not valid YAML: line 2, column 1"),
        ("a: 2001-99-99\n", "is not valid YAML: "),
        ("[" * 2000, "is not valid YAML: too deeply nested"),
        ("a: !!python/name:os.system\n", "could not determine a constructor"),
    ],
)
def test_a_broken_text_is_refused_with_its_name_and_line(text, message):
    with pytest.raises(UserError) as error:
        parse_yaml(text, "x.yaml")
    assert str(error.value).startswith("`x.yaml` ") and message in str(error.value)


def test_keys_may_be_compared_in_another_spelling():
    def underscores(key: str) -> str:
        return key.replace("-", "_")

    assert parse_yaml("a-b: 1\na_b: 2\n", "x") == {"a-b": 1, "a_b": 2}
    with pytest.raises(UserError, match="gives `a_b` twice, on lines 1 and 2"):
        parse_yaml("a-b: 1\na_b: 2\n", "x", normalize_key=underscores)


def test_a_merged_key_may_be_replaced():
    text = "base: &base {a: 1, b: 2}\nx:\n  <<: *base\n  a: 3\n"
    assert parse_yaml(text, "x")["x"] == {"a": 3, "b": 2}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="none.yaml` does not exist"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="must be a file, but is a folder"):
        read_yaml(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"a: \xff")
    with pytest.raises(UserError, match="x.yaml` must be UTF-8 text"):
        read_yaml(tmp_path / "x.yaml")


def test_a_dataclass_is_built_from_a_file(tmp_path: Path):
    path = tmp_path / "x.yaml"
    path.write_text("name: n\nrate: 1\ninner: [{size: 2}, {size: 3}]\n")
    assert read_dataclass(path, Outer) == Outer("n", (Inner(2), Inner(3)), 1)
    path.write_text("name: n\ninner: [{size: 2}, {siz: 3}]\n")
    with pytest.raises(UserError, match=r"x.yaml`: unknown key `siz` in `inner\[1\]`"):
        read_dataclass(path, Outer)
