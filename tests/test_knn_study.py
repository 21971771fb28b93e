"""The study of kNN classification: intervals, skipped trainings, the command line."""

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
from test_knn_data import idx
from test_knn_training import separable_images, tiny_settings

from fairseq_plugins.knn import training
from fairseq_plugins.knn.data import Split
from fairseq_plugins.knn.study import (
    Study,
    accuracy_interval,
    hold_out,
    paired_difference,
)
from fairseq_plugins.knn.training import METHODS


@pytest.fixture
def settings():
    return tiny_settings()


@pytest.fixture
def images():
    return separable_images()


def test_wilsons_interval_has_its_published_value():
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263, method 3.
    correct = numpy.zeros((1, 263))
    correct[0, :81] = 1
    value, low, high = accuracy_interval(correct)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert value == pytest.approx(81 / 263)


def test_seeds_with_equal_answers_do_not_narrow_the_interval():
    one = numpy.array([[1, 1, 1, 0, 1]])
    assert accuracy_interval(one) == accuracy_interval(one.repeat(3, axis=0))


def test_a_paired_interval_has_its_nominal_coverage():
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


def test_finished_trainings_are_skipped(images, settings, tmp_path, monkeypatch):
    splits = [Split(images, images.select(slice(10)))]
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
    test = images.select(slice(5))
    (part,) = hold_out([Split(images, test)])
    assert len(part.train.labels) == 32 and len(part.test.labels) == 8
    joined = torch.cat([part.train.pixels, part.test.pixels])
    assert torch.equal(joined, images.pixels)


def knn(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "knn.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_the_command_trains_on_idx_files_and_writes_its_results(tmp_path):
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
