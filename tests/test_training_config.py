"""One YAML file and overrides become one checked configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fairseq_plugins.training.config import (
    digest_data,
    find_binarized_folder,
    format_config,
    pin_inputs,
    read_config,
    read_layers,
)
from fairseq_plugins.utils.errors import UserError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Looks like what fairseq-preprocess writes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("dict.xx.txt", "train.xx-yy.xx.bin", "test.xx-yy.xx.bin"):
        (folder / name).write_text("word 1\n")
    return folder


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_dashes_and_underscores_are_one_and_overrides_win(tmp_path: Path) -> None:
    path = write(tmp_path, "data: d\nrun: r\nmax-tokens: 10\nlr: 0.1\nclip-norm: 1\n")
    overrides = ["--max_tokens=20", "clip_norm=null", "betas=(0.9, 0.98)"]
    config = read_config(path, overrides)
    assert config["max_tokens"] == 20
    assert config["lr"] == 0.1
    assert config["betas"] == "(0.9, 0.98)"
    assert "clip_norm" not in config


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = read_config(write(tmp_path, "data: d\nrun: r\nstart_from: a/b.pt\n"))
    assert config["data"] == str(tmp_path / "d")
    assert config["run"] == str(tmp_path / "r")
    assert config["start_from"] == str(tmp_path / "a" / "b.pt")


def test_a_path_given_as_an_override_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "data: d\nrun: r\nstart_from: s\n")
    config = read_config(path, ["run=007", "data=1_000", "start_from=null"])
    assert config["run"] == str(tmp_path / "007")
    assert config["data"] == str(tmp_path / "1_000")
    assert "start_from" not in config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 0.1\ndata: a: b\nrun: r\n", "line 2, column 8"),
        ("- lr\n- data\n", "must hold lines of `key: value`"),
        ("", "must hold lines of `key: value`"),
        ("max_tokens: 1\ndata: d\nmax-tokens: 2\n", "twice, on lines 1 and 3"),
        ("run: r\n", "must give `data`"),
        ("data: d\n", "must give `run`"),
    ],
)
def test_a_broken_file_is_named_with_the_place(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_config(write(tmp_path, text))
    assert "config.yaml" in str(error.value)


def test_a_missing_file_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    path = write(tmp_path, "data: d\n")
    with pytest.raises(UserError, match=f"Did you mean `{path}`"):
        read_config(tmp_path / "confg.yaml")


def test_bases_come_first_and_later_values_win(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "common.yaml").write_text("lr: 1\nseed: 1\nclip_norm: 1\n")
    (tmp_path / "parts" / "one.yaml").write_text("base: common.yaml\nlr: 2\ndata: d\n")
    (tmp_path / "parts" / "two.yaml").write_text("max-tokens: 5\nlr: 3\n")
    text = "base: [parts/one.yaml, parts/two.yaml]\nrun: r\nclip-norm: null\n"
    path = write(tmp_path, text)
    config = read_config(path, ["max_tokens=6"])
    assert "base" not in config and "clip_norm" not in config
    assert (config["lr"], config["seed"], config["max_tokens"]) == (3, 1, 6)
    shown = format_config(config, read_layers(path, ["max_tokens=6"]))
    origins = dict(re.findall(r"^(\w+): .*  # (.*)$", shown, re.M))
    assert origins["lr"] == str(tmp_path / "parts" / "two.yaml")
    assert origins["seed"] == str(tmp_path / "parts" / "common.yaml")
    assert origins["run"] == str(path)
    assert origins["max_tokens"] == "command line"


def test_a_cycle_of_bases_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("base: config.yaml\n")
    path = write(tmp_path, "base: other.yaml\n")
    with pytest.raises(UserError, match="config.yaml` -> `.*other.yaml` -> `.*config"):
        read_config(path)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("othr.yaml", "othr.yaml`, which `.*config.yaml` names as `base`, does not"),
        ("othr.yaml", "Did you mean `.*other.yaml`"),
        ("7", "`base` of `.*config.yaml` must name files, but has `7`"),
        ("[other.yaml, [a]]", "must name files, but has `.'a'.`"),
    ],
)
def test_a_wrong_base_is_named(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "other.yaml").write_text("lr: 1\n")
    with pytest.raises(UserError, match=message):
        read_config(write(tmp_path, f"base: {base}\ndata: d\nrun: r\n"))


def test_a_base_on_the_command_line_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "data: d\nrun: r\n")
    with pytest.raises(UserError, match="`base` must be given in a file"):
        read_config(path, ["base=other.yaml"])


@pytest.mark.parametrize("override", ["lr", "=1", "lr=[1"])
def test_a_broken_override_is_named(tmp_path: Path, override: str) -> None:
    path = write(tmp_path, "data: d\nrun: r\n")
    with pytest.raises(UserError) as error:
        read_config(path, [override])
    assert f"`{override}`" in str(error.value)


def test_data_that_is_missing_or_unfinished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_binarized_folder(tmp_path / "nothing")
    (tmp_path / "half" / "bin").mkdir(parents=True)
    (tmp_path / "half" / "bin" / "dict.xx.txt").touch()
    with pytest.raises(UserError, match="holds neither"):
        find_binarized_folder(tmp_path / "half")


def test_data_whose_path_fairseq_would_split_is_refused(data: Path) -> None:
    renamed = data.rename(data.with_name("a:b"))
    with pytest.raises(UserError, match="must not contain `:`, because fairseq"):
        digest_data(renamed, ("train",))


def test_the_digest_sees_training_data_and_not_another_test_set(data: Path) -> None:
    before = digest_data(data, ("train",))
    (data / "test1.xx-yy.xx.bin").write_text("new")
    assert digest_data(data, ("train",)) == before
    (data / "train.xx-yy.xx.bin").write_text("another text")
    after = digest_data(data, ("train",))
    assert after != before
    (data / "dict.xx.txt").write_text("work 1\n")
    assert digest_data(data, ("train",)) != after


def test_a_start_that_has_changed_is_noticed(tmp_path: Path, data: Path) -> None:
    start = tmp_path / "start.pt"
    start.write_text("one")
    config = {"data": str(data), "run": "r", "start_from": str(start)}
    pinned = pin_inputs(config, recorded=None)
    assert pin_inputs(pinned, recorded=None) == pinned
    start.write_text("two")
    assert pin_inputs(config, recorded=pinned) != pinned
    with pytest.raises(UserError, match="`start_from_sha256` is"):
        pin_inputs(pinned, recorded=None)


def test_a_start_is_needed_only_until_there_are_results(
    tmp_path: Path, data: Path
) -> None:
    start = tmp_path / "start.pt"
    start.write_text("one")
    config = {"data": str(data), "run": "r", "start_from": str(start)}
    pinned = pin_inputs(config, recorded=None)
    start.unlink()
    assert pin_inputs(config, recorded=pinned) == pinned
    with pytest.raises(UserError, match="`start_from` must be a file"):
        pin_inputs(config, recorded=None)
