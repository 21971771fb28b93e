"""How much each neighbour says, and how much the neighbours say together.

fairseq's beam search, with or without neighbours, in this process.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from fairseq_plugins.knn_mt.datastore import (
    Datastore,
    Loaded,
    Neighbours,
    adjusted,
    batches,
)
from fairseq_plugins.operators import soft_topk

__all__ = ["Gate", "Retrieved", "translate"]

logger = logging.getLogger(__name__)

WEIGHTS = ("soft", "softmax")
LOWEST_LOG_PROB = -12.0  # what is less likely is as good as impossible
HIDDEN = 32


class Retrieved(NamedTuple):
    """What the gate decides by, for each of N queries.

    Attributes:
        neighbours: distances and tokens, shape (N, K).
        log_probs: the model's, of the neighbours' tokens, shape (N, K).
        best_log_prob: the model's highest, shape (N).
    """

    neighbours: Neighbours
    log_probs: Tensor
    best_log_prob: Tensor

    @classmethod
    def from_model(cls, neighbours: Neighbours, log_probs: Tensor) -> Retrieved:
        """Look up what matters in the model's log-probabilities, (N, V)."""
        return cls(
            neighbours, log_probs.gather(1, neighbours.tokens), log_probs.amax(1)
        )


class Gate(nn.Module):
    """Weights of the neighbours and of their votes, learnt by gradient.

    With ``soft`` weights neighbour i has a share A_i / k in the vote, where A is
    `soft_topk` of the negative distances: both the number k of neighbours, which need
    not be whole, and the temperature epsilon have gradients. With ``softmax`` the
    weights are softmax(-d / T) of all K neighbours (Khandelwal et al., 2021).

    Args:
        num_neighbours: K.
        scale: a typical squared distance, in which the temperature is counted.
        weights: ``soft`` or ``softmax``.
        is_adaptive: k, temperature and the votes' share depend on the query, through a
            small network (after Zheng et al., 2021); else they are three numbers.
    """

    def __init__(
        self, num_neighbours: int, *, scale: float, weights: str, is_adaptive: bool
    ) -> None:
        super().__init__()
        self.num_neighbours = num_neighbours
        self.weights = weights
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale))
        self.bias = nn.Parameter(torch.tensor([-1.5, -1.0, -1.0]))
        self.network: nn.Module | None = None
        if is_adaptive:
            last = nn.Linear(HIDDEN, 3, bias=False)
            nn.init.zeros_(last.weight)
            self.network = nn.Sequential(
                nn.Linear(3 * num_neighbours + 1, HIDDEN), nn.Tanh(), last
            )

    def forward(self, retrieved: Retrieved) -> tuple[Tensor, Tensor]:
        """Return the logit of the votes' share, (N), and neighbours' weights, (N, K).

        A query's weights sum to 1.
        """
        distances = retrieved.neighbours.distances / self.scale
        control = self.bias.expand(len(distances), 3)
        if self.network is not None:
            control = control + self.network(self._features(distances, retrieved))
        logit, log_temperature, size = control.unbind(1)
        temperature = log_temperature.clamp(-8, 8).exp()
        if self.weights == "softmax":
            return logit, torch.softmax(-distances / temperature.unsqueeze(1), 1)
        k = self.size_of(size)
        memberships = soft_topk(distances, k, epsilon=temperature, largest=False)
        return logit, memberships / k.unsqueeze(1)

    def size_of(self, control: Tensor) -> Tensor:
        """Return the number of neighbours k that a control stands for."""
        # Of K neighbours K cannot be chosen softly.
        return 1 + (self.num_neighbours - 1.001) * control.sigmoid()

    def _features(self, distances: Tensor, retrieved: Retrieved) -> Tensor:
        tokens = retrieved.neighbours.tokens
        return torch.cat(
            [
                distances,
                distinct_so_far(tokens) / self.num_neighbours,
                retrieved.log_probs.clamp_min(LOWEST_LOG_PROB) / 4,
                retrieved.best_log_prob.unsqueeze(1),
            ],
            1,
        )

    def gold_log_prob(
        self, retrieved: Retrieved, gold: Tensor, gold_log_prob: Tensor
    ) -> Tensor:
        """Return the log-probability of the gold tokens, (N), after mixing.

        Args:
            gold: tokens, shape (N).
            gold_log_prob: the model's, shape (N).
        """
        logit, weights = self(retrieved)
        says_gold = retrieved.neighbours.tokens == gold.unsqueeze(1)
        votes = (weights * says_gold).sum(1)
        return mix(logit, gold_log_prob, votes)

    def log_probs(self, retrieved: Retrieved, log_probs: Tensor) -> Tensor:
        """Return (N, V) log-probabilities of the model and the neighbours together."""
        logit, weights = self(retrieved)
        votes = torch.zeros_like(log_probs)
        votes.scatter_add_(1, retrieved.neighbours.tokens, weights)
        return mix(logit.unsqueeze(1), log_probs, votes)


def mix(logit: Tensor, log_probs: Tensor, votes: Tensor) -> Tensor:
    """Return log((1 - s) p + s v) with s = sigmoid(logit), finite where p is."""
    voted = (votes > 0) & (log_probs > -math.inf)
    log_votes = votes.masked_fill(~voted, 1.0).log() + logsigmoid(logit)
    alone = log_probs + logsigmoid(-logit)
    return torch.where(voted, torch.logaddexp(alone, log_votes), alone)


def distinct_so_far(tokens: Tensor) -> Tensor:
    """Return how many different tokens the first 1, 2, ..., K have, (N, K) floats."""
    seen = tokens.unsqueeze(2) == tokens.unsqueeze(1)
    is_new = ~seen.tril(-1).any(2)
    return is_new.float().cumsum(1)


_SECONDS_BETWEEN_REPORTS = 5.0


@torch.no_grad()
def translate(
    loaded: Loaded,
    subset: str,
    *,
    beam: int,
    neighbours: tuple[Datastore, Gate] | None = None,
    max_tokens: int = 4000,
) -> list[str]:
    """Return the best hypothesis of every sentence, as pieces, in corpus order.

    Args:
        loaded: the model.
        subset: such as ``test``.
        beam: hypotheses kept at each step.
        neighbours: where to look and how much to believe; None is the model alone.
        max_tokens: size of a batch.
    """
    from fairseq.sequence_generator import SequenceGenerator

    dictionary = loaded.task.target_dictionary
    generator = SequenceGenerator([loaded.model], dictionary, beam_size=beam)
    found: dict[int, str] = {}
    next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS
    with _looking_at(loaded.model, neighbours):
        for sample in batches(loaded, subset, max_tokens):
            hypotheses = generator.generate([loaded.model], sample)
            for sentence, ranked in zip(sample["id"].tolist(), hypotheses):
                found[sentence] = dictionary.string(ranked[0]["tokens"])
            if time.monotonic() >= next_report:
                total = f"{len(loaded.task.dataset(subset)):,}"
                logger.info("%s: %s of %s done", subset, f"{len(found):,}", total)
                next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS
    return [found[sentence] for sentence in sorted(found)]


def _looking_at(
    model: Any, neighbours: tuple[Datastore, Gate] | None
) -> contextlib.AbstractContextManager[None]:
    if neighbours is None:
        return contextlib.nullcontext()
    datastore, gate = neighbours

    def adjust(states: Tensor, log_probs: Tensor) -> Tensor:
        near = datastore.search(states, gate.num_neighbours)
        return gate.log_probs(Retrieved.from_model(near, log_probs), log_probs)

    return adjusted(model, adjust)
