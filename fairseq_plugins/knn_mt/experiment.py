"""Translate test sets with and without neighbors, and compare the scores."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor

from fairseq_plugins.compat.checkpoints import read_checkpoint
from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.evaluation.metrics import score
from fairseq_plugins.evaluation.significance import paired_test
from fairseq_plugins.evaluation.translate import make_detokenizer
from fairseq_plugins.knn_mt.datastore import (
    Datastore,
    LoadedModel,
    compute_log_probs,
    load_model,
    make_batches,
)
from fairseq_plugins.knn_mt.gate import (
    Gate,
    GoldTokens,
    Retrieved,
    fit_gate,
    mean_loss,
    retrieve,
)
from fairseq_plugins.training.config import digest_data
from fairseq_plugins.utils.files import (
    read_json,
    read_lines,
    sha256_of,
    write_atomically,
    write_json,
    write_lines,
)
from fairseq_plugins.utils.progress import progress_bar

__all__ = ["SYSTEMS", "Experiment", "Options", "translate"]

logger = logging.getLogger(__name__)

SYSTEMS = {  # the arguments of the gate: weights, is_adaptive
    "softmax": ("softmax", False),
    "soft": ("soft", False),
    "softmax-adaptive": ("softmax", True),
    "soft-adaptive": ("soft", True),
}


@torch.no_grad()
def translate(
    loaded: LoadedModel,
    subset: str,
    *,
    beam: int,
    neighbors: tuple[Datastore, Gate] | None = None,
    max_tokens: int = 4000,
) -> list[str]:
    """Return the best hypothesis of each sentence, as subwords, in corpus order.

    Args:
        loaded: the model.
        subset: such as ``test``.
        beam: number of hypotheses kept at each step.
        neighbors: datastore and gate; None for the model alone.
        max_tokens: size of a batch.
    """
    from fairseq.sequence_generator import EnsembleModel, SequenceGenerator

    class ModelWithNeighbors(EnsembleModel):
        """The model in fairseq's search, with the neighbors of each state."""

        def forward_decoder(
            self,
            tokens: Tensor,
            encoder_outs: Any,
            incremental_states: Any,
            temperature: float = 1.0,
        ) -> tuple[Tensor, None]:
            assert neighbors is not None
            datastore, gate = neighbors
            features, _ = self.single_model.decoder.extract_features(
                tokens,
                encoder_out=encoder_outs[0],
                incremental_state=incremental_states[0],
            )
            states = features[:, -1]
            log_probs = compute_log_probs(loaded, states.unsqueeze(1)).squeeze(1)
            near = datastore.search(states, gate.num_neighbors)
            retrieved = Retrieved.from_model(near, log_probs)
            return gate.log_probs(retrieved, log_probs), None

    dictionary = loaded.task.target_dictionary
    ensemble = (EnsembleModel if neighbors is None else ModelWithNeighbors)(
        [loaded.model]
    )
    generator = SequenceGenerator(ensemble, dictionary, beam_size=beam)
    found: dict[int, str] = {}
    samples = make_batches(loaded, subset, max_tokens)
    total = len(loaded.task.dataset(subset))
    with progress_bar("sentences", total=total, title=subset) as progress:
        for sample in samples:
            hypotheses = generator.generate([loaded.model], sample)
            for sentence, ranked in zip(sample["id"].tolist(), hypotheses):
                found[sentence] = dictionary.string(ranked[0]["tokens"])
            progress.update(len(hypotheses))
    return [found[sentence] for sentence in sorted(found)]


@dataclass(frozen=True)
class Options:
    """Options of an experiment.

    Attributes:
        num_neighbors: K, retrieved for each query.
        probes: see `Datastore`.
        updates: of fitting a gate.
        seed: of fitting a gate.
    """

    num_neighbors: int = 32
    probes: int = 0
    updates: int = 600
    seed: int = 1


class Experiment:
    """A checkpoint with its datastore and gates; results are kept and reused.

    Args:
        checkpoint: of a translation model.
        corpus: its training corpus.
        out: folder for the datastore, gates, translations and scores.
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
        self._loaded = load_model(checkpoint, corpus.bin_dir)
        self._digest = sha256_of(checkpoint)
        self._datastore: Datastore | None = None
        self._tokens: GoldTokens | None = None

    def compare(
        self, systems: Sequence[str], subsets: Sequence[str], *, beam: int
    ) -> list[dict[str, Any]]:
        """Return a row for the model alone and for each system, on each subset."""
        rows = []
        for subset in subsets:
            name, text = self._corpus.subset(subset)
            references = read_lines(text.target)
            data = digest_data(self._corpus.bin_dir, ("train", name))
            texts = {"data_sha256": data, "reference_sha256": sha256_of(text.target)}
            _, control = self._translate("alone", name, beam, texts)
            for system in ("alone", *systems):
                row, hypotheses = self._translate(system, name, beam, texts)
                row |= dataclasses.asdict(score(hypotheses, references))
                if system != "alone":
                    test = paired_test(control, hypotheses, references, checked=True)
                    row["bleu_p_value"] = test.bleu.p_value
                    row["chrf_p_value"] = test.chrf.p_value
                    row["test_signature"] = test.bleu.signature
                rows.append({"title": text.title, **row})
        return rows

    def _translate(
        self, system: str, subset: str, beam: int, texts: dict[str, str]
    ) -> tuple[dict[str, Any], list[str]]:
        """Translate with a system, or read its earlier translations."""
        row: dict[str, Any] = {
            "system": system,
            "subset": subset,
            "beam": beam,
            "checkpoint_sha256": self._digest,
            **texts,
        }
        if system != "alone":
            row |= dataclasses.asdict(self._options)
        stem = f"{subset}.{self._name(system)}.beam{beam}"
        text_path, row_path = self._out / f"{stem}.txt", self._out / f"{stem}.json"
        if text_path.is_file() and row_path.is_file():
            kept = read_json(row_path)
            if row.items() <= kept.items():
                return kept, read_lines(text_path)
        detokenize = make_detokenizer(self._corpus)  # before the search, as it may fail
        neighbors = None
        if system != "alone":
            neighbors = self._get_datastore(), self._get_gate(system)
            row |= neighbors[1].describe()
        logger.info("%s: translating with %s, beam %d", subset, system, beam)
        start = time.monotonic()
        pieces = translate(self._loaded, subset, beam=beam, neighbors=neighbors)
        row["seconds"] = round(time.monotonic() - start, 1)
        hypotheses = [detokenize(line) for line in pieces]
        # If the process is killed here, no row may describe other hypotheses.
        row_path.unlink(missing_ok=True)
        write_lines(text_path, hypotheses)
        write_json(row_path, row)
        return row, hypotheses

    def _name(self, system: str) -> str:
        if system == "alone":
            return system
        options = self._options
        search = f"ivf{options.probes}" if options.probes else "exact"
        return f"{system}.{search}.k{options.num_neighbors}"

    def _get_datastore(self) -> Datastore:
        if self._datastore is None:
            path = self._out / f"datastore-{self._digest[:8]}.npz"
            probes = self._options.probes
            self._datastore = Datastore.load_or_build(
                self._loaded, "train", path, probes=probes
            )
            logger.info("datastore: %s states", f"{len(self._datastore):,}")
        return self._datastore

    def _get_gate(self, system: str) -> Gate:
        """Read the gate of a system, or fit it to the validation set."""
        weights, is_adaptive = SYSTEMS[system]
        options = self._options
        path = self._out / (
            f"gate-{self._digest[:8]}.{self._name(system)}"
            f".u{options.updates}.s{options.seed}.pt"
        )
        if path.is_file():
            gate = Gate(
                options.num_neighbors,
                scale=1.0,
                weights=weights,
                is_adaptive=is_adaptive,
            )
            gate.load_state_dict(read_checkpoint(path))
            return gate.eval()
        if self._tokens is None:
            self._tokens = retrieve(
                self._loaded, self._get_datastore(), "valid", options.num_neighbors
            )
        gate = fit_gate(
            self._tokens,
            weights=weights,
            is_adaptive=is_adaptive,
            updates=options.updates,
            seed=options.seed,
        )
        with torch.no_grad():
            before = -self._tokens.gold_log_prob.mean()
            after = mean_loss(gate, self._tokens)
        logger.info("%s: nats per token %.4f, alone %.4f", system, after, before)
        with write_atomically(path, "wb") as stream:
            torch.save(gate.state_dict(), stream)
        return gate
