"""Train feature networks by cross entropy or by soft kNN.

The settings are in YAML files; see ``configs/knn``.
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
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, pad

from fairseq_plugins.compat.checkpoints import read_checkpoint
from fairseq_plugins.knn.data import NUM_CLASSES, Images
from fairseq_plugins.operators import soft_knn_loss
from fairseq_plugins.utils.arguments import parse_assignment
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import write_atomically
from fairseq_plugins.utils.typed_yaml import build, parse_yaml

__all__ = [
    "METHODS",
    "NETWORKS",
    "Classifier",
    "Epsilons",
    "FeatureNetwork",
    "Settings",
    "change_settings",
    "draw_batch",
    "embed",
    "train",
]

logger = logging.getLogger(__name__)

METHODS = {
    "raw": "kNN on pixels",
    "ce": "kNN on features of cross entropy",
    "ce_head": "classifier of cross entropy",
    "hard": "kNN trained by hard top-k",
    "softmax": "kNN trained by softmax of all (NCA)",
    "neuralsort": "kNN trained by NeuralSort",
    "soft": "kNN trained by SOFT top-k",
}
DATA = ("digits", "mnist", "cifar10")
EMBEDDING_BATCH = 500
SECONDS_BETWEEN_REPORTS = 5.0
SECONDS_BETWEEN_CHECKPOINTS = 60.0


def _convolution(width: int, next_width: int, *, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(width, next_width, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(next_width),
        nn.ReLU(),
    ]


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
    """ResNet-18 (He et al., 2016) with its usual first layers for images of 32 x 32."""
    blocks: list[nn.Module] = []
    width = 64
    for next_width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks.append(_Residual(width, next_width, stride=stride))
        blocks.append(_Residual(next_width, next_width, stride=1))
        width = next_width
    return nn.Sequential(*_convolution(channels, 64), *blocks, nn.AdaptiveAvgPool2d(1))


class _Residual(nn.Module):
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


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "tiny": _tiny,
    "small": _small,
    "resnet18": _resnet18,
}


@dataclass(frozen=True)
class Epsilons:
    """Smoothing of each selection, in units of squared distance."""

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
    """Settings that all methods share.

    Attributes:
        data: ``digits``, ``mnist`` or ``cifar10``.
        network: ``tiny``, ``small`` or ``resnet18``.
        features: number of features, by which kNN compares images.
        unit_length: whether to divide the features of an image by their norm.
        k: number of neighbors, in training and in prediction.
        queries: per update, each classified by the references.
        references: per update. Cross entropy trains on queries and references alike.
        updates: of AdamW, whose learning rate falls to 0 along a cosine.
        lr: first learning rate.
        weight_decay: decoupled.
        shift: move training images by up to this number of pixels in each direction.
        mirror: mirror a random half of the training images.
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
        positive = ("features", "k", "queries", "references", "updates")
        for name in (*positive, "shift"):
            least, value = int(name in positive), getattr(self, name)
            if value < least:
                raise UserError(f"`{name}` must be {least} or more, but is {value}.")
        if not self.k < self.references:
            raise UserError(
                f"`k` must be less than `references` ({self.references}), "
                f"but is {self.k}."
            )


def change_settings(settings: Settings, changes: Sequence[str]) -> Settings:
    """Return settings with ``key=value`` changes such as ``epsilons.soft=2``.

    Raises:
        UserError: a change has another form, or its key or value is wrong.
    """
    content: dict[str, Any] = dataclasses.asdict(settings)
    for text in changes:
        key, value = parse_assignment(text)
        outer, dot, inner = key.partition(".")
        parsed = parse_yaml(value, text)
        if isinstance(parsed, str):  # YAML takes 1e-3, which has no point, for text
            try:
                parsed = float(parsed)
            except ValueError:
                pass
        if dot and isinstance(content.get(outer), dict):
            content[outer][inner] = parsed
        else:
            content[key] = parsed
    return build(Settings, content)


class FeatureNetwork(nn.Module):
    """Standardize pixels, then apply a body of `NETWORKS` and a linear layer.

    Args:
        images: training images, for the mean and standard deviation of each channel.
        settings: see `Settings`.
    """

    def __init__(self, images: Images, settings: Settings) -> None:
        super().__init__()
        pixels = images.pixels
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", pixels.mean((0, 2, 3), keepdim=True))
        self.register_buffer("spread", pixels.std((0, 2, 3), keepdim=True) + 1e-6)
        self.body = NETWORKS[settings.network](pixels.size(1))
        with torch.no_grad():
            size = self.body.eval()(pixels[:1]).numel()
        self.body.train()
        self.last = nn.Linear(size, settings.features)
        self._unit_length = settings.unit_length

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (n, features) for (n, channels, height, width)."""
        hidden = self.body((pixels - self.mean) / self.spread).flatten(1)
        features: Tensor = self.last(hidden)
        return normalize(features, dim=1) if self._unit_length else features


class Classifier(nn.Module):
    """A feature network and a linear layer that only cross entropy trains."""

    def __init__(self, images: Images, settings: Settings) -> None:
        super().__init__()
        self.network = FeatureNetwork(images, settings)
        self.head = nn.Linear(settings.features, NUM_CLASSES)


@torch.no_grad()
def embed(network: nn.Module, pixels: Tensor) -> Tensor:
    """Return the features of all images, computed in batches in evaluation mode."""
    device = next(network.parameters()).device
    batches = pixels.split(EMBEDDING_BATCH)
    return torch.cat([network(batch.to(device)) for batch in batches])


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
    """Return a classifier in evaluation mode, trained from scratch.

    A batch depends only on the seed and the number of the update, so all methods see
    the same images, and so do resumed and uninterrupted training.

    Args:
        method: ``ce`` or a selection of `soft_knn_loss`.
        images: training images.
        settings: see `Settings`.
        seed: of the initial weights and the batches.
        checkpoint: written every minute, and read if it exists.
        title: for messages.
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
    first_update = 0
    if checkpoint.is_file():
        state = read_checkpoint(checkpoint)
        classifier.load_state_dict(state["classifier"])
        optimizer.load_state_dict(state["optimizer"])
        first_update = state["update"]
    next_report = time.monotonic()
    next_checkpoint = next_report + SECONDS_BETWEEN_CHECKPOINTS
    for update in range(first_update, settings.updates):
        cosine = math.cos(math.pi * update / settings.updates)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * (1 + cosine) / 2
        batch = draw_batch(images, settings, seed=seed, update=update)
        loss = _loss(method, classifier, batch, settings, device)
        if not loss.isfinite():
            raise FloatingPointError(f"{title}: the loss of update {update} is {loss}.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if time.monotonic() >= next_checkpoint:
            state = {
                "classifier": classifier.state_dict(),
                "optimizer": optimizer.state_dict(),
                "update": update + 1,
            }
            with write_atomically(checkpoint, "wb") as stream:
                torch.save(state, stream)
            next_checkpoint = time.monotonic() + SECONDS_BETWEEN_CHECKPOINTS
        if time.monotonic() >= next_report:
            done = f"{update + 1:,} of {settings.updates:,} updates"
            logger.info("%s: %s, loss %.4f", title, done, loss.item())
            next_report = time.monotonic() + SECONDS_BETWEEN_REPORTS
    return classifier.eval()


def draw_batch(images: Images, settings: Settings, *, seed: int, update: int) -> Images:
    """Return the queries and, after them, the references of an update."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + update)
    size = settings.queries + settings.references
    rows = torch.randperm(len(images.labels), generator=generator)[:size]
    batch = images.select(rows)
    if not (settings.shift or settings.mirror):
        return batch
    return batch._replace(pixels=_augment(batch.pixels, settings, generator))


def _augment(pixels: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Shift and mirror each image at random; the padding is zero."""
    count, _, height, width = pixels.shape
    shift = settings.shift
    moves = torch.randint(2 * shift + 1, (2, count, 1), generator=generator)
    rows = moves[0] + torch.arange(height)
    columns = moves[1] + torch.arange(width)
    if settings.mirror:
        is_mirrored = torch.randint(2, (count, 1), generator=generator).bool()
        columns = torch.where(is_mirrored, columns.flip(1), columns)
    padded = pad(pixels, [shift] * 4)
    image = torch.arange(count).view(-1, 1, 1)
    # Index tensors around a slice put the sliced channels last.
    chosen = padded[image, :, rows.unsqueeze(2), columns.unsqueeze(1)]
    return chosen.permute(0, 3, 1, 2)


def _loss(
    method: str, classifier: Classifier, batch: Images, settings: Settings, device: str
) -> Tensor:
    labels = batch.labels.to(device)
    features = classifier.network(batch.pixels.to(device))
    if method == "ce":
        return cross_entropy(classifier.head(features), labels)
    # A training set may be smaller than a batch: then there are fewer references.
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
