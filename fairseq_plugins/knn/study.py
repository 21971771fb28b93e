"""How sure an accuracy, and a difference of two accuracies on the same images, is.

All methods, seeds and splits, each done once; accuracies with intervals.

The summary of a study as a table, for a terminal and for a page.

One picture of a study: accuracies with intervals, and features in two dimensions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

import numpy
import torch
from torch import Tensor

from fairseq_plugins.evaluation.table import format_table
from fairseq_plugins.knn.data import NUM_CLASSES, Images, Split
from fairseq_plugins.knn.training import METHODS, Settings, embed, train
from fairseq_plugins.operators import knn_predict
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, write_atomically, write_json

__all__ = [
    "Cell",
    "Interval",
    "Study",
    "accuracy_interval",
    "draw",
    "hold_out",
    "markdown",
    "paired_difference",
    "plain",
    "require",
]

logger = logging.getLogger(__name__)

Z = 1.959964  # 95 % of a normal distribution
RESAMPLES = 10_000
SEED = 12345


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


def accuracy_interval(correct: numpy.ndarray) -> Interval:
    """Return the mean accuracy over seeds with Wilson's score interval.

    All seeds classify the same images, so their answers count as one per image, which
    makes the interval rather too wide than too narrow.

    Args:
        correct: 0 or 1, shape (seeds, images).
    """
    n, share = correct.shape[1], float(correct.mean())
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    spread = share * (1 - share) / n + Z * Z / (4 * n * n)
    half = Z * math.sqrt(spread) / (1 + Z * Z / n)
    return Interval(share, centre - half, centre + half)


def paired_difference(system: numpy.ndarray, other: numpy.ndarray) -> Interval:
    """Return the difference of mean accuracies with a bootstrap interval over images.

    An image is drawn with the answers of all seeds of both (10,000 resamples, the
    percentiles 2.5 and 97.5), so that what is hard for both does not count as noise.

    Args:
        system, other: 0 or 1, shapes (seeds, images) with the same images.

    Raises:
        ValueError: the numbers of images differ.
    """
    if system.shape[1] != other.shape[1]:
        raise ValueError(
            f"both must have answers to the same images, but have {system.shape[1]} "
            f"and {other.shape[1]}."
        )
    differences = system.mean(0) - other.mean(0)
    # There are few different values: draw how often each comes instead of images.
    values, counts = numpy.unique(differences, return_counts=True)
    n = len(differences)
    drawn = numpy.random.default_rng(SEED).multinomial(n, counts / n, RESAMPLES)
    low, high = numpy.percentile(drawn @ values / n, [2.5, 97.5])
    return Interval(float(differences.mean()), float(low), float(high))


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


HEADINGS = (
    "method",
    "accuracy, %",
    "95 % interval",
    "each seed",
    "minus kNN on ce",
    "95 % interval",
    "minus pixels",
    "95 % interval",
)


def plain(summary: dict[str, Any]) -> str:
    """Return aligned lines."""
    return format_table(HEADINGS, _rows(summary))


def markdown(summary: dict[str, Any]) -> str:
    """Return a Markdown table."""
    lines = [list(HEADINGS), ["---"] * len(HEADINGS), *_rows(summary)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(summary: dict[str, Any]) -> list[list[str]]:
    return [
        [
            row["title"],
            *_estimate(row["accuracy"]),
            " ".join(f"{100 * each:.2f}" for each in row["by_seed"]),
            *_estimate(row.get("difference_from_ce"), sign="+"),
            *_estimate(row.get("difference_from_raw"), sign="+"),
        ]
        for row in summary["results"]
    ]


def _estimate(estimate: dict[str, float] | None, *, sign: str = "") -> tuple[str, str]:
    if estimate is None:
        return "-", "-"
    value, low, high = (
        format(100 * estimate[name], f"{sign}.2f") for name in ("value", "low", "high")
    )
    return value, f"{low} to {high}"


VIEWED_METHODS = ("raw", "ce", "soft")


def require() -> None:
    """Raise ``UserError`` unless what the picture needs is installed."""
    try:
        import matplotlib
        import sklearn.manifold  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the picture needs {error.name}, which is not installed: "
            f"pip install {error.name} (or the extra `knn`)."
        ) from None
    matplotlib.use("Agg")


def draw(study: Study, summary: dict[str, Any], path: Path) -> None:
    """Draw the accuracies and t-SNE views of test images (van der Maaten, 2008)."""
    require()
    from matplotlib import pyplot
    from sklearn.manifold import TSNE

    views = study.views([name for name in VIEWED_METHODS if name in study.methods])
    labels = study.viewed_labels()
    columns = 1 + len(views)
    figure, axes = pyplot.subplots(
        1, columns, figsize=(4.2 * columns, 4), squeeze=False, layout="constrained"
    )
    _draw_accuracies(axes[0][0], summary)
    for panel, (method, features) in zip(axes[0][1:], views.items()):
        perplexity = min(30, (len(features) - 1) / 3)
        points = TSNE(perplexity=perplexity, random_state=1).fit_transform(features)
        panel.scatter(*points.T, c=labels, cmap="tab10", s=6)
        panel.set_title(f"test images: {METHODS[method]}", fontsize=9)
        panel.set_xticks([])
        panel.set_yticks([])
    with write_atomically(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=110)
    pyplot.close(figure)


def _draw_accuracies(panel: Any, summary: dict[str, Any]) -> None:
    for place, row in enumerate(reversed(summary["results"])):
        accuracy = row["accuracy"]
        low, value, high = (100 * accuracy[name] for name in ("low", "value", "high"))
        colour = "tab:red" if row["method"] == "soft" else "tab:blue"
        panel.errorbar(
            value, place, xerr=[[value - low], [high - value]],
            fmt="o", capsize=3, color=colour,
        )  # fmt: skip
        panel.plot(
            [100 * each for each in row["by_seed"]], [place] * len(row["by_seed"]),
            "|", color="grey",
        )  # fmt: skip
    panel.set_yticks(range(len(summary["results"])))
    panel.set_yticklabels(
        [row["title"] for row in reversed(summary["results"])], fontsize=8
    )
    panel.set_xlabel("accuracy in %, 95 % interval; | one seed")
    panel.grid(alpha=0.3)
