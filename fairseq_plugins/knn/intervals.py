"""How sure an accuracy, and a difference of two accuracies on the same images, is."""
from __future__ import annotations

import math
from typing import NamedTuple

import numpy

__all__ = ["Interval", "accuracy_interval", "paired_difference"]

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
