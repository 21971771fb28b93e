"""Networks from images to features.

What a study of kNN classification is made of, as its YAML file says it.

Train a feature network by cross entropy or by soft kNN, and go on after a stop.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, pad

from fairseq_plugins.knn.data import NUM_CLASSES, Images
from fairseq_plugins.operators import soft_knn_loss
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import write_atomically
from fairseq_plugins.utils.typed_yaml import build, read_dataclass

__all__ = [
    "METHODS",
    "NETWORKS",
    "Classifier",
    "Epsilons",
    "FeatureNetwork",
    "Settings",
    "change",
    "embed",
    "read_settings",
    "train",
]

logger = logging.getLogger(__name__)

WIDTHS = (64, 128, 256, 512)
BLOCK = 500  # images at once without gradients


class FeatureNetwork(nn.Module):
    """Standardise the pixels, then a body, then features.

    Args:
        name: of `NETWORKS`.
        images: to train on; their mean and spread are kept.
        features: size of the output.
        unit_length: divide the output by its length.
    """

    def __init__(
        self, name: str, images: Images, *, features: int, unit_length: bool
    ) -> None:
        super().__init__()
        pixels = images.pixels
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", pixels.mean((0, 2, 3), keepdim=True))
        self.register_buffer("spread", pixels.std((0, 2, 3), keepdim=True) + 1e-6)
        self.body = NETWORKS[name](pixels.size(1))
        size = _output_size(self.body, pixels[:1])
        self.last = nn.Linear(size, features)
        self._unit_length = unit_length

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (n, features) of (n, channels, height, width)."""
        hidden = self.body((pixels - self.mean) / self.spread).flatten(1)
        features: Tensor = self.last(hidden)
        return normalize(features, dim=1) if self._unit_length else features


@torch.no_grad()
def embed(network: nn.Module, pixels: Tensor) -> Tensor:
    """Return the features of all images, in evaluation mode, block by block."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    parts = [network(some.to(device)) for some in pixels.split(BLOCK)]
    network.train(was_training)
    return torch.cat(parts)


@torch.no_grad()
def _output_size(body: nn.Module, pixels: Tensor) -> int:
    body.eval()
    size = body(pixels).numel()
    body.train()
    return int(size)


def _tiny(channels: int) -> nn.Module:
    """Two convolutions; for images of 8 x 8."""
    return nn.Sequential(
        *_convolution(channels, 16), nn.MaxPool2d(2), *_convolution(16, 32)
    )


def _small(channels: int) -> nn.Module:
    """Three convolutions; for images of 28 x 28."""
    return nn.Sequential(
        *_convolution(channels, 32),
        *_convolution(32, 64),
        nn.MaxPool2d(2),
        *_convolution(64, 64),
        nn.MaxPool2d(2),
    )


def _resnet18(channels: int) -> nn.Module:
    """ResNet-18 (He et al., 2016) with the first layers of its form for 32 x 32."""
    blocks: list[nn.Module] = []
    width = WIDTHS[0]
    for index, next_width in enumerate(WIDTHS):
        blocks.append(_Residual(width, next_width, stride=1 if index == 0 else 2))
        blocks.append(_Residual(next_width, next_width, stride=1))
        width = next_width
    return nn.Sequential(
        *_convolution(channels, WIDTHS[0]), *blocks, nn.AdaptiveAvgPool2d(1)
    )


class _Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width: int, next_width: int, *, stride: int) -> None:
        super().__init__()
        first = _convolution(width, next_width, stride=stride)
        self.through = nn.Sequential(*first, *_convolution(next_width, next_width)[:2])
        self.around: nn.Module = nn.Identity()
        if stride != 1 or width != next_width:
            self.around = nn.Sequential(
                nn.Conv2d(width, next_width, 1, stride=stride, bias=False),
                nn.BatchNorm2d(next_width),
            )

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.through(inputs) + self.around(inputs))


def _convolution(width: int, next_width: int, *, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(width, next_width, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(next_width),
        nn.ReLU(),
    ]


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "tiny": _tiny,
    "small": _small,
    "resnet18": _resnet18,
}


DATA = ("digits", "mnist", "cifar10")
METHODS = {
    "raw": "kNN on pixels",
    "ce": "kNN on features of cross entropy",
    "ce_head": "cross entropy's own classifier",
    "hard": "kNN trained by hard top-k",
    "softmax": "kNN trained by softmax of all (NCA)",
    "neuralsort": "kNN trained by NeuralSort",
    "soft": "kNN trained by SOFT top-k",
}


@dataclass(frozen=True)
class Epsilons:
    """Smoothing for each selection, in units of squared distance."""

    soft: float
    neuralsort: float
    softmax: float
    hard: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"`{name}` must be a positive number, but is {value}.")


@dataclass(frozen=True)
class Settings:
    """One network and one length of training for all methods.

    Attributes:
        data: ``digits``, ``mnist`` or ``cifar10``.
        network: ``tiny``, ``small`` or ``resnet18``.
        features: size of what kNN compares.
        unit_length: divide features by their length.
        k: neighbours, in training and in prediction.
        queries: per update, each classified by the references.
        references: per update. Cross entropy gets queries and references as one batch.
        updates: of Adam, its learning rate falling to 0 along a cosine.
        lr: first learning rate.
        weight_decay: decoupled.
        shift: move training images by up to so many pixels each way.
        mirror: turn every other training image round, left to right.
    """

    data: str
    network: str
    features: int
    unit_length: bool
    k: int
    epsilons: Epsilons
    queries: int
    references: int
    updates: int
    lr: float
    weight_decay: float = 0.0
    shift: int = 0
    mirror: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("data", DATA), ("network", tuple(NETWORKS))):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"`{name}` must be one of {', '.join(choices)}, but is "
                    f"`{getattr(self, name)}`."
                )
        for name in ("features", "k", "queries", "references", "updates"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"`{name}` must be 1 or more, but is {getattr(self, name)}."
                )
        if self.shift < 0:
            raise UserError(f"`shift` must be 0 or more, but is {self.shift}.")
        if not self.k < self.references:
            raise UserError(
                f"`k` must be less than `references` ({self.references}), "
                f"but is {self.k}."
            )


def read_settings(path: Path) -> Settings:
    """Read a file of `configs/knn`.

    Raises:
        UserError: there is no such file, or a key is unknown, missing or wrong.
    """
    if not path.is_file():
        raise UserError(f"`{path}` does not exist.")
    return read_dataclass(path, Settings)


def change(settings: Settings, changes: Sequence[str]) -> Settings:
    """Return the settings after ``key=value`` changes, as ``epsilons.soft=2``.

    Raises:
        UserError: a change has another form, or its key or value is wrong.
    """
    content: dict[str, Any] = dataclasses.asdict(settings)
    for text in changes:
        key, equals, value = text.partition("=")
        outer, dot, inner = key.partition(".")
        if not equals:
            raise UserError(f"a change must be `key=value`, but is `{text}`.")
        try:
            parsed = _number(yaml.safe_load(value))
        except yaml.YAMLError:
            raise UserError(f"`{value}` of `{text}` is not valid YAML.") from None
        if dot and isinstance(content.get(outer), dict):
            content[outer][inner] = parsed
        else:
            content[key] = parsed
    return build(Settings, content)


def _number(value: Any) -> Any:
    """To YAML 1e-3 is a text, as it lacks a point."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


SECONDS_BETWEEN_REPORTS = 5.0
SECONDS_BETWEEN_CHECKPOINTS = 60.0


class Classifier(nn.Module):
    """A feature network, and a linear layer on it that only cross entropy trains."""

    def __init__(self, images: Images, settings: Settings) -> None:
        super().__init__()
        self.network = FeatureNetwork(
            settings.network,
            images,
            features=settings.features,
            unit_length=settings.unit_length,
        )
        self.head = nn.Linear(settings.features, NUM_CLASSES)


def train(
    method: str,
    images: Images,
    settings: Settings,
    *,
    seed: int,
    checkpoint: Path,
    title: str,
    device: str = "cpu",
) -> Classifier:
    """Return a network trained from scratch.

    The batches depend on the seed and the number of the update alone: all methods see
    the same images, and a resumed training the same as one that was never stopped.

    Args:
        method: ``ce`` or a selection of `soft_knn_loss`.
        images: to train on.
        settings: see `Settings`.
        seed: of the initial weights and the batches.
        checkpoint: kept from time to time, and read if it is there.
        title: for progress.
        device: such as ``cpu`` or ``cuda``.

    Raises:
        FloatingPointError: the loss is not a finite number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(images, settings).to(device)
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    kept = _Kept(checkpoint, classifier, optimizer)
    next_report = time.monotonic()
    for update in range(kept.update, settings.updates):
        _set_rate(optimizer, settings, update)
        batch = draw(images, settings, seed=seed, update=update)
        loss = _loss(method, classifier, batch, settings, device)
        if not loss.isfinite():
            raise FloatingPointError(f"{title}: the loss of update {update} is {loss}.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kept.save_now_and_then(update + 1)
        if time.monotonic() >= next_report:
            done = f"{update + 1:,} of {settings.updates:,} updates"
            logger.info("%s: %s, loss %.4f", title, done, loss.item())
            next_report = time.monotonic() + SECONDS_BETWEEN_REPORTS
    return classifier.eval()


def draw(images: Images, settings: Settings, *, seed: int, update: int) -> Images:
    """Return the queries and, after them, the references of an update."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + update)
    size = settings.queries + settings.references
    rows = torch.randperm(len(images.labels), generator=generator)[:size]
    batch = images.take(rows)
    if not (settings.shift or settings.mirror):
        return batch
    return batch._replace(pixels=_augmented(batch.pixels, settings, generator))


def _augmented(
    pixels: Tensor, settings: Settings, generator: torch.Generator
) -> Tensor:
    """Move and mirror each image by chance; zeros come in from outside."""
    count, _, height, width = pixels.shape
    shift = settings.shift
    moves = torch.randint(2 * shift + 1, (2, count, 1), generator=generator)
    rows = moves[0] + torch.arange(height)
    columns = moves[1] + torch.arange(width)
    if settings.mirror:
        is_turned = torch.randint(2, (count, 1), generator=generator).bool()
        columns = torch.where(is_turned, columns.flip(1), columns)
    padded = pad(pixels, [shift] * 4)
    image = torch.arange(count).view(-1, 1, 1)
    # Indices around a slice put the sliced channels last.
    chosen = padded[image, :, rows.unsqueeze(2), columns.unsqueeze(1)]
    return chosen.permute(0, 3, 1, 2)


def _loss(
    method: str, classifier: Classifier, batch: Images, settings: Settings, device: str
) -> Tensor:
    labels = batch.labels.to(device)
    features = classifier.network(batch.pixels.to(device))
    if method == "ce":
        return cross_entropy(classifier.head(features), labels)
    # A small training set may have less than a full batch: then fewer references.
    queries = min(settings.queries, len(labels) // 2)
    return soft_knn_loss(
        features[:queries],
        labels[:queries],
        features[queries:],
        labels[queries:],
        k=settings.k,
        epsilon=getattr(settings.epsilons, method),
        num_classes=NUM_CLASSES,
        selection=method,
    )


def _set_rate(
    optimizer: torch.optim.Optimizer, settings: Settings, update: int
) -> None:
    part = update / settings.updates
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * (1 + math.cos(math.pi * part)) / 2


class _Kept:
    """The state of a training on disk, replaced once a minute."""

    def __init__(
        self, path: Path, classifier: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self._path = path
        self._parts: dict[str, Any] = {
            "classifier": classifier,
            "optimizer": optimizer,
        }
        self._next = time.monotonic() + SECONDS_BETWEEN_CHECKPOINTS
        self.update = 0
        if path.is_file():
            state: dict[str, Any] = torch.load(path, weights_only=True)
            for name, part in self._parts.items():
                part.load_state_dict(state[name])
            self.update = state["update"]

    def save_now_and_then(self, update: int) -> None:
        if time.monotonic() < self._next:
            return
        state = {name: part.state_dict() for name, part in self._parts.items()}
        with write_atomically(self._path, "wb") as stream:
            torch.save({**state, "update": update}, stream)
        self._next = time.monotonic() + SECONDS_BETWEEN_CHECKPOINTS
