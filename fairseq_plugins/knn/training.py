"""Train a feature network by cross entropy or by soft kNN, and go on after a stop."""
from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from fairseq_plugins.knn.images import NUM_CLASSES, Images
from fairseq_plugins.knn.networks import FeatureNetwork
from fairseq_plugins.knn.settings import Settings
from fairseq_plugins.operators import soft_knn_loss
from fairseq_plugins.pipeline.files import write_atomically

__all__ = ["Classifier", "train"]

logger = logging.getLogger(__name__)

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
