"""The states of a training set with the tokens that followed, and what is near."""
from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Callable, NamedTuple

import numpy
import torch
from torch import Tensor

from fairseq_plugins.knn_mt.states import Loaded, force
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import write_atomically

__all__ = ["Datastore", "Neighbours"]

logger = logging.getLogger(__name__)

# Queries (n, D) and K to squared distances and numbers of entries, (n, K) each.
Search = Callable[[numpy.ndarray, int], tuple[numpy.ndarray, numpy.ndarray]]

CELL_ITERATIONS = 5
KEYS_PER_CELL = 40  # to find the centres by; the others only join their cells
_SECONDS_BETWEEN_REPORTS = 5.0


class Neighbours(NamedTuple):
    """The K nearest entries of each query, the nearest first.

    Attributes:
        distances: squared Euclidean, shape (queries, K).
        tokens: what followed in the training set, shape (queries, K).
    """

    distances: Tensor
    tokens: Tensor


class Datastore:
    """All target positions of a subset, searched by faiss or by scikit-learn.

    Args:
        keys: states, float32, shape (N, D).
        tokens: that followed, shape (N).
        probes: 0 compares a query with every key, exactly; P > 0 sorts the keys into
            cells around 2 sqrt(N) centres and looks into the P cells nearest to the
            query only (faiss' IVF index): much faster, and nearly the same.

    Raises:
        UserError: the approximate search is wanted and faiss is not installed.
    """

    def __init__(
        self, keys: numpy.ndarray, tokens: numpy.ndarray, *, probes: int = 0
    ) -> None:
        self._search = _approximate(keys, probes) if probes else _exact(keys)
        self._tokens = torch.from_numpy(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def search(self, queries: Tensor, num_neighbours: int) -> Neighbours:
        """Return the nearest entries of (queries, D) states.

        Raises:
            UserError: the datastore has fewer entries.
        """
        if num_neighbours > len(self):
            raise UserError(
                f"the number of neighbours must be {len(self)} or less, the size of "
                f"the datastore, but is {num_neighbours}."
            )
        distances, entries = self._search(queries.float().numpy(), num_neighbours)
        if (entries < 0).any():
            raise UserError(
                f"the cells hold fewer than {num_neighbours} entries: give a greater "
                "number of `probes`, or 0 for the exact search."
            )
        return Neighbours(
            torch.from_numpy(distances).float().clamp_min(0),
            self._tokens[torch.from_numpy(entries)],
        )

    @classmethod
    def of(
        cls, loaded: Loaded, subset: str, path: Path, *, probes: int = 0
    ) -> Datastore:
        """Read the datastore kept in a file, or make it and keep it there."""
        if not path.is_file():
            _write(loaded, subset, path)
        with numpy.load(path) as kept:
            return cls(kept["keys"], kept["tokens"], probes=probes)


def _exact(keys: numpy.ndarray) -> Search:
    """Return a search of all keys: faiss' if it is installed, it is faster."""
    try:
        import faiss
    except ImportError:
        from sklearn.neighbors import NearestNeighbors

        found = NearestNeighbors(algorithm="brute", metric="sqeuclidean").fit(keys)
        return lambda queries, k: found.kneighbors(queries, k)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(keys.shape[1])
    index.add(keys)
    return index.search


def _approximate(keys: numpy.ndarray, probes: int) -> Search:
    try:
        import faiss
    except ImportError:
        raise UserError(
            "the approximate search needs faiss, which is not installed: "
            "pip install faiss-cpu (or the extra `knn`), or search exactly."
        ) from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    size = keys.shape[1]
    cells = max(1, round(2 * math.sqrt(len(keys))))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(size), size, min(cells, len(keys)))
    index.cp.niter = CELL_ITERATIONS
    index.cp.max_points_per_centroid = KEYS_PER_CELL
    index.cp.min_points_per_centroid = 1
    index.train(keys)
    index.add(keys)
    index.nprobe = probes
    return index.search


def _write(loaded: Loaded, subset: str, path: Path) -> None:
    keys, tokens, done = [], [], 0
    loaded.task.load_dataset(subset)
    total = int(loaded.task.dataset(subset).tgt_sizes.sum())
    next_report = time.monotonic()
    for batch in force(loaded, subset):
        keys.append(batch.states.float().numpy())
        tokens.append(batch.targets.numpy())
        done += len(batch.targets)
        if time.monotonic() >= next_report:
            logger.info("datastore: %s of %s states", f"{done:,}", f"{total:,}")
            next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS
    with write_atomically(path, "wb") as stream:
        numpy.savez(
            stream, keys=numpy.concatenate(keys), tokens=numpy.concatenate(tokens)
        )
