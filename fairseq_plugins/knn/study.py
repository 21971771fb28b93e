"""All methods, seeds and splits, each done once; accuracies with intervals."""
from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

import numpy
import torch
from torch import Tensor

from fairseq_plugins.knn.images import NUM_CLASSES, Images, Split
from fairseq_plugins.knn.intervals import accuracy_interval, paired_difference
from fairseq_plugins.knn.networks import embed
from fairseq_plugins.knn.settings import METHODS, Settings
from fairseq_plugins.knn.training import train
from fairseq_plugins.operators import knn_predict
from fairseq_plugins.pipeline.files import read_json, write_atomically, write_json

__all__ = ["Cell", "Study", "hold_out"]

logger = logging.getLogger(__name__)

VIEWED = 1000  # test images whose features are kept for the picture


class Cell(NamedTuple):
    """One training: its method, its seed, and which split of the images."""

    method: str
    seed: int
    split: int

    @property
    def name(self) -> str:
        return f"{self.method}_seed{self.seed}_split{self.split + 1}"


class Study:
    """The cells of a study, each kept in a file of its own under ``folder``.

    Args:
        settings: of all trainings.
        splits: every test image is classified by a model of its own split.
        methods: of `METHODS`; ``ce_head`` comes with ``ce``.
        seeds: one training each.
        folder: where cells are kept, in one folder for each method and all that its
            training depends on.
        device: such as ``cpu``.
    """

    def __init__(
        self,
        settings: Settings,
        splits: Sequence[Split],
        *,
        methods: Sequence[str],
        seeds: Sequence[int],
        folder: Path,
        device: str = "cpu",
    ) -> None:
        self.settings = settings
        self.splits = splits
        self.seeds = list(seeds)
        self.methods = [name for name in METHODS if name in methods]
        self.device = device
        self._folder = folder
        self._digest_of_images = _digest_of(splits)

    def run(self) -> None:
        """Do what has not been done."""
        cells = list(self._cells())
        for number, cell in enumerate(cells, start=1):
            if not self._path(cell).is_file():
                self._do(cell, f"{number} of {len(cells)}: {cell.name}")

    def summary(self) -> dict[str, Any]:
        """Return settings, accuracies, intervals and differences from the others."""
        correct = {method: self._correct(method) for method in self.methods}
        rows = []
        for method, answers in correct.items():
            row: dict[str, Any] = {
                "method": method,
                "title": METHODS[method],
                "accuracy": accuracy_interval(answers)._asdict(),
                "by_seed": [float(each) for each in answers.mean(1)],
                "seconds_per_training": self._seconds(method),
            }
            for other in ("raw", "ce", "ce_head"):
                if other in correct and other != method and method != "raw":
                    difference = paired_difference(answers, correct[other])
                    row[f"difference_from_{other}"] = difference._asdict()
            rows.append(row)
        return {
            "settings": dataclasses.asdict(self.settings),
            "seeds": self.seeds,
            "splits": [[len(s.train.labels), len(s.test.labels)] for s in self.splits],
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": self.device,
            "results": rows,
        }

    def views(self, methods: Sequence[str]) -> dict[str, numpy.ndarray]:
        """Return features of some test images of the first split, by method."""
        first = {m: Cell(m, self._seeds_of(m)[0], 0) for m in methods}
        return {
            method: numpy.load(self._path(cell).with_suffix(".npy"))
            for method, cell in first.items()
            if self._path(cell).with_suffix(".npy").is_file()
        }

    def viewed_labels(self) -> numpy.ndarray:
        """Return the labels that belong to `views`."""
        return self.splits[0].test.labels[:VIEWED].numpy()

    def _cells(self) -> Iterator[Cell]:
        trained = [m for m in self.methods if m != "ce_head"]
        if "ce_head" in self.methods and "ce" not in trained:
            trained.append("ce")
        for seed in self.seeds:
            for split in range(len(self.splits)):
                for method in trained:
                    if seed in self._seeds_of(method):
                        yield Cell(method, seed, split)

    def _seeds_of(self, method: str) -> list[int]:
        return self.seeds[:1] if method == "raw" else self.seeds  # pixels have no seed

    def _path(self, cell: Cell) -> Path:
        content = dataclasses.asdict(self.settings)
        # What smooths one method does not touch the others.
        content["epsilons"] = content["epsilons"].get(cell.method)
        text = json.dumps([content, self._digest_of_images], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        name = f"{self.settings.data}-{cell.method}-{digest}"
        return self._folder / name / f"{cell.name}.json"

    def _do(self, cell: Cell, title: str) -> None:
        train_images, test_images = self.splits[cell.split]
        path = self._path(cell)
        checkpoint = path.with_suffix(".pt")
        start = time.monotonic()
        logger.info("%s", title)
        head: Tensor | None = None
        if cell.method == "raw":
            known, asked = (i.pixels.flatten(1) for i in self.splits[cell.split])
        else:
            classifier = train(
                cell.method,
                train_images,
                self.settings,
                seed=cell.seed,
                checkpoint=checkpoint,
                title=title,
                device=self.device,
            )
            known = embed(classifier.network, train_images.pixels)
            asked = embed(classifier.network, test_images.pixels)
            with torch.no_grad():
                head = classifier.head(asked).argmax(1)
        seconds = time.monotonic() - start
        answers = {cell.method: self._classify(asked, known, train_images)}
        if cell.method == "ce" and head is not None:
            answers["ce_head"] = head
        labels = test_images.labels
        result = {
            "seconds": round(seconds, 1),
            "correct": {
                name: "".join("01"[int(c)] for c in (answer.cpu() == labels))
                for name, answer in answers.items()
            },
        }
        with write_atomically(path.with_suffix(".npy"), "wb") as stream:
            numpy.save(stream, asked[:VIEWED].cpu().numpy())
        write_json(path, result)
        checkpoint.unlink(missing_ok=True)

    def _classify(self, asked: Tensor, known: Tensor, images: Images) -> Tensor:
        labels = images.labels.to(known.device)
        return knn_predict(
            asked, known, labels, k=self.settings.k, num_classes=NUM_CLASSES
        )

    def _correct(self, method: str) -> numpy.ndarray:
        """Return what was right, (seeds, images of all splits)."""
        rows = []
        for seed in self._seeds_of(method):
            cells = [Cell(_trained(method), seed, s) for s in range(len(self.splits))]
            texts = [read_json(self._path(c))["correct"][method] for c in cells]
            rows.append([int(letter) for letter in "".join(texts)])
        return numpy.array(rows)

    def _seconds(self, method: str) -> float:
        cells = [c for c in self._cells() if c.method == _trained(method)]
        return float(numpy.mean([read_json(self._path(c))["seconds"] for c in cells]))


def hold_out(splits: Sequence[Split]) -> list[Split]:
    """Return splits in which the last fifth of the training images is the test.

    For choosing settings: the real test images are not in them.
    """
    parts = []
    for train_images, _ in splits:
        at = len(train_images.labels) * 4 // 5
        parts.append(
            Split(train_images.take(slice(at)), train_images.take(slice(at, None)))
        )
    return parts


def _trained(method: str) -> str:
    return "ce" if method == "ce_head" else method


def _digest_of(splits: Sequence[Split]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        for images in split:
            digest.update(images.pixels.numpy().tobytes())
            digest.update(images.labels.numpy().tobytes())
    return digest.hexdigest()
