"""What a study of kNN classification is made of, as its YAML file says it."""
from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import yaml

from fairseq_plugins.knn.networks import NETWORKS
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.typed_yaml import build, read_yaml

__all__ = ["METHODS", "Epsilons", "Settings", "change", "read_settings"]

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
    return read_yaml(path, Settings)


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
