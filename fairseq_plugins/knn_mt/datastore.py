"""The states of a training set with the tokens that followed, and who is near."""
from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from fairseq_plugins.knn_mt.states import Loaded, force
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import write_atomically

__all__ = ["Datastore", "Neighbours"]

logger = logging.getLogger(__name__)

CELL_ITERATIONS = 5
KEYS_PER_CELL = 40  # to find the centres by; others only join their cells
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
    """Exact search, by faiss, among all target positions of a subset.

    Args:
        keys: states, float32, shape (N, D).
        tokens: that followed, shape (N).
        probes: 0 compares a query with every key, exactly; P > 0 sorts the keys into
            cells around 2 sqrt(N) centres and looks into the P cells nearest to the
            query only (faiss' IVF index): much faster, and nearly the same.

    Raises:
        UserError: faiss is not installed.
    """

    def __init__(
        self, keys: numpy.ndarray, tokens: numpy.ndarray, *, probes: int = 0
    ) -> None:
        try:
            import faiss
        except ImportError:
            raise UserError(
                "the search needs faiss, which is not installed: "
                "pip install faiss-cpu (or the extra `knn`)."
            ) from None
        faiss.omp_set_num_threads(torch.get_num_threads())
        self._index = faiss.IndexFlatL2(keys.shape[1])
        if probes:
            cells = max(1, round(2 * math.sqrt(len(keys))))
            self._index = faiss.IndexIVFFlat(self._index, keys.shape[1], cells)
            self._index.cp.niter = CELL_ITERATIONS
            self._index.cp.max_points_per_centroid = KEYS_PER_CELL
            self._index.cp.min_points_per_centroid = 1
            self._index.train(keys)
            self._index.nprobe = probes
        self._index.add(keys)
        self._tokens = torch.from_numpy(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def search(self, queries: Tensor, num_neighbours: int) -> Neighbours:
        """Return the nearest entries of (queries, D) states."""
        found = self._index.search(queries.float().numpy(), num_neighbours)
        distances, entries = map(torch.from_numpy, found)
        return Neighbours(distances.clamp_min(0), self._tokens[entries])

    @classmethod
    def of(
        cls, loaded: Loaded, subset: str, path: Path, *, probes: int = 0
    ) -> Datastore:
        """Read the datastore kept in a file, or make it and keep it there."""
        if not path.is_file():
            _write(loaded, subset, path)
        with numpy.load(path) as kept:
            return cls(kept["keys"], kept["tokens"], probes=probes)


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
