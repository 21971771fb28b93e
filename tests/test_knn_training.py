"""Settings, batches and resumed trainings of kNN classification."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import ROOT

from fairseq_plugins.knn import training
from fairseq_plugins.knn.data import Images
from fairseq_plugins.knn.training import Settings, change_settings
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.typed_yaml import read_dataclass

CONFIGS = sorted((ROOT / "configs" / "knn").glob("*.yaml"))


def read_settings(name="digits"):
    return read_dataclass(ROOT / "configs" / "knn" / f"{name}.yaml", Settings)


def tiny_settings():
    settings = read_settings()
    return dataclasses.replace(settings, updates=6, queries=8, references=12, k=3)


def separable_images():
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(40) % 10
    pixels = torch.rand(40, 1, 8, 8, generator=generator)
    pixels[torch.arange(40), 0, labels % 8, labels % 5] = 3.0
    return Images(pixels, labels)


@pytest.fixture
def settings():
    return tiny_settings()


@pytest.fixture
def images():
    return separable_images()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_of_a_config_is_the_command_that_runs_it(path):
    assert read_dataclass(path, Settings).data == path.stem
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
        (["updates"], "`updates` must be written as `key=value`"),
        (["unit_length=2"], "`unit_length` must be `true` or `false`, but is `2`"),
        (["lr=fast"], "`lr` must be a number, but is `fast`"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    settings = read_settings()
    with pytest.raises(UserError, match=message):
        change_settings(settings, changes)


def test_changes_may_be_numbers_in_scientific_notation():
    settings = read_settings()
    changed = change_settings(
        settings, ["lr=1e-4", "epsilons.hard=7", "unit_length=true"]
    )
    assert (changed.lr, changed.epsilons.hard, changed.unit_length) == (1e-4, 7, True)


def test_methods_see_the_same_batches_and_references_are_no_queries(images, settings):
    batch = training.draw_batch(images, settings, seed=1, update=4)
    again = training.draw_batch(images, settings, seed=1, update=4)
    other = training.draw_batch(images, settings, seed=1, update=5)
    assert torch.equal(batch.pixels, again.pixels)
    assert not torch.equal(batch.pixels, other.pixels)
    still = dataclasses.replace(settings, shift=0)
    drawn = training.draw_batch(images, still, seed=1, update=4).pixels.flatten(1)
    assert len(drawn.unique(dim=0)) == settings.queries + settings.references


def test_moved_and_mirrored_images_are_pieces_of_the_padded_ones(images, settings):
    moving = dataclasses.replace(settings, shift=2, mirror=True)
    still = dataclasses.replace(settings, shift=0)
    moved = training.draw_batch(images, moving, seed=2, update=0).pixels
    originals = training.draw_batch(images, still, seed=2, update=0).pixels
    mirrored = 0
    for got, original in zip(moved, originals):
        found = set()
        for name, image in (("plain", original), ("mirrored", original.flip(-1))):
            padded = torch.nn.functional.pad(image, [2] * 4)
            for row in range(5):
                for column in range(5):
                    piece = padded[:, row : row + 8, column : column + 8]
                    if torch.equal(got, piece):
                        found.add(name)
        assert len(found) == 1
        mirrored += found == {"mirrored"}
    assert 0 < mirrored < len(moved)


def test_an_interrupted_training_ends_like_an_uninterrupted_one(
    images, settings, tmp_path, monkeypatch
):
    def run(name):
        return training.train(
            "soft", images, settings,
            seed=1, checkpoint=tmp_path / name, title="test",
        ).state_dict()  # fmt: skip

    whole = run("whole.pt")
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    draw = training.draw_batch

    def stop_at_four(*args, update, **kwargs):
        if update == 4:
            raise KeyboardInterrupt
        return draw(*args, update=update, **kwargs)

    monkeypatch.setattr(training, "draw_batch", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        run("stopped.pt")
    monkeypatch.setattr(training, "draw_batch", draw)
    resumed = run("stopped.pt")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
