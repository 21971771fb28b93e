"""Arguments and inputs that scripts/prepare.py refuses, and its messages."""

from __future__ import annotations

import lzma
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_corpus_prepare import call, outputs, write_corpus


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def refused(message: str, *args: object) -> None:
    result = call(*args)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_recipe_name_gets_a_hint_and_the_list():
    refused("Did you mean `multi30k-de-en`? Recipes: builtin-en-fr,", "multi30k-dee-n")


def test_a_wrong_recipe_is_refused_with_the_key(recipe, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(recipe.read_text().replace("vocab_size", "vocab_sise"))
    refused("unknown key `vocab_sise` in `subwords`. Did you mean `vocab_size`?", wrong)


def test_missing_files_of_a_recipe_are_named_with_their_origin():
    result = call("multi30k-en-fr")
    assert result.returncode == 2
    for part in ("--source DIR", "multi30k/dataset", "data/task1/raw", "val.fr", ".xz"):
        assert part in result.stderr


def test_a_wrong_source_folder_is_refused(recipe, tmp_path):
    refused("does not exist", recipe, "--source", tmp_path / "nowhere")
    refused("is not a folder", recipe, "--source", recipe)
    refused(f"`{tmp_path}` lacks train.de, train.en,", recipe, "--source", tmp_path)


@pytest.fixture
def text(recipe: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recipe.parent / "text", tmp_path / "text"))


def test_a_missing_file_is_named(recipe, text):
    (text / "new.en").unlink()
    refused(f"`{text}` lacks new.en.", recipe, "--source", text)


def _empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def _shorten(path: Path) -> Path:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return path


def _cut_archive(path: Path) -> Path:
    archive = path.with_name(path.name + ".xz")
    archive.write_bytes(lzma.compress(path.read_bytes())[:-40])
    path.unlink()
    return archive


def _latin1(path: Path) -> Path:
    path.write_bytes(path.read_text().encode("latin-1"))
    return path


@pytest.mark.parametrize(
    "damage, message",
    [
        (_empty, "` is empty."),
        (_shorten, "must have equally many lines, but have 399 and 400."),
        (_cut_archive, "` is a damaged archive, after line"),
        (_latin1, "` must be UTF-8 text, but line "),
    ],
)
def test_a_damaged_source_is_refused_by_name_and_leaves_no_text(
    recipe, text, tmp_path, damage, message
):
    damaged = damage(text / "train.de")
    out = tmp_path / "out"
    result = call(recipe, "--source", text, "--out", out)
    assert result.returncode == 2
    assert f"error: `{damaged}" in result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert outputs(out) == {}


def test_dropped_training_pairs_are_counted_in_the_log(recipe, text, tmp_path):
    lines = (text / "train.en").read_text().splitlines()
    lines[3], lines[7] = " ", "word " * 51
    (text / "train.en").write_text("\n".join(lines) + "\n")
    arguments = (recipe, "--source", text, "--out", tmp_path / "out", "--stage")
    assert call(*arguments, "extract").returncode == 0
    result = call(*arguments, "clean")
    assert "400 read, 1 dropped empty, 1 dropped too long, 398 pairs" in result.stderr


def test_an_out_folder_that_cannot_be_used_is_refused_and_not_changed(recipe, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    refused("`--out` must be a folder, not a file", recipe, "--out", file)
    refused("`--out` must be a folder that can be", recipe, "--out", file / "below")
    refused("holds other files", recipe, "--out", tmp_path)
    refused("`--out` must not contain `,`", recipe, "--out", tmp_path / "a,b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _reversed(content: dict[str, Any]) -> None:
    content["source_lang"], content["target_lang"] = "en", "de"
    for part in (*content["train"], *content["valid"], *content["test"]):
        part["source"], part["target"] = part["target"], part["source"]


def _of_other_text(content: dict[str, Any]) -> None:
    for path in Path(content["folder"]).glob("*.*"):
        path.write_text("Another line.\n" + path.read_text())


@pytest.mark.parametrize(
    ("change", "how"),
    [(_reversed, "from de to en and not from en to de"),
     (_of_other_text, "made of other source files, none of them this recipe's")],
)  # fmt: skip
def test_another_corpus_of_the_same_recipe_name_is_not_overwritten(
    recipe, tmp_path, change, how
):
    out = tmp_path / "out"
    assert call(recipe, "--out", out).returncode == 0
    content = yaml.safe_load(recipe.read_text())
    text = shutil.copytree(recipe.parent / "text", tmp_path / "text")
    content["folder"] = str(text)
    change(content)
    other = tmp_path / recipe.name
    other.write_text(yaml.safe_dump(content, sort_keys=False))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = call(other, "--out", out)
    assert result.returncode == 2
    assert f"`{out}` holds another corpus of the name `mine`" in result.stderr
    assert how in result.stderr and "Choose another `--out`" in result.stderr
    for path, content in before.items():
        assert path.read_bytes() == content


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_out_folder_without_permission_is_refused(recipe, tmp_path):
    tmp_path.chmod(0o500)
    refused("`--out` must be a folder that can be", recipe, "--out", tmp_path / "out")


@pytest.mark.parametrize("option", [("--vocab-size", "0"), ("--model-type", "bpee")])
def test_a_wrong_option_is_refused_by_name(recipe, option, tmp_path):
    name = option[0][2:].replace("-", "_")
    refused(f"`{name}` must be", recipe, *option, "--out", tmp_path / "out")
