"""Labelled images: digits from scikit-learn, MNIST and CIFAR-10 from local files."""

from __future__ import annotations

import gzip
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from fairseq_plugins.utils.errors import UserError

__all__ = ["Images", "Split", "cifar10", "digits", "mnist"]

NUM_CLASSES = 10
IDX_BYTES = 0x08  # type code of unsigned bytes
CIFAR_SHAPE = (3, 32, 32)


class Images(NamedTuple):
    """Pixels from 0 to 1, float32, shape (n, channels, height, width), and labels."""

    pixels: Tensor
    labels: Tensor

    def take(self, rows: Tensor | slice) -> Images:
        """Return some of the images."""
        return Images(self.pixels[rows], self.labels[rows])


class Split(NamedTuple):
    """Images to train on (and to look for neighbours in) and images to classify."""

    train: Images
    test: Images


def digits() -> list[Split]:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8, as two splits.

    The file is in the order of writing, and a writer's digits follow each other. The
    halves therefore have different writers, but for one at most. Each half is the test
    set once.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install scikit-learn (or the extra `knn`)."
        ) from None
    content = load_digits()
    pixels = torch.from_numpy(content.images).float().unsqueeze(1) / 16
    images = Images(pixels, torch.from_numpy(content.target).long())
    half = len(pixels) // 2
    first, second = images.take(slice(half)), images.take(slice(half, None))
    return [Split(first, second), Split(second, first)]


def mnist(folder: Path) -> list[Split]:
    """Read the four IDX files of MNIST (or of a set of the same form), plain or .gz.

    Raises:
        UserError: a file is missing, damaged or of another form.
    """
    parts = []
    for stem in ("train", "t10k"):
        pixels = _read_idx(folder, f"{stem}-images", dimensions=3)
        labels = _read_idx(folder, f"{stem}-labels", dimensions=1)
        parts.append(_images(pixels[:, None], labels, f"{folder}/{stem}-*"))
    if parts[0].pixels.shape[1:] != parts[1].pixels.shape[1:]:
        raise UserError(f"images for training and test in `{folder}` differ in size.")
    return [Split(*parts)]


def cifar10(folder: Path) -> list[Split]:
    """Read CIFAR-10's python batches, ``data_batch_1`` to ``_5`` and ``test_batch``.

    They are pickles; only arrays are taken from them, and nothing in them is run.

    Raises:
        UserError: a file is missing, damaged or holds something else.
    """
    batches = [_read_cifar(folder / f"data_batch_{i}") for i in range(1, 6)]
    train = Images(*(torch.cat(part) for part in zip(*batches)))
    return [Split(train, _read_cifar(folder / "test_batch"))]


def _read_idx(folder: Path, stem: str, *, dimensions: int) -> numpy.ndarray:
    path, content = _read_first(
        [
            folder / f"{stem}{separator}idx{dimensions}-ubyte{end}"
            for separator in "-."
            for end in ("", ".gz")
        ]
    )
    start = 4 + 4 * dimensions
    expected = bytes([0, 0, IDX_BYTES, dimensions])
    if content[:4] != expected or len(content) < start:
        raise UserError(
            f"`{path}` must be an IDX file of bytes in {dimensions} dimension(s), and "
            f"begin with {expected.hex()}, but begins with {content[:4].hex()}."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    size = int(numpy.prod(shape, dtype=object))
    if len(content) != start + size:
        raise UserError(
            f"`{path}` must have {size:,} bytes after its head, for the shape {shape}, "
            f"but has {len(content) - start:,}: it is cut off or damaged."
        )
    return numpy.frombuffer(content, numpy.uint8, offset=start).reshape(shape)


def _read_first(paths: list[Path]) -> tuple[Path, bytes]:
    """Return the first path that exists and what it holds, unpacked."""
    for path in paths:
        if path.is_file():
            try:
                opener = gzip.open if path.suffix == ".gz" else open
                with opener(path, "rb") as stream:
                    return path, stream.read()
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(f"`{path}` is a damaged archive: {error}.") from None
    raise UserError(f"`{paths[0]}` does not exist (nor with .gz).")


def _read_cifar(path: Path) -> Images:
    if not path.is_file():
        raise UserError(f"`{path}` does not exist.")
    try:
        with open(path, "rb") as stream:
            content = _ArraysOnly(stream, encoding="bytes").load()
        data, labels = content[b"data"], numpy.asarray(content[b"labels"])
    except UserError:
        raise
    except Exception as error:  # a pickle can fail in any way
        raise UserError(
            f"`{path}` must be a python batch of CIFAR-10, with `data` and `labels`, "
            f"but reading it gave {type(error).__name__}: {error}."
        ) from None
    width = int(numpy.prod(CIFAR_SHAPE))
    shape = getattr(data, "shape", None)
    if getattr(data, "dtype", None) != numpy.uint8 or shape != (len(labels), width):
        raise UserError(
            f"`data` of `{path}` must be {len(labels)} x {width} bytes, "
            f"but has shape {shape}."
        )
    return _images(data.reshape(-1, *CIFAR_SHAPE), labels, str(path))


def _images(pixels: numpy.ndarray, labels: numpy.ndarray, where: str) -> Images:
    if len(pixels) != len(labels) or not len(labels):
        raise UserError(
            f"`{where}` must have one label for each image and not none, but has "
            f"{len(pixels):,} images and {len(labels):,} labels."
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise UserError(
            f"labels of `{where}` must be from 0 to {NUM_CLASSES - 1}, but are "
            f"{labels.dtype} from {labels.min()} to {labels.max()}."
        )
    return Images(
        torch.from_numpy(pixels.copy()).float() / 255,
        torch.from_numpy(labels.astype(numpy.int64)),
    )


class _ArraysOnly(pickle.Unpickler):
    """A pickle may name any function to be called; this knows what arrays need."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            "_reconstruct": numpy.empty(0).__reduce__()[0],
            "ndarray": numpy.ndarray,
            "dtype": numpy.dtype,
            "encode": _encode,
        }
        if module.partition(".")[0] in ("numpy", "_codecs") and name in allowed:
            return allowed[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)
