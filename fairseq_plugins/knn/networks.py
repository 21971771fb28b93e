"""Networks from images to features."""
from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fairseq_plugins.knn.images import Images

__all__ = ["NETWORKS", "FeatureNetwork", "embed"]

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
