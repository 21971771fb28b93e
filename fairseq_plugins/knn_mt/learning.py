"""Fit a gate to gold targets that the datastore does not hold."""
from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from fairseq_plugins.knn_mt.datastore import Datastore, Neighbours
from fairseq_plugins.knn_mt.gate import Gate, Retrieved
from fairseq_plugins.knn_mt.states import Loaded, force, log_probs_of

__all__ = ["Lessons", "fit", "look_up"]

logger = logging.getLogger(__name__)

BATCH = 512
WEIGHT_DECAY = 1e-3


class Lessons(NamedTuple):
    """All gold tokens of a subset, with what was retrieved for each of them.

    Attributes:
        retrieved: for N tokens.
        gold: tokens, shape (N).
        gold_log_prob: the model's, shape (N).
    """

    retrieved: Retrieved
    gold: Tensor
    gold_log_prob: Tensor

    def take(self, rows: Tensor) -> Lessons:
        """Return some of the tokens, by index."""
        (distances, tokens), log_probs, best = self.retrieved
        return Lessons(
            Retrieved(
                Neighbours(distances[rows], tokens[rows]), log_probs[rows], best[rows]
            ),
            self.gold[rows],
            self.gold_log_prob[rows],
        )


def look_up(
    loaded: Loaded, datastore: Datastore, subset: str, num_neighbours: int
) -> Lessons:
    """Search the neighbours of every gold token of a subset."""
    parts = []
    for batch in force(loaded, subset):
        neighbours = datastore.search(batch.states, num_neighbours)
        log_probs = log_probs_of(loaded, batch.states)
        gold = batch.targets
        parts.append(
            Lessons(
                Retrieved.from_model(neighbours, log_probs),
                gold,
                log_probs.gather(1, gold.unsqueeze(1)).squeeze(1),
            )
        )
        done = sum(len(part.gold) for part in parts)
        logger.info("%s: %s tokens looked up", subset, f"{done:,}")
    return Lessons(
        Retrieved(
            Neighbours(
                torch.cat([part.retrieved.neighbours.distances for part in parts]),
                torch.cat([part.retrieved.neighbours.tokens for part in parts]),
            ),
            torch.cat([part.retrieved.log_probs for part in parts]),
            torch.cat([part.retrieved.best_log_prob for part in parts]),
        ),
        torch.cat([part.gold for part in parts]),
        torch.cat([part.gold_log_prob for part in parts]),
    )


def fit(
    lessons: Lessons,
    *,
    weights: str,
    is_adaptive: bool,
    updates: int,
    lr: float,
    seed: int,
) -> Gate:
    """Return a gate that gives the gold tokens the highest likelihood it can.

    Args:
        lessons: to learn from.
        weights, is_adaptive: the gate's.
        updates: of Adam, its learning rate falling to 0.
        lr: first learning rate.
        seed: of the initial weights and the order.
    """
    generator = torch.Generator().manual_seed(seed)
    distances = lessons.retrieved.neighbours.distances
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = Gate(
            distances.size(1),
            scale=float(distances.mean()),
            weights=weights,
            is_adaptive=is_adaptive,
        )
    optimizer = torch.optim.AdamW(
        gate.parameters(), lr=lr, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, updates)
    for _ in range(updates):
        rows = torch.randint(len(lessons.gold), (BATCH,), generator=generator)
        loss = mean_loss(gate, lessons.take(rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return gate.eval()


def mean_loss(gate: Gate, lessons: Lessons) -> Tensor:
    """Return the mean negative log-likelihood of the gold tokens, in nats."""
    return -gate.gold_log_prob(*lessons).mean()
