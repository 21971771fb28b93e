"""A loss, a cost and a decoder family are each added by one registration."""

from __future__ import annotations

from typing import Any, Iterator

import pytest
import torch
from fairseq.models import FairseqIncrementalDecoder

from fairseq_plugins.beam.adapters import (
    ADAPTERS,
    DecoderAdapter,
    find_adapter,
    register_adapter,
)
from fairseq_plugins.beam.costs import COSTS, register_cost
from fairseq_plugins.beam.losses import LOSSES, register_loss
from fairseq_plugins.beam.search import RequiredScores


class GRUDecoder(FairseqIncrementalDecoder):
    """A decoder of a family that the package does not know."""

    def __init__(self, dictionary: Any, width: int) -> None:
        super().__init__(dictionary)
        self.embed_tokens = torch.nn.Embedding(len(dictionary), width)
        self.cell = torch.nn.GRUCell(2 * width, width)
        self.output_projection = torch.nn.Linear(width, len(dictionary))

    def output_layer(self, features: Any, **_: Any) -> Any:
        return self.output_projection(features)

    def extract_features(
        self, tokens: Any, encoder_out: Any = None, incremental_state: Any = None
    ) -> Any:
        source = encoder_out[0].mean(0)  # (rows, width)
        hidden, start = torch.zeros_like(source), 0
        if incremental_state is not None:
            cached = self.get_incremental_state(incremental_state, "hidden") or {}
            hidden, start = cached.get("hidden", hidden), tokens.size(1) - 1
        embedded = self.embed_tokens(tokens[:, start:])
        features = []
        for step in range(embedded.size(1)):
            hidden = self.cell(torch.cat([embedded[:, step], source], -1), hidden)
            features.append(hidden)
        if incremental_state is not None:
            cached = {"hidden": hidden}
            self.set_incremental_state(incremental_state, "hidden", cached)
        return torch.stack(features, 1), None

    def forward(self, prev_output_tokens: Any, encoder_out: Any, **_: Any) -> Any:
        features, _ = self.extract_features(prev_output_tokens, encoder_out)
        return self.output_layer(features), None

    def max_positions(self) -> int:
        return 1000


class GRUAdapter(DecoderAdapter):
    def cached_states(self) -> Iterator[tuple[dict[str, Any], str, int]]:
        cached = self.decoder.get_incremental_state(self.state, "hidden")
        if cached:
            yield cached, "hidden", 0


@pytest.fixture
def gru_model(make_model: Any, task: Any) -> Any:
    torch.manual_seed(1)
    model = make_model("lstm")
    model.decoder = GRUDecoder(task.target_dictionary, 16)
    return model.train()


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget what a test registers."""
    tables: tuple[dict[Any, Any], ...] = (ADAPTERS, COSTS, LOSSES)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before):
        table.clear()
        table.update(entries)


def update(criterion: Any, model: Any, sample: Any) -> dict[str, Any]:
    """Train one update; return the log, after checking that the decoder moved."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.decoder.parameters()]
    optimizer.zero_grad()
    loss, _, logged = criterion(model, sample)
    loss.backward()
    optimizer.step()
    moved = [not torch.equal(*pair) for pair in zip(before, model.decoder.parameters())]
    assert loss.isfinite() and any(moved)
    return logged


def test_a_new_decoder_family_trains_with_both_engines(
    gru_model, registries, make_criterion, sentences, collate
):
    register_adapter(GRUDecoder)(GRUAdapter)
    assert find_adapter(gru_model) is GRUAdapter
    start, sample, losses = gru_model.state_dict(), collate(sentences), []
    start = {name: value.clone() for name, value in start.items()}
    for engine in ("rollout", "two-pass"):
        gru_model.load_state_dict(start)
        criterion = make_criterion(engine=engine, rho=0.0)
        losses.append(update(criterion, gru_model, sample)["beam_loss"])
        losses.append(next(gru_model.decoder.cell.parameters()).detach().clone())
    torch.testing.assert_close(losses[0], losses[2])
    torch.testing.assert_close(losses[1], losses[3])  # after the update


def test_a_new_decoder_family_mixes_hypotheses(
    gru_model, registries, make_criterion, sentences, collate
):
    register_adapter(GRUDecoder)(GRUAdapter)
    criterion = make_criterion(mixing="soft", beam_loss="slot-ce", rho=0.0)
    update(criterion, gru_model, collate(sentences))


def test_a_registered_loss_is_an_option_and_trains(
    arch, registries, make_model, make_criterion, sentences, collate
):
    @register_loss("toy", RequiredScores(finished=True))
    def longest_hypothesis(batch: Any) -> torch.Tensor:
        return -batch.hypotheses.log_probs.amin(-1).clamp_min(-1e4)

    criterion = make_criterion(beam_loss="toy=2,risk=1", rho=0.0)
    assert update(criterion, make_model(arch), collate(sentences))["beam_loss"] > 0


def test_a_registered_cost_is_an_option_and_trains(
    arch, registries, make_model, make_criterion, sentences, collate
):
    @register_cost("toy")
    def is_other_length(ours: Any, references: Any, pad: int) -> torch.Tensor:
        lengths = ours.ne(pad).sum(-1), references.ne(pad).sum(-1)
        return lengths[0].ne(lengths[1]).float()

    criterion = make_criterion(beam_cost="toy", rho=0.0)
    logged = update(criterion, make_model(arch), collate(sentences))
    assert 0 < logged["cost"] <= sum(len(s["target"]) for s in sentences)
