"""Digits, IDX files and the batches of CIFAR-10; damaged files are refused."""

from __future__ import annotations

import gzip
import os
import pickle
import struct

import numpy
import pytest
import torch

from fairseq_plugins.knn.data import cifar10, digits, mnist
from fairseq_plugins.utils.errors import UserError


def idx(array: numpy.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(numpy.uint8).tobytes()


@pytest.fixture
def rng():
    return numpy.random.default_rng(5)


@pytest.fixture
def mnist_folder(tmp_path, rng):
    for stem, size in (("train", 7), ("t10k", 4)):
        images = rng.integers(0, 256, (size, 5, 6))
        labels = rng.integers(0, 10, size)
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(idx(images))
        packed = gzip.compress(idx(labels))
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(packed)
    return tmp_path


@pytest.fixture
def cifar_folder(tmp_path, rng):
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = rng.integers(0, 256, (3, 3072)).astype(numpy.uint8)
        labels = [int(label) for label in rng.integers(0, 10, 3)]
        batch = {b"batch_label": b"x", b"data": data, b"labels": labels}
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    return tmp_path


def test_digits_are_two_halves_that_test_each_other():
    pytest.importorskip("sklearn")
    first, second = digits()
    assert first.train.pixels.shape == (898, 1, 8, 8)
    assert first.test.pixels.shape == (899, 1, 8, 8)
    assert torch.equal(first.train.labels, second.test.labels)
    assert torch.equal(first.test.pixels, second.train.pixels)
    assert first.train.pixels.min() == 0 and first.train.pixels.max() == 1
    assert first.train.labels[:10].tolist() == list(
        range(10)
    )  # the first digits of the file


def test_idx_files_are_read_byte_by_byte(mnist_folder):
    (split,) = mnist(mnist_folder)
    assert split.train.pixels.shape == (7, 1, 5, 6)
    assert split.test.labels.shape == (4,)
    raw = (mnist_folder / "train-images-idx3-ubyte").read_bytes()[16:]
    got = (split.train.pixels * 255).round().to(torch.uint8).numpy().tobytes()
    assert got == raw


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-3], "truncated or damaged"),
        ("train-images-idx3-ubyte", lambda b: b + b"x", "has 211: it is truncated"),
        ("train-images-idx3-ubyte", lambda b: b"\0\0\x0d\3" + b[4:], "begins with"),
        ("t10k-labels-idx1-ubyte.gz", lambda b: b[:9], "damaged archive"),
        ("t10k-labels-idx1-ubyte.gz", lambda b: b"no gzip", "damaged archive"),
        ("train-images-idx3-ubyte", lambda b: b"", "begins with"),
    ],
)
def test_a_damaged_idx_file_is_named(mnist_folder, name, change, message):
    path = mnist_folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        mnist(mnist_folder)


def test_idx_files_that_do_not_belong_together_are_refused(mnist_folder, rng):
    labels = mnist_folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(rng.integers(0, 10, 6))))
    with pytest.raises(UserError, match="has 7 images and 6 labels"):
        mnist(mnist_folder)
    labels.write_bytes(gzip.compress(idx(numpy.full(7, 10))))
    with pytest.raises(UserError, match="labels .* must be from 0 to 9"):
        mnist(mnist_folder)
    labels.unlink()
    with pytest.raises(UserError, match="train-labels-idx1-ubyte` does not exist"):
        mnist(mnist_folder)


def test_cifar_batches_are_read_byte_by_byte(cifar_folder):
    (split,) = cifar10(cifar_folder)
    assert split.train.pixels.shape == (15, 3, 32, 32)
    batch = pickle.loads((cifar_folder / "data_batch_2").read_bytes())
    got = (split.train.pixels[3:6] * 255).round().to(torch.uint8).flatten(1)
    assert numpy.array_equal(got.numpy(), batch[b"data"])
    assert split.train.labels[3:6].tolist() == batch[b"labels"]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps(Evil(), protocol=2),
            "it names posix.mkdir, which is not an array",
        ),
        (b"nonsense", "must be a Python batch of CIFAR-10"),
        (pickle.dumps({b"labels": [1]}), "must be a Python batch of CIFAR-10"),
        (
            pickle.dumps(
                {b"data": numpy.zeros((2, 5), numpy.uint8), b"labels": [1, 2]}
            ),
            "must be 2 x 3072 bytes",
        ),
        (
            pickle.dumps(
                {b"data": numpy.zeros((1, 3072), numpy.uint8), b"labels": [11]}
            ),
            "must be from 0 to 9",
        ),
    ],
)
def test_a_batch_with_other_content_is_refused_and_not_run(
    cifar_folder, content, message, monkeypatch
):
    monkeypatch.chdir(cifar_folder)
    (cifar_folder / "data_batch_3").write_bytes(content)
    with pytest.raises(UserError, match=f"data_batch_3.*{message}"):
        cifar10(cifar_folder)
    assert not (cifar_folder / "made_by_a_pickle").exists()


def test_a_missing_batch_is_named(cifar_folder):
    (cifar_folder / "test_batch").unlink()
    with pytest.raises(UserError, match="test_batch` does not exist"):
        cifar10(cifar_folder)
