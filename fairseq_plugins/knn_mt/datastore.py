"""Store decoder states of a corpus with the next tokens, and find the nearest ones.

The states are those that the decoder's output layer reads, computed with the reference
as the decoder's input (teacher forcing).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import numpy
import torch
from torch import Tensor

from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import write_atomically
from fairseq_plugins.utils.progress import progress_bar

__all__ = [
    "Datastore",
    "ForcedBatch",
    "LoadedModel",
    "Neighbors",
    "make_batches",
    "force_decode",
    "load_model",
    "compute_log_probs",
]

# Queries (n, D) and K to squared distances and indices of entries, (n, K) each.
Search = Callable[[numpy.ndarray, int], tuple[numpy.ndarray, numpy.ndarray]]

CLUSTER_ITERATIONS = 5
KEYS_PER_CENTER = 40  # the centers are computed from a sample of this size


class LoadedModel(NamedTuple):
    """A model in evaluation mode and its task."""

    model: Any
    task: Any


class ForcedBatch(NamedTuple):
    """The T target tokens of a batch, with ends of sentences and without padding.

    Attributes:
        states: input of the decoder's output layer, shape (T, D).
        targets: gold tokens, shape (T).
        sentences: index of each token's sentence in the corpus, shape (T).
    """

    states: Tensor
    targets: Tensor
    sentences: Tensor


class Neighbors(NamedTuple):
    """The K nearest entries of each query, nearest first.

    Attributes:
        distances: squared Euclidean, shape (queries, K).
        tokens: the tokens that follow in the training data, shape (queries, K).
    """

    distances: Tensor
    tokens: Tensor


def load_model(checkpoint: Path, data: Path) -> LoadedModel:
    """Load a translation model and its task for a binarized corpus.

    Raises:
        UserError: the checkpoint does not exist, or its decoder has no states.
    """
    from fairseq.checkpoint_utils import load_model_ensemble_and_task

    import fairseq_plugins

    fairseq_plugins.register()
    if not checkpoint.is_file():
        raise UserError(f"`{checkpoint}` does not exist.")
    models, _, task = load_model_ensemble_and_task(
        [str(checkpoint)], arg_overrides={"data": str(data)}
    )
    model = models[0].eval()
    if not hasattr(model.decoder, "extract_features"):
        raise UserError(
            f"the decoder of `{checkpoint}` must have `extract_features`, but "
            f"{type(model.decoder).__name__} does not have it."
        )
    return LoadedModel(model, task)


def make_batches(
    loaded: LoadedModel, subset: str, max_tokens: int
) -> list[dict[str, Any]]:
    """Return the batches of a subset, ordered by length."""
    if subset not in loaded.task.datasets:
        loaded.task.load_dataset(subset)
    return list(
        loaded.task.get_batch_iterator(
            loaded.task.dataset(subset),
            max_tokens=max_tokens,
            required_batch_size_multiple=1,
            disable_iterator_cache=True,
        ).next_epoch_itr(shuffle=False)
    )


@torch.no_grad()
def force_decode(
    loaded: LoadedModel, subset: str, *, max_tokens: int = 4000
) -> Iterator[ForcedBatch]:
    """Yield the states at all target tokens of a subset, batch by batch."""
    model = loaded.model
    for sample in make_batches(loaded, subset, max_tokens):
        net_input = sample["net_input"]
        encoder_out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])
        states, _ = model.decoder.extract_features(
            net_input["prev_output_tokens"], encoder_out=encoder_out
        )
        is_token = sample["target"] != loaded.task.target_dictionary.pad()
        yield ForcedBatch(
            states=states[is_token],
            targets=sample["target"][is_token],
            sentences=sample["id"].unsqueeze(-1).expand_as(is_token)[is_token],
        )


@torch.no_grad()
def compute_log_probs(loaded: LoadedModel, states: Tensor) -> Tensor:
    """Return the model's log-probabilities of the next token, (T, D) to (T, V)."""
    logits = loaded.model.decoder.output_layer(states)
    probs: Tensor = loaded.model.get_normalized_probs((logits, None), log_probs=True)
    return probs


class Datastore:
    """Keys (states) and values (the tokens that follow), searched by their distance.

    Args:
        keys: float32, shape (N, D).
        tokens: shape (N).
        probes: 0 for an exact search by faiss or, if that is not installed, by
            scikit-learn. P > 0 clusters the keys around 2 sqrt(N) centers and searches
            the P clusters nearest to the query only (IVF index of faiss), which is much
            faster.

    Raises:
        UserError: ``probes`` is positive and faiss is not installed.
    """

    def __init__(
        self, keys: numpy.ndarray, tokens: numpy.ndarray, *, probes: int = 0
    ) -> None:
        self._search = _build_index(keys, probes)
        self._tokens = torch.from_numpy(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def search(self, queries: Tensor, num_neighbors: int) -> Neighbors:
        """Return the nearest entries of (queries, D) states.

        Raises:
            UserError: the datastore, or the searched part of it, has fewer entries.
        """
        if num_neighbors > len(self):
            raise UserError(
                f"the number of neighbors must be {len(self)} or less, the size of "
                f"the datastore, but is {num_neighbors}."
            )
        distances, entries = self._search(queries.float().numpy(), num_neighbors)
        if (entries < 0).any():
            raise UserError(
                f"the searched clusters must hold {num_neighbors} entries, but hold "
                "fewer: give a larger `--probes`, or 0 for the exact search."
            )
        return Neighbors(
            torch.from_numpy(distances).float().clamp_min(0),
            self._tokens[torch.from_numpy(entries)],
        )

    @classmethod
    def load_or_build(
        cls, loaded: LoadedModel, subset: str, path: Path, *, probes: int = 0
    ) -> Datastore:
        """Return the datastore of a subset, read from a file or written to it first."""
        if not path.is_file():
            _write(loaded, subset, path)
        with numpy.load(path) as kept:
            return cls(kept["keys"], kept["tokens"], probes=probes)


def _build_index(keys: numpy.ndarray, probes: int) -> Search:
    try:
        import faiss
    except ImportError:
        if probes:
            raise UserError(
                "the approximate search needs faiss, which is not installed: "
                "pip install faiss-cpu (or the extra `knn`), or search exactly."
            ) from None
        from sklearn.neighbors import NearestNeighbors

        found = NearestNeighbors(algorithm="brute", metric="sqeuclidean").fit(keys)
        return lambda queries, k: found.kneighbors(queries, k)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index: Any = faiss.IndexFlatL2(keys.shape[1])
    if probes:
        clusters = min(max(1, round(2 * math.sqrt(len(keys)))), len(keys))
        index = faiss.IndexIVFFlat(index, keys.shape[1], clusters)
        index.cp.niter = CLUSTER_ITERATIONS
        index.cp.max_points_per_centroid = KEYS_PER_CENTER
        index.cp.min_points_per_centroid = 1
        index.train(keys)
        index.nprobe = probes
    index.add(keys)
    search: Search = index.search
    return search


def _write(loaded: LoadedModel, subset: str, path: Path) -> None:
    keys, tokens = [], []
    loaded.task.load_dataset(subset)
    total = int(loaded.task.dataset(subset).tgt_sizes.sum())
    with progress_bar("states", total=total, title="datastore") as progress:
        for batch in force_decode(loaded, subset):
            keys.append(batch.states.float().numpy())
            tokens.append(batch.targets.numpy())
            progress.update(len(batch.targets))
    with write_atomically(path, "wb") as stream:
        numpy.savez(
            stream, keys=numpy.concatenate(keys), tokens=numpy.concatenate(tokens)
        )
