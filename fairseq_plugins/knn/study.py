"""Train all methods of kNN classification and compare their accuracies."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import numpy
import torch

from fairseq_plugins.knn.data import NUM_CLASSES, Split
from fairseq_plugins.knn.training import METHODS, Settings, embed, train
from fairseq_plugins.operators import knn_predict
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, write_atomically, write_json
from fairseq_plugins.utils.tables import format_table

__all__ = [
    "Interval",
    "Study",
    "accuracy_interval",
    "check_drawing_packages",
    "draw",
    "format_summary",
    "hold_out",
    "paired_difference",
]

logger = logging.getLogger(__name__)

RESAMPLES = 10_000
SEED = 12345
PICTURED_IMAGES = 1000  # test images whose features are kept for the picture
PICTURED_METHODS = ("raw", "ce", "soft")


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


def accuracy_interval(correct: numpy.ndarray) -> Interval:
    """Return the mean accuracy over seeds with Wilson's score interval.

    All seeds classify the same images. Therefore their answers count as one answer per
    image, and the interval is too wide rather than too narrow.

    Args:
        correct: 0 or 1, shape (seeds, images).
    """
    from scipy.stats import binomtest

    n = correct.shape[1]
    count = float(correct.mean(0).sum())
    # scipy takes whole counts only; between two of them the bounds are almost linear.
    counts = [math.floor(count), min(math.floor(count) + 1, n)]
    tests = [binomtest(c, n).proportion_ci(method="wilson") for c in counts]
    low, high = (
        float(numpy.interp(count, counts, [getattr(test, end) for test in tests]))
        for end in ("low", "high")
    )
    return Interval(float(correct.mean()), low, high)


def paired_difference(system: numpy.ndarray, other: numpy.ndarray) -> Interval:
    """Return the difference of mean accuracies with a bootstrap interval over images.

    The bootstrap draws images with the answers of all seeds of both systems (10,000
    resamples, percentiles 2.5 and 97.5), so that images that are hard for both systems
    do not widen the interval.

    Args:
        system, other: 0 or 1, shape (seeds, images), for the same images.

    Raises:
        ValueError: the numbers of images differ.
    """
    if system.shape[1] != other.shape[1]:
        raise ValueError(
            "both systems must classify the same images, but classify "
            f"{system.shape[1]} and {other.shape[1]}."
        )
    differences = system.mean(0) - other.mean(0)
    # There are few different values: draw the number of each instead of images.
    values, counts = numpy.unique(differences, return_counts=True)
    n = len(differences)
    drawn = numpy.random.default_rng(SEED).multinomial(n, counts / n, RESAMPLES)
    low, high = numpy.percentile(drawn @ values / n, [2.5, 97.5])
    return Interval(float(differences.mean()), float(low), float(high))


def hold_out(splits: Sequence[Split]) -> list[Split]:
    """Return splits that test on the last fifth of the training images.

    Settings are chosen on them, without the test images.
    """
    parts = []
    for images, _ in splits:
        end = len(images.labels) * 4 // 5
        parts.append(Split(images.select(slice(end)), images.select(slice(end, None))))
    return parts


class Study:
    """All methods and seeds on all splits; each result is kept in its own file.

    Args:
        settings: of all training runs.
        splits: training and test images.
        methods: of `METHODS`; ``ce_head`` is trained with ``ce``.
        seeds: of the training runs; ``raw`` is not trained and uses the first only.
        folder: for the results, in one folder per method and settings.
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
        digest = hashlib.sha256()
        for split in splits:
            for images in split:
                digest.update(images.pixels.numpy().tobytes())
                digest.update(images.labels.numpy().tobytes())
        self._images_digest = digest.hexdigest()

    def run(self) -> None:
        """Train everything that has no result yet."""
        trained = dict.fromkeys(map(_trained_method, self.methods))
        jobs = [
            (method, seed, split)
            for seed in self.seeds
            for split in range(len(self.splits))
            for method in trained
            if seed in self._seeds_of(method)
        ]
        for number, job in enumerate(jobs, start=1):
            path = self._path(*job)
            if not path.is_file():
                self._run(*job, title=f"{number} of {len(jobs)}: {path.stem}")

    def summary(self) -> dict[str, Any]:
        """Return settings, accuracies, intervals and differences between methods."""
        correct: dict[str, numpy.ndarray] = {}
        rows: list[dict[str, Any]] = []
        for method in self.methods:
            kept = [
                [read_json(path) for path in self._paths_of(method, seed)]
                for seed in self._seeds_of(method)
            ]
            answers = ["".join(p["correct"][method] for p in parts) for parts in kept]
            correct[method] = numpy.array([list(map(int, text)) for text in answers])
            seconds = [part["seconds"] for parts in kept for part in parts]
            rows.append(
                {
                    "method": method,
                    "title": METHODS[method],
                    "accuracy": accuracy_interval(correct[method])._asdict(),
                    "by_seed": [float(each) for each in correct[method].mean(1)],
                    "seconds_per_training": float(numpy.mean(seconds)),
                }
            )
        for row in rows:
            for other in ("raw", "ce", "ce_head"):
                if other in correct and row["method"] not in (other, "raw"):
                    row[f"difference_from_{other}"] = paired_difference(
                        correct[row["method"]], correct[other]
                    )._asdict()
        return {
            "settings": dataclasses.asdict(self.settings),
            "seeds": self.seeds,
            "splits": [[len(s.train.labels), len(s.test.labels)] for s in self.splits],
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": self.device,
            "results": rows,
        }

    def features(self, method: str) -> numpy.ndarray:
        """Return features of the first test images of the first split and seed."""
        path = self._path(method, self.seeds[0], 0).with_suffix(".npy")
        features: numpy.ndarray = numpy.load(path)
        return features

    def _seeds_of(self, method: str) -> list[int]:
        return self.seeds[:1] if method == "raw" else self.seeds

    def _paths_of(self, method: str, seed: int) -> list[Path]:
        trained = _trained_method(method)
        return [self._path(trained, seed, split) for split in range(len(self.splits))]

    def _path(self, method: str, seed: int, split: int) -> Path:
        content = dataclasses.asdict(self.settings)
        # The epsilon of one method does not affect the others.
        content["epsilons"] = content["epsilons"].get(method)
        text = json.dumps([content, self._images_digest], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        folder = self._folder / f"{self.settings.data}-{method}-{digest}"
        return folder / f"{method}_seed{seed}_split{split + 1}.json"

    def _run(self, method: str, seed: int, split: int, *, title: str) -> None:
        train_images, test_images = self.splits[split]
        path = self._path(method, seed, split)
        checkpoint = path.with_suffix(".pt")
        start = time.monotonic()
        logger.info("%s", title)
        answers = {}
        if method == "raw":
            references, queries = (i.pixels.flatten(1) for i in self.splits[split])
        else:
            classifier = train(
                method,
                train_images,
                self.settings,
                seed=seed,
                checkpoint=checkpoint,
                title=title,
                device=self.device,
            )
            references = embed(classifier.network, train_images.pixels)
            queries = embed(classifier.network, test_images.pixels)
            if method == "ce":
                with torch.no_grad():
                    answers["ce_head"] = classifier.head(queries).argmax(1)
        seconds = time.monotonic() - start
        answers[method] = knn_predict(
            queries,
            references,
            train_images.labels.to(references.device),
            k=self.settings.k,
            num_classes=NUM_CLASSES,
        )
        with write_atomically(path.with_suffix(".npy"), "wb") as stream:
            numpy.save(stream, queries[:PICTURED_IMAGES].cpu().numpy())
        correct = {
            name: "".join("01"[int(c)] for c in answer.cpu() == test_images.labels)
            for name, answer in answers.items()
        }
        write_json(path, {"seconds": round(seconds, 1), "correct": correct})
        checkpoint.unlink(missing_ok=True)


def format_summary(summary: dict[str, Any]) -> str:
    """Return the accuracies of a study as a table."""

    def cells(interval: dict[str, float] | None, sign: str = "") -> list[str]:
        if interval is None:
            return ["-", "-"]
        value, low, high = (
            format(100 * interval[key], f"{sign}.2f")
            for key in ("value", "low", "high")
        )
        return [value, f"{low} to {high}"]

    headings = ["method", "accuracy, %", "95 % interval", "each seed"]
    headings += ["minus kNN on ce", "95 % interval", "minus pixels", "95 % interval"]
    rows = [
        [
            row["title"],
            *cells(row["accuracy"]),
            " ".join(f"{100 * each:.2f}" for each in row["by_seed"]),
            *cells(row.get("difference_from_ce"), "+"),
            *cells(row.get("difference_from_raw"), "+"),
        ]
        for row in summary["results"]
    ]
    return format_table(headings, rows)


def check_drawing_packages() -> None:
    """Raise ``UserError`` if a package that `draw` needs is not installed."""
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
    """Draw the accuracies and t-SNE (van der Maaten, 2008) of some test images."""
    check_drawing_packages()
    from matplotlib import pyplot
    from sklearn.manifold import TSNE

    methods = [name for name in PICTURED_METHODS if name in study.methods]
    labels = study.splits[0].test.labels[:PICTURED_IMAGES].numpy()
    columns = 1 + len(methods)
    figure, axes = pyplot.subplots(
        1, columns, figsize=(4.2 * columns, 4), squeeze=False, layout="constrained"
    )
    _draw_accuracies(axes[0][0], summary)
    for panel, method in zip(axes[0][1:], methods):
        features = study.features(method)
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
    rows = summary["results"][::-1]
    for y, row in enumerate(rows):
        low, value, high = (100 * row["accuracy"][k] for k in ("low", "value", "high"))
        color = "tab:red" if row["method"] == "soft" else "tab:blue"
        errors = [[value - low], [high - value]]
        panel.errorbar(value, y, xerr=errors, fmt="o", capsize=3, color=color)
        seeds = [100 * each for each in row["by_seed"]]
        panel.plot(seeds, [y] * len(seeds), "|", color="grey")
    panel.set_yticks(range(len(rows)))
    panel.set_yticklabels([row["title"] for row in rows], fontsize=8)
    panel.set_xlabel("accuracy in %, 95 % interval; | one seed")
    panel.grid(alpha=0.3)


def _trained_method(method: str) -> str:
    return "ce" if method == "ce_head" else method
