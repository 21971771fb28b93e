"""The study of kNN classification: settings, intervals, resuming, command line."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import numpy
import pytest
import torch
from conftest import ROOT
from test_knn_images import idx

from fairseq_plugins.knn import training
from fairseq_plugins.knn.data import Images, Split
from fairseq_plugins.knn.study import (
    Study,
    accuracy_interval,
    hold_out,
    paired_difference,
)
from fairseq_plugins.knn.training import METHODS, change, read_settings
from fairseq_plugins.utils.errors import UserError

CONFIGS = sorted((ROOT / "configs" / "knn").glob("*.yaml"))


@pytest.fixture
def settings():
    digits = read_settings(ROOT / "configs" / "knn" / "digits.yaml")
    return dataclasses.replace(digits, updates=6, queries=8, references=12, k=3)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(40) % 10
    pixels = torch.rand(40, 1, 8, 8, generator=generator)
    pixels[torch.arange(40), 0, labels % 8, labels % 5] = 3.0
    return Images(pixels, labels)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_of_a_config_is_the_command_that_runs_it(path):
    assert read_settings(path).data == path.stem
    first = path.read_text().splitlines()[0]
    start = "# .venv/bin/python scripts/knn.py --config configs/knn/"
    assert first.startswith(f"{start}{path.name}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["k=100"], "`k` must be less than `references` .100., but is 100"),
        (["network=vgg"], "`network` must be one of tiny, small, resnet18"),
        (["epsilons.soft=0"], "`soft` must be a positive number, but is 0"),
        (["epsilons.sofd=1"], "unknown key `sofd` in `epsilons`. Did you mean `soft`"),
        (["updates"], "a change must be `key=value`, but is `updates`"),
        (["unit_length=2"], "`unit_length` must be `true` or `false`, but is `2`"),
        (["lr=fast"], "`lr` must be a number, but is `fast`"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    settings = read_settings(ROOT / "configs" / "knn" / "digits.yaml")
    with pytest.raises(UserError, match=message):
        change(settings, changes)


def test_changes_take_numbers_as_people_write_them():
    settings = read_settings(ROOT / "configs" / "knn" / "digits.yaml")
    changed = change(settings, ["lr=1e-4", "epsilons.hard=7", "unit_length=true"])
    assert (changed.lr, changed.epsilons.hard, changed.unit_length) == (1e-4, 7, True)


def test_wilsons_interval_has_its_published_value():
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263, method 3.
    correct = numpy.zeros((1, 263))
    correct[0, :81] = 1
    value, low, high = accuracy_interval(correct)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert value == pytest.approx(81 / 263)


def test_seeds_that_answer_alike_do_not_make_an_accuracy_surer():
    one = numpy.array([[1, 1, 1, 0, 1]])
    assert accuracy_interval(one) == accuracy_interval(one.repeat(3, axis=0))


def test_a_paired_interval_covers_as_often_as_it_says():
    rng = numpy.random.default_rng(8)
    covered = 0
    for _ in range(200):
        hard = rng.random(400) < 0.2  # hard for both systems
        one, other = (
            ~(hard & (rng.random(400) < 0.8)) & (rng.random(400) < share)
            for share in (0.97, 0.93)
        )
        truth = (0.97 - 0.93) * (1 - 0.2 * 0.8)
        estimate = paired_difference(one[None].astype(int), other[None].astype(int))
        covered += estimate.low <= truth <= estimate.high
    assert 180 <= covered <= 199  # 190 expected, standard deviation 3


def test_methods_see_the_same_batches_and_references_are_no_queries(images, settings):
    batch = training.draw(images, settings, seed=1, update=4)
    again = training.draw(images, settings, seed=1, update=4)
    other = training.draw(images, settings, seed=1, update=5)
    assert torch.equal(batch.pixels, again.pixels)
    assert not torch.equal(batch.pixels, other.pixels)
    still = dataclasses.replace(settings, shift=0)
    drawn = training.draw(images, still, seed=1, update=4).pixels.flatten(1)
    assert len(drawn.unique(dim=0)) == settings.queries + settings.references


def test_moved_and_mirrored_images_are_pieces_of_the_padded_ones(images, settings):
    moving = dataclasses.replace(settings, shift=2, mirror=True)
    still = dataclasses.replace(settings, shift=0)
    moved = training.draw(images, moving, seed=2, update=0).pixels
    originals = training.draw(images, still, seed=2, update=0).pixels
    turned = 0
    for got, original in zip(moved, originals):
        found = set()
        for name, image in (("plain", original), ("turned", original.flip(-1))):
            padded = torch.nn.functional.pad(image, [2] * 4)
            for row in range(5):
                for column in range(5):
                    piece = padded[:, row : row + 8, column : column + 8]
                    if torch.equal(got, piece):
                        found.add(name)
        assert len(found) == 1
        turned += found == {"turned"}
    assert 0 < turned < len(moved)


def test_a_stopped_training_ends_like_one_that_was_not(
    images, settings, tmp_path, monkeypatch
):
    def run(name):
        return training.train(
            "soft", images, settings,
            seed=1, checkpoint=tmp_path / name, title="test",
        ).state_dict()  # fmt: skip

    whole = run("whole.pt")
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    draw = training.draw

    def stop_at_four(*args, update, **kwargs):
        if update == 4:
            raise KeyboardInterrupt
        return draw(*args, update=update, **kwargs)

    monkeypatch.setattr(training, "draw", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        run("stopped.pt")
    monkeypatch.setattr(training, "draw", draw)
    resumed = run("stopped.pt")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_what_is_done_is_not_done_again(images, settings, tmp_path, monkeypatch):
    splits = [Split(images, images.take(slice(10)))]
    options = {"methods": ["raw", "soft"], "folder": tmp_path}
    first = Study(settings, splits, seeds=[1], **options)
    first.run()
    trained = []
    real = training.train

    def count(method, *args, seed, **kwargs):
        trained.append((method, seed))
        return real(method, *args, seed=seed, **kwargs)

    monkeypatch.setattr("fairseq_plugins.knn.study.train", count)
    Study(settings, splits, seeds=[1, 2], **options).run()
    assert trained == [("soft", 2)]
    other = dataclasses.replace(settings, lr=0.1)
    Study(other, splits, seeds=[1], **options).run()
    assert trained == [("soft", 2), ("soft", 1)]


def test_held_out_images_come_from_the_training_images_only(images):
    test = images.take(slice(5))
    (part,) = hold_out([Split(images, test)])
    assert len(part.train.labels) == 32 and len(part.test.labels) == 8
    joined = torch.cat([part.train.pixels, part.test.pixels])
    assert torch.equal(joined, images.pixels)


def knn(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "knn.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_the_command_trains_on_idx_files_and_writes_everything(tmp_path):
    rng = numpy.random.default_rng(6)
    labels = numpy.arange(60) % 3
    pixels = rng.integers(0, 60, (60, 8, 8))
    pixels[numpy.arange(60), 2 * labels + 1, :] = 255  # a bar: easy for a network
    for stem, part in (("train", slice(40)), ("t10k", slice(40, 60))):
        images = idx(pixels[part])
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels[part]))
    options = [
        "--mnist", tmp_path, "--seeds", 1, 2, "--runs", tmp_path / "runs",
        "--results", tmp_path / "results", "--",
        "updates=12", "queries=10", "references=20", "k=3", "network=tiny",
    ]  # fmt: skip
    done = knn(*options)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results" / "mnist.json").read_text())
    rows = {row["method"]: row for row in result["results"]}
    assert list(rows) == list(METHODS)
    assert rows["soft"]["accuracy"]["value"] > 0.9
    assert len(rows["soft"]["by_seed"]) == 2 and len(rows["raw"]["by_seed"]) == 1
    assert "difference_from_ce" in rows["soft"]
    assert result["settings"]["updates"] == 12
    row = r"kNN trained by SOFT top-k +\d+\.\d\d +\d+\.\d\d to 100"
    assert re.search(row, done.stdout)
    again = knn(*options)
    assert again.stdout == done.stdout and "updates, loss" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mnist", "nowhere"], "`nowhere/train-images-idx3-ubyte` does not exist"),
        (["--config", "no.yaml"], "`no.yaml` does not exist"),
        (["--device", "toaster"], "`--device toaster` cannot be used"),
    ],
)
def test_the_command_names_what_is_wrong(arguments, message, tmp_path):
    done = knn(*arguments, "--runs", tmp_path, "--results", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
