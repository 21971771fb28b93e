"""Labeled images: digits from scikit-learn, MNIST and CIFAR-10 from local files."""

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

__all__ = ["NUM_CLASSES", "Images", "Split", "cifar10", "digits", "mnist"]

NUM_CLASSES = 10
_UNSIGNED_BYTES = 0x08  # type code of an IDX file
_CIFAR_SHAPE = (3, 32, 32)


class Images(NamedTuple):
    """Pixels from 0 to 1, float32, shape (n, channels, height, width), and labels."""

    pixels: Tensor
    labels: Tensor

    def select(self, rows: Tensor | slice) -> Images:
        return Images(self.pixels[rows], self.labels[rows])


class Split(NamedTuple):
    """Training images, among which neighbors are searched, and test images."""

    train: Images
    test: Images


def digits() -> list[Split]:
    """Return the 1,797 handwritten digits of scikit-learn, 8 x 8, as two splits.

    Each half of the data is the test set once. The data are in the order of writing,
    so that the halves have different writers, except perhaps one.

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
    first, second = images.select(slice(half)), images.select(slice(half, None))
    return [Split(first, second), Split(second, first)]


def mnist(folder: Path) -> list[Split]:
    """Read the four IDX files of MNIST or of a data set of the same form, plain or .gz.

    Raises:
        UserError: a file is missing, damaged or of another form.
    """
    parts = []
    for stem in ("train", "t10k"):
        pixels = _read_idx(folder, f"{stem}-images", dimensions=3)
        labels = _read_idx(folder, f"{stem}-labels", dimensions=1)
        parts.append(_to_images(pixels[:, None], labels, f"{folder}/{stem}-*"))
    if parts[0].pixels.shape[1:] != parts[1].pixels.shape[1:]:
        raise UserError(
            f"training and test images in `{folder}` must have the same size."
        )
    return [Split(*parts)]


def cifar10(folder: Path) -> list[Split]:
    """Read the Python batches of CIFAR-10, ``data_batch_1`` to ``_5``, ``test_batch``.

    The batches are pickles. Only arrays are read from them; no code in them runs.

    Raises:
        UserError: a file is missing, damaged or has other content.
    """
    batches = [_read_cifar(folder / f"data_batch_{i}") for i in range(1, 6)]
    train = Images(*(torch.cat(part) for part in zip(*batches)))
    return [Split(train, _read_cifar(folder / "test_batch"))]


def _read_idx(folder: Path, stem: str, *, dimensions: int) -> numpy.ndarray:
    names = [f"{stem}{separator}idx{dimensions}-ubyte" for separator in "-."]
    paths = [folder / f"{name}{end}" for name in names for end in ("", ".gz")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(f"`{paths[0]}` does not exist, with or without .gz.")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            content = stream.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"`{path}` is a damaged archive: {error}.") from None
    start = 4 + 4 * dimensions
    expected = bytes([0, 0, _UNSIGNED_BYTES, dimensions])
    if content[:4] != expected or len(content) < start:
        raise UserError(
            f"`{path}` must be an IDX file of bytes in {dimensions} dimension(s) and "
            f"begin with {expected.hex()}, but begins with {content[:4].hex()}."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    size = int(numpy.prod(shape, dtype=object))
    if len(content) != start + size:
        raise UserError(
            f"`{path}` must have {size:,} bytes after its header, for the shape "
            f"{shape}, but has {len(content) - start:,}: it is truncated or damaged."
        )
    return numpy.frombuffer(content, numpy.uint8, offset=start).reshape(shape)


def _read_cifar(path: Path) -> Images:
    if not path.is_file():
        raise UserError(f"`{path}` does not exist.")
    try:
        with open(path, "rb") as stream:
            content = _ArrayUnpickler(stream, encoding="bytes").load()
        data, labels = content[b"data"], numpy.asarray(content[b"labels"])
    except Exception as error:  # a damaged pickle can raise any error
        raise UserError(
            f"`{path}` must be a Python batch of CIFAR-10, with `data` and `labels`, "
            f"but reading it raised {type(error).__name__}: {error}."
        ) from None
    width = int(numpy.prod(_CIFAR_SHAPE))
    shape = getattr(data, "shape", None)
    if getattr(data, "dtype", None) != numpy.uint8 or shape != (len(labels), width):
        raise UserError(
            f"`data` of `{path}` must be {len(labels)} x {width} bytes, "
            f"but has shape {shape}."
        )
    return _to_images(data.reshape(-1, *_CIFAR_SHAPE), labels, str(path))


def _to_images(pixels: numpy.ndarray, labels: numpy.ndarray, name: str) -> Images:
    if len(pixels) != len(labels) or not len(labels):
        raise UserError(
            f"`{name}` must have images and one label for each, but has "
            f"{len(pixels):,} images and {len(labels):,} labels."
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise UserError(
            f"labels of `{name}` must be from 0 to {NUM_CLASSES - 1}, but are "
            f"{labels.dtype} from {labels.min()} to {labels.max()}."
        )
    return Images(
        torch.from_numpy(pixels.copy()).float() / 255,
        torch.from_numpy(labels.astype(numpy.int64)),
    )


class _ArrayUnpickler(pickle.Unpickler):
    """A pickle can call any function by its name; this class allows arrays only."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            "_reconstruct": numpy.empty(0).__reduce__()[0],
            "ndarray": numpy.ndarray,
            "dtype": numpy.dtype,
            "encode": str.encode,
        }
        if module.partition(".")[0] in ("numpy", "_codecs") and name in allowed:
            return allowed[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not an array")
