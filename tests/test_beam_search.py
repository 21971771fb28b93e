"""The search of training against fairseq's own, and the engines against each other."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from typing import Any

import pytest
import torch

BEAM = 3


@pytest.fixture
def settings(task: Any) -> Any:
    from fairseq_plugins.beam.step import BeamSettings

    return BeamSettings(
        beam_size=BEAM,
        pool_size=4 * BEAM,
        max_len=12,
        pad_id=task.target_dictionary.pad(),
        eos_id=task.target_dictionary.eos(),
    )


def run(
    engine: str, model: Any, sample: Any, settings: Any, required: Any, *,
    dropout: bool = False, max_lens: torch.Tensor | None = None,
) -> Any:  # fmt: skip
    from fairseq_plugins.beam.rescore import search_with_gradients
    from fairseq_plugins.beam.search import SearchRequest

    net_input = sample["net_input"]
    masks = shared_dropout(model, len(sample["target"])) if dropout else None
    request = SearchRequest(
        model=model,
        encoder_out=model.encoder(net_input["src_tokens"], net_input["src_lengths"]),
        start_tokens=net_input["prev_output_tokens"][:, 0],
        target=sample["target"],
        settings=settings,
        required=required,
        max_lens=max_lens,
        dropout=masks,
    )
    return search_with_gradients(request, engine)


def shared_dropout(model: Any, batch_size: int) -> Any:
    from fairseq_plugins.beam.adapters import find_adapter
    from fairseq_plugins.beam.adapters.hooks import SharedDropout

    dims = find_adapter(model).dropout_batch_dims(model.decoder)
    return SharedDropout(dims, batch_size=batch_size)


def all_scores(**changes: bool) -> Any:
    from fairseq_plugins.beam.search import RequiredScores

    everything = RequiredScores(gold=True, finished=True, gold_first=True)
    return dataclasses.replace(everything, **changes)


def hypotheses_of(trace: Any, settings: Any, lenpen: float) -> list[list[Any]]:
    """Return (score, tokens) of each sentence's finished hypotheses, best first."""
    from fairseq_plugins.beam.trace import collect_hypotheses

    found = collect_hypotheses(trace, pad_id=settings.pad_id, eos_id=settings.eos_id)
    return [
        sorted(
            (
                (float(score), tokens[:length].tolist())
                for score, tokens, length in zip(scores, rows, lengths)
                if length > 0
            ),
            reverse=True,
        )
        for scores, rows, lengths in zip(
            found.scores(lenpen).detach(), found.tokens, found.lengths
        )
    ]


def generated(model: Any, task: Any, sample: Any, **options: Any) -> list[list[Any]]:
    from fairseq.sequence_generator import SequenceGenerator

    generator = SequenceGenerator([model], task.target_dictionary, **options)
    return [
        [(float(h["score"]), h["tokens"].tolist()) for h in sentence]
        for sentence in generator.generate([model], sample)
    ]


def assert_same_hypotheses(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert [tokens for _, tokens in one] == [tokens for _, tokens in other]
        for (score, _), (expected, _) in zip(one, other):
            assert score == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "beam, lenpen, min_len, max_len",
    [(1, 1.0, 1, 12), (3, 1.0, 1, 12), (5, 0.0, 4, 9), (4, 2.0, 1, 3)],
)
def test_a_hard_search_returns_what_fairseqs_generator_returns(
    arch, beam, lenpen, min_len, max_len,
    make_model, task, sentences, collate, settings,
):  # fmt: skip
    sample, model = collate(sentences), make_model(arch).eval()
    settings = dataclasses.replace(
        settings, beam_size=beam, pool_size=beam + 1, min_len=min_len, max_len=max_len
    )
    with torch.no_grad():
        trace = run(
            "rollout", model, sample, settings, all_scores(gold=False, gold_first=False)
        )
    expected = generated(
        model, task, sample, beam_size=beam, len_penalty=lenpen, min_len=min_len,
        max_len_a=0, max_len_b=max_len,
    )  # fmt: skip
    assert_same_hypotheses(hypotheses_of(trace, settings, lenpen), expected)


def test_no_sentence_goes_beyond_the_limit_of_all_whatever_its_own(
    arch, make_model, task, sentences, collate, settings
):
    sample, model = collate(sentences), make_model(arch).eval()
    settings = dataclasses.replace(settings, max_len=3)
    own = torch.full((len(sentences),), 20)
    required = all_scores(gold=False, gold_first=False)
    with torch.no_grad():
        trace = run("rollout", model, sample, settings, required, max_lens=own)
    expected = generated(
        model, task, sample, beam_size=BEAM, max_len_a=0, max_len_b=3
    )  # fmt: skip
    assert_same_hypotheses(hypotheses_of(trace, settings, 1.0), expected)


@pytest.mark.parametrize("beam", [1, BEAM])
def test_resets_are_the_steps_at_which_gold_would_have_been_pruned(
    arch, beam, make_model, sentences, collate, settings
):
    settings = dataclasses.replace(settings, beam_size=beam, reset_margin=0.0)
    trace = run("rollout", make_model(arch), collate(sentences), settings,
                all_scores(finished=False))  # fmt: skip
    in_pool = (trace.gold >= 0) & (trace.gold < settings.pool_size)
    assert torch.equal(trace.resets, in_pool & ~trace.gold_in_beam)
    assert trace.resets.any() and (in_pool & ~trace.resets).any()


def test_a_sentence_without_any_hypothesis_has_the_largest_risk():
    from fairseq_plugins.beam.losses import minimum_risk, soft_risk
    from fairseq_plugins.beam.trace import Hypotheses

    none = torch.zeros(1, BEAM, dtype=torch.long)
    log_probs = torch.full((1, BEAM), float("-inf"), requires_grad=True)
    found = Hypotheses(none.unsqueeze(-1), none, log_probs, none, none)
    batch: Any = Namespace(
        hypotheses=found,
        costs=torch.ones(1, BEAM),
        num_tokens=torch.tensor([7]),
        options=Namespace(beam_lenpen=1.0, risk_epsilon=0.2, mrt_alpha=0.1),
    )
    risk = soft_risk(batch)
    assert risk.tolist() == minimum_risk(batch).tolist() == [7.0]
    risk.sum().backward()
    assert log_probs.grad.tolist() == [[0.0] * BEAM]


def losses_and_gradients(trace: Any, model: Any, sample: Any, settings: Any) -> Any:
    from fairseq_plugins.beam.costs import Detokenizer
    from fairseq_plugins.beam.losses import LOSSES, SearchedBatch

    options = Namespace(
        survival_epsilon=2.0, risk_epsilon=0.5, mrt_alpha=0.5, bso_margin=1.0,
        beam_lenpen=1.0, beam_cost="gleu", beam_cost_unit="subword",
    )  # fmt: skip
    batch = SearchedBatch(
        trace, sample["target"], options, settings.pad_id, settings.eos_id,
        Detokenizer([""]),
    )  # fmt: skip
    values = {name: loss.function(batch) for name, loss in LOSSES.items()}
    gradients = {}
    parameters = [p for p in model.parameters() if p.requires_grad]
    for name, value in values.items():
        gradients[name] = torch.autograd.grad(
            value.sum(), parameters, retain_graph=True, allow_unused=True
        )
    return values, gradients


def assert_engines_agree(
    model: Any, sample: Any, settings: Any, tolerance: float, *, dropout: bool = False
) -> None:
    """Compare losses to 1e-5, and their gradients to ``tolerance``."""
    results = {}
    for engine in ("rollout", "two-pass"):
        torch.manual_seed(1)
        trace = run(engine, model, sample, settings, all_scores(), dropout=dropout)
        results[engine] = losses_and_gradients(trace, model, sample, settings)
    (values, gradients), (others, other_gradients) = results.values()
    for name, value in values.items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(others[name], value, rtol=1e-5, atol=1e-5)
        scale = max(g.abs().max() for g in gradients[name] if g is not None)
        for one, other in zip(other_gradients[name], gradients[name]):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(
                    one, other, rtol=tolerance, atol=tolerance * scale
                )


@pytest.mark.parametrize("reset_margin", [None, 0.0, 1.0])
def test_both_engines_give_the_same_losses_and_gradients(
    arch, reset_margin, make_model, sentences, collate, settings
):
    settings = dataclasses.replace(settings, reset_margin=reset_margin)
    assert_engines_agree(make_model(arch), collate(sentences), settings, 1e-5)


def test_both_engines_agree_with_dropout_too(
    arch, make_model, sentences, collate, settings
):
    model, sample = make_model(arch, dropout=0.3), collate(sentences)
    assert_engines_agree(model, sample, settings, 1e-5, dropout=True)
    plain = run("two-pass", model.eval(), sample, settings, all_scores())
    dropped = run("two-pass", model, sample, settings, all_scores(), dropout=True)
    assert plain.tokens.shape != dropped.tokens.shape or not torch.equal(
        plain.tokens, dropped.tokens
    )  # the search, too, is with dropout


def test_shared_dropout_treats_slots_with_one_prefix_alike(
    arch, make_model, sentences, collate
):
    from fairseq_plugins.beam.adapters import find_adapter
    from fairseq_plugins.beam.adapters.hooks import evaluation_mode
    from fairseq_plugins.beam.trace import PrefixTree

    sample, model = collate(sentences[:4]), make_model(arch, dropout=0.5)
    net_input = sample["net_input"]
    start = net_input["prev_output_tokens"][:, 0]
    # A root in slot 0, and after it the same token in all three slots.
    node = torch.tensor([[0, -1, -1], [1, 2, 3]]).expand(4, -1, -1)
    tokens = torch.cat([start.unsqueeze(1), torch.full((4, BEAM), 7)], dim=1)
    depths = torch.tensor([0, 1, 1, 1]).expand(4, -1)
    parents, is_node = torch.zeros_like(depths), torch.ones_like(depths).bool()
    tree = PrefixTree(node, tokens, parents, depths, is_node)

    def create_decoder(dropout: Any = None) -> Any:
        return find_adapter(model)(
            model, encoder_out, batch_size=4, beam_size=BEAM, dropout=dropout
        )

    with evaluation_mode(model), torch.no_grad():
        encoder_out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])
        plain = create_decoder().score_tree(tree)
        dropped = create_decoder(shared_dropout(model, 4)).score_tree(tree)
        decoder = create_decoder(shared_dropout(model, 4))
        stepped = decoder.step(decoder.embed(tokens[:, 1:]), 0)
        again = create_decoder().score_tree(tree)
    for features in (dropped[:, 1:], stepped):
        torch.testing.assert_close(features[:, :1].expand_as(features), features)
        assert not torch.allclose(features, plain[:, 1:])
        assert not torch.allclose(features[:1].expand_as(features), features)
    assert torch.equal(again, plain)


def test_gradients_with_shared_dropout_reach_the_whole_model(
    arch, make_model, make_criterion, sentences, collate
):
    for engine in ("rollout", "two-pass"):
        model = make_model(arch, dropout=0.3)
        criterion = make_criterion(
            rho=0.0, beam_loss="risk", beam_dropout="shared", engine=engine
        )
        loss, _, _ = criterion(model, collate(sentences))
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients and all(g.isfinite().all() for g in gradients)
        assert sum(float(g.abs().sum()) for g in gradients) > 0


@pytest.mark.parametrize("engine", ["rollout", "two-pass"])
def test_activation_checkpointing_changes_no_gradient(
    engine, make_model, make_criterion, sentences, collate
):
    gradients = []
    for is_on in (False, True):
        model = make_model("transformer", dropout=0.3, checkpoint_activations=is_on)
        criterion = make_criterion(rho=0.5, beam_loss="risk", engine=engine)
        torch.manual_seed(1)
        criterion(model, collate(sentences))[0].backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
