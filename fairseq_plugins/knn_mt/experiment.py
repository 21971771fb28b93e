"""Fit a gate to gold targets that the datastore does not hold.

A trained run against itself with neighbours: translate, score, test.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import torch
from torch import Tensor

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.evaluation.metrics import score
from fairseq_plugins.evaluation.significance import paired_test
from fairseq_plugins.evaluation.translate import detokeniser
from fairseq_plugins.knn_mt.datastore import (
    Datastore,
    Loaded,
    Neighbours,
    force,
    load,
    log_probs_of,
)
from fairseq_plugins.knn_mt.search import Gate, Retrieved, translate
from fairseq_plugins.training.config import digest_of_data
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import (
    read_json,
    read_lines,
    sha256_of,
    write_atomically,
    write_json,
    write_lines,
)

__all__ = ["SYSTEMS", "Experiment", "Lessons", "Options", "fit", "look_up"]

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
    optimizer = torch.optim.AdamW(gate.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
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


LEARNT_FROM = "valid"
RATES = {False: 0.03, True: 0.01}  # three numbers bear greater steps than a network
SYSTEMS = {  # weights, and whether they depend on the query
    "softmax": ("softmax", False),
    "soft": ("soft", False),
    "softmax-adaptive": ("softmax", True),
    "soft-adaptive": ("soft", True),
}


@dataclass(frozen=True)
class Options:
    """What a comparison depends on, but for the model.

    Attributes:
        num_neighbours: K, retrieved for each query.
        probes: see `Datastore`.
        updates: of learning a gate.
        seed: of learning a gate.
    """

    num_neighbours: int = 32
    probes: int = 0
    updates: int = 600
    seed: int = 1

    def __post_init__(self) -> None:
        for name, low in (("num_neighbours", 2), ("probes", 0), ("updates", 1)):
            if getattr(self, name) < low:
                raise UserError(
                    f"`{name}` must be {low} or more, but is {getattr(self, name)}."
                )


class Experiment:
    """One checkpoint, its datastore and its gates; what is done is kept in ``out``.

    Args:
        checkpoint: of a translation model.
        corpus: that it was trained on.
        out: for the datastore, gates, translations and scores.
        options: see `Options`.

    Raises:
        UserError: the checkpoint cannot be used.
    """

    def __init__(
        self, checkpoint: Path, corpus: PreparedCorpus, out: Path, options: Options
    ) -> None:
        self._corpus = corpus
        self._out = out
        self._options = options
        self._loaded: Loaded = load(checkpoint, corpus.bin_dir)
        self._digest = sha256_of(checkpoint)
        self._datastore: Datastore | None = None
        self._lessons: Lessons | None = None

    def compare(
        self, systems: Sequence[str], subsets: Sequence[str], *, beam: int
    ) -> list[dict[str, Any]]:
        """Return a row for the model alone and for each system, on each subset."""
        rows = []
        for subset in subsets:
            name, text = self._corpus.subset(subset)
            references = read_lines(text.target)
            data = digest_of_data(self._corpus.bin_dir, ("train", name))
            texts = {"data_sha256": data, "reference_sha256": sha256_of(text.target)}
            _, control = self._translated("alone", name, beam, texts)
            for system in ("alone", *systems):
                row, hypotheses = self._translated(system, name, beam, texts)
                row |= dataclasses.asdict(score(hypotheses, references))
                if system != "alone":
                    test = paired_test(control, hypotheses, references, checked=True)
                    row["bleu_p_value"] = test.bleu.p_value
                    row["chrf_p_value"] = test.chrf.p_value
                    row["test_signature"] = test.bleu.signature
                rows.append({"title": text.title, **row})
        return rows

    def _translated(
        self, system: str, subset: str, beam: int, texts: dict[str, str]
    ) -> tuple[dict[str, Any], list[str]]:
        """Translate by a system, or read what it gave before for the same texts."""
        row: dict[str, Any] = {
            "system": system,
            "subset": subset,
            "beam": beam,
            "checkpoint_sha256": self._digest,
            **texts,
        }
        if system != "alone":
            row |= dataclasses.asdict(self._options)
        stem = self._out / f"{subset}.{self._stem(system)}.beam{beam}"
        path, about = stem.with_suffix(f".beam{beam}.txt"), Path(f"{stem}.json")
        if path.is_file() and about.is_file():
            kept = read_json(about)
            if row.items() <= kept.items():
                return kept, read_lines(path)
        detokenised = detokeniser(self._corpus)  # fails before the search, if at all
        neighbours = None
        if system != "alone":
            neighbours = self._store(), self._gate(system)
            row |= _numbers(neighbours[1])
        logger.info("%s: translating by %s, beam %d", subset, system, beam)
        start = time.monotonic()
        pieces = translate(self._loaded, subset, beam=beam, neighbours=neighbours)
        row["seconds"] = round(time.monotonic() - start, 1)
        hypotheses = [detokenised(line) for line in pieces]
        # What describes other hypotheses must not outlive a kill between the two.
        about.unlink(missing_ok=True)
        write_lines(path, hypotheses)
        write_json(about, row)
        return row, hypotheses

    def _stem(self, system: str) -> str:
        if system == "alone":
            return system
        options = self._options
        search = f"ivf{options.probes}" if options.probes else "exact"
        return f"{system}.{search}.k{options.num_neighbours}"

    def _store(self) -> Datastore:
        if self._datastore is None:
            self._datastore = Datastore.of(
                self._loaded,
                "train",
                self._out / f"datastore-{self._digest[:8]}.npz",
                probes=self._options.probes,
            )
            logger.info("datastore: %s states", f"{len(self._datastore):,}")
        return self._datastore

    def _gate(self, system: str) -> Gate:
        """Read the gate learnt before, or learn it."""
        weights, is_adaptive = SYSTEMS[system]
        options = self._options
        path = self._out / (
            f"gate-{self._digest[:8]}.{self._stem(system)}"
            f".u{options.updates}.s{options.seed}.pt"
        )
        if path.is_file():
            gate = Gate(
                options.num_neighbours, scale=1.0, weights=weights,
                is_adaptive=is_adaptive,
            )  # fmt: skip
            gate.load_state_dict(torch.load(path, weights_only=True))
            return gate.eval()
        if self._lessons is None:
            self._lessons = look_up(
                self._loaded, self._store(), LEARNT_FROM, options.num_neighbours
            )
        gate = fit(
            self._lessons,
            weights=weights,
            is_adaptive=is_adaptive,
            updates=options.updates,
            lr=RATES[is_adaptive],
            seed=options.seed,
        )
        with torch.no_grad():
            before = -self._lessons.gold_log_prob.mean()
            after = mean_loss(gate, self._lessons)
        logger.info("%s: nats per token %.4f, alone %.4f", system, after, before)
        with write_atomically(path, "wb") as stream:
            torch.save(gate.state_dict(), stream)
        return gate


def _numbers(gate: Gate) -> dict[str, Any]:
    """Return what three learnt numbers mean; a network only starts from them."""
    logit, log_temperature, size = gate.bias.tolist()
    numbers = {
        "share_of_neighbours": torch.tensor(logit).sigmoid().item(),
        "temperature": float(gate.scale) * torch.tensor(log_temperature).exp().item(),
    }
    if gate.weights == "soft":
        numbers["k"] = float(gate.size_of(torch.tensor(size)))
    return numbers
