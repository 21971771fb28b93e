"""Recipes are data, and a wrong one is refused with the place and the rule."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairseq_plugins.corpus.recipe import load_recipe, recipe_names
from fairseq_plugins.utils.errors import UserError


def make_part(name: str, **more: Any) -> dict[str, Any]:
    sides = {"source": {"file": f"{name}.de"}, "target": {"file": f"{name}.en"}}
    return {"name": name, **sides, **more}


GOOD: dict[str, Any] = {
    "description": "a corpus",
    "source_lang": "de",
    "target_lang": "en",
    "licence": "free",
    "published": "a place",
    "train": [make_part("one"), make_part("two", lines=7)],
    "valid": [make_part("dev")],
    "test": [make_part("old"), make_part("new")],
    "subwords": {
        "vocab_size": 100,
        "model_type": "bpe",
        "character_coverage": 1,
        "max_lines": 1000,
        "seed": 1,
    },
    "cleaning": {"max_words": 50},
}


def write_recipe(folder: Path, content: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.dump(content))
    return path


@pytest.fixture
def load(tmp_path: Path):
    return lambda content: load_recipe(str(write_recipe(tmp_path, content)))[1]


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_valid_and_begins_with_its_command(name):
    path, recipe = load_recipe(name)
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith(f"# python scripts/prepare.py {name}")
    assert f"{recipe.source_lang}-{recipe.target_lang}" in name
    for parts in recipe.subsets().values():
        for part in parts:
            assert part.source.file.endswith(f".{recipe.source_lang}")
            assert part.target.file.endswith(f".{recipe.target_lang}")


def test_test_sets_get_the_names_of_fairseq_in_their_order(load):
    subsets = load(GOOD).subsets()
    assert list(subsets) == ["train", "valid", "test", "test1"]
    assert [part.name for part in subsets["train"]] == ["one", "two"]
    assert subsets["test1"][0].name == "new"


def _changed(path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(GOOD)
    *way, last = path.split(".")
    place: Any = content
    for key in way:
        place = place[int(key) if key.isdigit() else key]
    place[int(last) if last.isdigit() else last] = value
    return content


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("licens", "x", "unknown key `licens` in the file. Did you mean `licence`?"),
        ("subwords.vocab_sise", 9, "unknown key `vocab_sise` in `subwords`. Did you"),
        ("test.1.source.fil", "x", "unknown key `fil` in `test[1].source`. Did you"),
        ("source_lang", False, "`source_lang` must be text, but is `False`. Put"),
        ("source_lang", "en", "`source_lang` and `target_lang` must differ"),
        ("source_lang", "../de", "`../de` must be a language code"),
        ("train", [], "`train` must be a list with at least one entry"),
        ("train", make_part("one"), "`train` must be a list with at least one entry"),
        ("train.1.lines", "7", "`train[1].lines` must be a whole number, but is `7`"),
        ("train.1.lines", True, "`train[1].lines` must be a whole number"),
        ("valid.0", "dev", "`valid[0]` must hold lines of `key: value`"),
        ("valid.0.source.file", "a/b", "in `valid[0].source`, `file` must be the name"),
        ("valid.0.source.sha256", "12", "`sha256` must be 64 lower-case hexadecimal"),
        ("test.1.name", "old", "`test` must not hold two sets named `old`"),
        ("test.1.name", "test", "`name` of a test set must not be `test`"),
        ("subwords.vocab_size", 0, "in `subwords`, `vocab_size` must be positive"),
        ("cleaning.max_ratio", float("nan"), "at least 1, but is nan"),
        ("subwords.model_type", "bpee", "of bpe, unigram, subword-nmt, but is `bpee`"),
        ("subwords.character_coverage", 1.5, "must be above 0 and at most 1"),
        ("cleaning.max_words", 0, "in `cleaning`, `max_words` must be positive"),
    ],
)
def test_a_wrong_recipe_is_refused_with_place_and_rule(load, path, value, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load(_changed(path, value))
    assert "mine.yaml" in str(error.value)


@pytest.mark.parametrize(
    "key", sorted(GOOD.keys() - {"cleaning", "licence", "published"})
)
def test_a_missing_key_is_named(load, key):
    content = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(UserError, match=f"key `{key}` is missing in the file"):
        load(content)


def test_a_key_given_twice_is_refused(load):
    with pytest.raises(UserError, match="gives `licence` twice, on lines 1 and 2"):
        load("licence: a\nlicence: b\n")


@pytest.mark.parametrize("content", ["", "- a", "text", "a: [", "\t"])
def test_a_file_without_a_mapping_is_refused(load, content):
    with pytest.raises(UserError, match="mine.yaml"):
        load(content)


def test_a_side_has_a_translator_or_a_system(load):
    part = make_part("dev")
    part["target"] |= {"translator": "A", "system": "X"}
    with pytest.raises(UserError, match="either `translator` or `system`, not both"):
        load({**copy.deepcopy(GOOD), "valid": [part]})
