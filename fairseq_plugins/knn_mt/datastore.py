"""Decoder states of a trained fairseq model, by teacher forcing or in its search.

The states of a training set with the tokens that followed, and what is near.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import numpy
import torch
from torch import Tensor

from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import write_atomically

__all__ = [
    "Datastore",
    "Forced",
    "Loaded",
    "Neighbours",
    "adjusted",
    "batches",
    "force",
    "load",
    "log_probs_of",
]

logger = logging.getLogger(__name__)

# (rows, D) states and (rows, V) log-probabilities to other log-probabilities
Adjust = Callable[[Tensor, Tensor], Tensor]


class Loaded(NamedTuple):
    """A model in evaluation mode and the task that it was trained for."""

    model: Any
    task: Any


class Forced(NamedTuple):
    """One batch of gold targets: T tokens, end marks included, padding left out.

    Attributes:
        states: what the decoder's output layer reads, shape (T, D).
        targets: gold tokens, shape (T).
        sentences: number of each token's sentence in the corpus, shape (T).
    """

    states: Tensor
    targets: Tensor
    sentences: Tensor


def load(checkpoint: Path, data: Path) -> Loaded:
    """Load a checkpoint of a translation model for a binarised folder.

    Raises:
        UserError: the checkpoint does not exist, or has no decoder with states.
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
            f"{type(model.decoder).__name__} has not."
        )
    return Loaded(model, task)


def batches(loaded: Loaded, subset: str, max_tokens: int) -> list[dict[str, Any]]:
    """Return the batches of a subset, every sentence once, in order of length."""
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
def force(loaded: Loaded, subset: str, *, max_tokens: int = 4000) -> Iterator[Forced]:
    """Yield the states at every gold token of a subset, batch by batch."""
    model = loaded.model
    for sample in batches(loaded, subset, max_tokens):
        net_input = sample["net_input"]
        encoder_out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])
        states, _ = model.decoder.extract_features(
            net_input["prev_output_tokens"], encoder_out=encoder_out
        )
        is_token = sample["target"] != loaded.task.target_dictionary.pad()
        states = states[is_token]
        yield Forced(
            states=states,
            targets=sample["target"][is_token],
            sentences=sample["id"].unsqueeze(-1).expand_as(is_token)[is_token],
        )


@torch.no_grad()
def log_probs_of(loaded: Loaded, states: Tensor) -> Tensor:
    """Return the model's log-probabilities after these states, (T, D) to (T, V)."""
    logits = loaded.model.decoder.output_layer(states)
    probs: Tensor = loaded.model.get_normalized_probs((logits, None), log_probs=True)
    return probs


@contextlib.contextmanager
def adjusted(model: Any, adjust: Adjust) -> Iterator[None]:
    """Let ``adjust`` change what the model predicts, in any of fairseq's searches.

    It is called at each step with the states and log-probabilities of all hypotheses.
    The model's class stays as it is, and so does the model after it.
    """
    decoder, latest = model.decoder, {}

    def extract_features(*args: Any, **kwargs: Any) -> Any:
        features, extra = type(decoder).extract_features(decoder, *args, **kwargs)
        latest["states"] = features[:, -1]
        return features, extra

    def get_normalized_probs(output: Any, log_probs: bool, sample: Any = None) -> Any:
        usual = type(model).get_normalized_probs(model, output, True, sample)
        usual[:, -1] = adjust(latest["states"], usual[:, -1])
        return usual if log_probs else usual.exp()

    decoder.extract_features = extract_features
    model.get_normalized_probs = get_normalized_probs
    try:
        yield
    finally:
        del decoder.extract_features, model.get_normalized_probs


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
