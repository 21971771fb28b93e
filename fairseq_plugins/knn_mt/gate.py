"""Learn the weights of the neighbors by gradient descent.

The next token has the probability ``(1 - s) p_model + s p_neighbors``. A gate computes
``s`` and the weight of each neighbor in ``p_neighbors``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from fairseq_plugins.knn_mt.datastore import (
    Datastore,
    LoadedModel,
    Neighbors,
    compute_log_probs,
    force_decode,
)
from fairseq_plugins.operators import soft_topk
from fairseq_plugins.utils.progress import progress_bar

__all__ = ["Gate", "GoldTokens", "Retrieved", "fit_gate", "mean_loss", "retrieve"]

LOWEST_LOG_PROB = -12.0  # input of the network; lower values are practically impossible
HIDDEN = 32
BATCH = 512
WEIGHT_DECAY = 1e-3
LEARNING_RATES = {False: 0.03, True: 0.01}  # a network needs smaller steps


class Retrieved(NamedTuple):
    """The input of a gate for N queries.

    Attributes:
        distances, tokens: of the neighbors, shape (N, K).
        log_probs: the model's log-probabilities of the neighbors' tokens, (N, K).
        best_log_prob: the model's highest log-probability, shape (N).
    """

    distances: Tensor
    tokens: Tensor
    log_probs: Tensor
    best_log_prob: Tensor

    @classmethod
    def from_model(cls, neighbors: Neighbors, log_probs: Tensor) -> Retrieved:
        """Select from the model's log-probabilities, shape (N, V)."""
        return cls(*neighbors, log_probs.gather(1, neighbors.tokens), log_probs.amax(1))


class Gate(nn.Module):
    """Weights of the neighbors and of their distribution.

    With ``soft`` weights neighbor i has the weight A_i / k, where A is `soft_topk` of
    the negative distances: the number k of neighbors, which need not be whole, and
    epsilon have gradients. With ``softmax`` the weights are softmax(-d / T) of all K
    neighbors (Khandelwal et al., 2021).

    Args:
        num_neighbors: K.
        scale: a typical squared distance, the unit of the temperature.
        weights: ``soft`` or ``softmax``.
        is_adaptive: a small network predicts k, temperature and s for each query
            (after Zheng et al., 2021). Otherwise they are three numbers.
    """

    def __init__(
        self, num_neighbors: int, *, scale: float, weights: str, is_adaptive: bool
    ) -> None:
        super().__init__()
        self.num_neighbors = num_neighbors
        self.weights = weights
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale))
        self.bias = nn.Parameter(torch.tensor([-1.5, -1.0, -1.0]))
        self.network: nn.Module | None = None
        if is_adaptive:
            last = nn.Linear(HIDDEN, 3, bias=False)
            nn.init.zeros_(last.weight)
            self.network = nn.Sequential(
                nn.Linear(3 * num_neighbors + 1, HIDDEN), nn.Tanh(), last
            )

    def forward(self, retrieved: Retrieved) -> tuple[Tensor, Tensor]:
        """Return the logit of s, (N), and the neighbors' weights, (N, K), of sum 1."""
        distances = retrieved.distances / self.scale
        control = self.bias.expand(len(distances), 3)
        if self.network is not None:
            features = [
                distances,
                count_distinct(retrieved.tokens) / self.num_neighbors,
                retrieved.log_probs.clamp_min(LOWEST_LOG_PROB) / 4,
                retrieved.best_log_prob.unsqueeze(1),
            ]
            control = control + self.network(torch.cat(features, 1))
        logit, log_temperature, size = control.unbind(1)
        temperature = log_temperature.clamp(-8, 8).exp()
        if self.weights == "softmax":
            return logit, torch.softmax(-distances / temperature.unsqueeze(1), 1)
        k = self.num_neighbors_of(size)
        memberships = soft_topk(distances, k, epsilon=temperature, largest=False)
        return logit, memberships / k.unsqueeze(1)

    def num_neighbors_of(self, control: Tensor) -> Tensor:
        """Return the number of neighbors k for its unbounded parameter."""
        # SOFT top-k needs k < K.
        return 1 + (self.num_neighbors - 1.001) * control.sigmoid()

    def gold_log_prob(
        self, retrieved: Retrieved, gold: Tensor, gold_log_prob: Tensor
    ) -> Tensor:
        """Return the mixed log-probability of the gold tokens, shape (N).

        Args:
            retrieved: for the N queries.
            gold: tokens, shape (N).
            gold_log_prob: the model's, shape (N).
        """
        logit, weights = self(retrieved)
        is_gold = retrieved.tokens == gold.unsqueeze(1)
        return mix(logit, gold_log_prob, (weights * is_gold).sum(1))

    def log_probs(self, retrieved: Retrieved, log_probs: Tensor) -> Tensor:
        """Return the mixed log-probabilities of all tokens, shape (N, V)."""
        logit, weights = self(retrieved)
        votes = torch.zeros_like(log_probs)
        votes.scatter_add_(1, retrieved.tokens, weights)
        return mix(logit.unsqueeze(1), log_probs, votes)

    def describe(self) -> dict[str, float]:
        """Return the learned numbers; for an adaptive gate those of its bias alone."""
        logit, log_temperature, size = self.bias.detach()
        numbers = {
            "share_of_neighbors": logit.sigmoid().item(),
            "temperature": float(self.scale) * log_temperature.exp().item(),
        }
        if self.weights == "soft":
            numbers["k"] = self.num_neighbors_of(size).item()
        return numbers


def mix(logit: Tensor, log_probs: Tensor, votes: Tensor) -> Tensor:
    """Return log((1 - s) p + s v) with s = sigmoid(logit), -inf where p is 0."""
    is_mixed = (votes > 0) & (log_probs > -math.inf)
    log_votes = votes.masked_fill(~is_mixed, 1.0).log() + logsigmoid(logit)
    alone = log_probs + logsigmoid(-logit)
    return torch.where(is_mixed, torch.logaddexp(alone, log_votes), alone)


def count_distinct(tokens: Tensor) -> Tensor:
    """Return the number of distinct tokens among the first 1 to K, (N, K) floats."""
    is_equal = tokens.unsqueeze(2) == tokens.unsqueeze(1)
    is_new = ~is_equal.tril(-1).any(2)
    return is_new.float().cumsum(1)


class GoldTokens(NamedTuple):
    """N gold tokens, from which a gate is learned.

    Attributes:
        retrieved: for each of them.
        gold: tokens, shape (N).
        gold_log_prob: the model's, shape (N).
    """

    retrieved: Retrieved
    gold: Tensor
    gold_log_prob: Tensor

    def select(self, rows: Tensor) -> GoldTokens:
        retrieved = Retrieved(*(tensor[rows] for tensor in self.retrieved))
        return GoldTokens(retrieved, self.gold[rows], self.gold_log_prob[rows])


def retrieve(
    loaded: LoadedModel, datastore: Datastore, subset: str, num_neighbors: int
) -> GoldTokens:
    """Return all gold tokens of a subset with their neighbors."""
    retrieved, gold, gold_log_probs = [], [], []
    with progress_bar("tokens", title=f"{subset}: neighbors") as progress:
        for batch in force_decode(loaded, subset):
            neighbors = datastore.search(batch.states, num_neighbors)
            log_probs = compute_log_probs(loaded, batch.states)
            retrieved.append(Retrieved.from_model(neighbors, log_probs))
            gold.append(batch.targets)
            gold_log_probs.append(
                log_probs.gather(1, batch.targets.unsqueeze(1)).squeeze(1)
            )
            progress.update(len(batch.targets))
    return GoldTokens(
        Retrieved(*map(torch.cat, zip(*retrieved))),
        torch.cat(gold),
        torch.cat(gold_log_probs),
    )


def fit_gate(
    tokens: GoldTokens, *, weights: str, is_adaptive: bool, updates: int, seed: int
) -> Gate:
    """Return a gate that maximizes the likelihood of the gold tokens.

    Args:
        tokens: must not be in the datastore.
        weights, is_adaptive: see `Gate`.
        updates: of AdamW, whose learning rate falls to 0.
        seed: of the initial weights and the batches.
    """
    generator = torch.Generator().manual_seed(seed)
    distances = tokens.retrieved.distances
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = Gate(
            distances.size(1),
            scale=float(distances.mean()),
            weights=weights,
            is_adaptive=is_adaptive,
        )
    optimizer = torch.optim.AdamW(
        gate.parameters(), lr=LEARNING_RATES[is_adaptive], weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, updates)
    for _ in range(updates):
        rows = torch.randint(len(tokens.gold), (BATCH,), generator=generator)
        loss = mean_loss(gate, tokens.select(rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return gate.eval()


def mean_loss(gate: Gate, tokens: GoldTokens) -> Tensor:
    """Return the mean negative log-likelihood of the gold tokens, in nats."""
    return -gate.gold_log_prob(*tokens).mean()
