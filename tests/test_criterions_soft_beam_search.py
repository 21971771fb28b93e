"""The criterion ``soft_beam_search`` on real fairseq models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT

OPTIONS = {
    # At the paper's epsilon of 0.1 a gradient through many soft selections is so steep
    # that rounding shows in it.
    "paper": dict(mixing="soft", beam_loss="slot-ce", epsilon=1.0),
    "straight-through": dict(mixing="straight-through", beam_loss="survival"),
    "reset": dict(
        mixing="straight-through",
        beam_loss="survival=1,slot-ce=0.5",
        reset_to_gold=True,
    ),
    "risk": dict(beam_loss="risk", beam_cost="edit"),
    "rollout": dict(
        beam_loss="risk=1,survival=0.1", engine="rollout", beam_cost_unit="word"
    ),
    "mrt": dict(beam_loss="mrt", beam_cost="chrf"),
    "bso": dict(beam_loss="bso"),
}
option_sets = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


def loss_and_gradients(criterion: Any, model: Any, sample: Any) -> tuple[Any, Any]:
    model.zero_grad()
    torch.manual_seed(5)
    loss, _, logged = criterion(model, sample)
    loss.backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return logged, gradients


def cross_entropy(task: Any, label_smoothing: float) -> Any:
    from fairseq.criterions.label_smoothed_cross_entropy import (
        LabelSmoothedCrossEntropyCriterion,
    )

    return LabelSmoothedCrossEntropyCriterion(task, False, label_smoothing).train()


def test_rho_1_is_exactly_label_smoothed_cross_entropy(
    arch, task, make_model, make_criterion, sentences, collate
):
    sample, model = collate(sentences), make_model(arch, dropout=0.3)
    ours = make_criterion(rho=1.0, label_smoothing=0.1)
    logged, gradients = loss_and_gradients(ours, model, sample)
    expected_logged, expected = loss_and_gradients(
        cross_entropy(task, 0.1), model, sample
    )
    assert {name: float(value) for name, value in logged.items()} == {
        name: float(value) for name, value in expected_logged.items()
    }
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(gradients[name], value), name


def test_evaluation_reports_the_cross_entropy_whatever_rho(
    arch, task, make_model, make_criterion, sentences, collate
):
    sample, model = collate(sentences), make_model(arch).eval()
    with torch.no_grad():
        loss, size, logged = make_criterion(rho=0.2, label_smoothing=0.1).eval()(
            model, sample
        )
        expected, expected_size, _ = cross_entropy(task, 0.1).eval()(model, sample)
    assert torch.equal(loss, expected) and size == expected_size
    assert "beam_loss" not in logged


@option_sets
def test_total_is_the_mixture_of_both_logged_losses(
    arch, options, make_model, make_criterion, sentences, collate
):
    criterion = make_criterion(rho=0.3, **options)
    logged, _ = loss_and_gradients(criterion, make_model(arch), collate(sentences))
    torch.testing.assert_close(
        logged["loss"], 0.3 * logged["ce_loss"] + 0.7 * logged["beam_loss"]
    )


@option_sets
def test_padding_order_and_split_of_a_batch_change_nothing(
    arch, options, make_model, make_criterion, task, sentences, collate
):
    model, criterion = make_model(arch), make_criterion(rho=0.3, **options)
    whole, gradients = loss_and_gradients(criterion, model, collate(sentences))
    # fairseq's LSTM encoder takes no source padding beyond the longest sentence.
    padding = {"source": None if arch == "lstm" else 20, "target": 20}
    padded = task.dataset("train").collater(sentences[::-1], pad_to_length=padding)
    # The order within a batch is fairseq's own (longest source first), so reversing
    # the list moves only sentences of equal length.
    for parts in ([padded], [collate([sentence]) for sentence in sentences]):
        sums = {name: 0.0 for name in ("beam_loss", "gold_in_beam", "distinct")}
        total = {name: torch.zeros_like(value) for name, value in gradients.items()}
        for sample in parts:
            logged, part_gradients = loss_and_gradients(criterion, model, sample)
            for name in sums:
                sums[name] += float(logged[name])
            for name, value in part_gradients.items():
                total[name] += value
        assert sums["beam_loss"] == pytest.approx(float(whole["beam_loss"]), rel=1e-4)
        for name in ("gold_in_beam", "distinct"):
            assert sums[name] == float(whole[name])
        scale = max(float(value.abs().max()) for value in gradients.values())
        for name, value in gradients.items():
            torch.testing.assert_close(total[name], value, rtol=1e-2, atol=1e-4 * scale)


@option_sets
def test_gradients_of_the_beam_loss_reach_every_parameter(
    arch, options, make_model, make_criterion, sentences, collate
):
    model = make_model(arch)
    criterion = make_criterion(rho=0.0, **options)
    _, gradients = loss_and_gradients(criterion, model, collate(sentences))
    for name, _ in model.named_parameters():
        assert gradients[name].isfinite().all(), name
        # A Transformer's key bias shifts all of a query's scores alike: no gradient.
        if not name.endswith("k_proj.bias"):
            assert gradients[name].abs().max() > 0, name


@option_sets
@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_gives_the_losses_of_float32_to_its_precision(
    arch, dtype, error, options, make_model, make_criterion, sentences, collate
):
    criterion, sample = make_criterion(rho=0.5, **options), collate(sentences)
    logged, _ = loss_and_gradients(criterion, make_model(arch), sample)
    rounded, gradients = loss_and_gradients(
        criterion, make_model(arch).to(dtype), sample
    )
    assert rounded["loss"] == pytest.approx(float(logged["loss"]), rel=error)
    assert all(g.isfinite().all() for g in gradients.values())


@option_sets
def test_autocast_gives_the_gradients_of_float32_to_its_precision(
    arch, options, make_model, make_criterion, sentences, collate
):
    criterion, sample = make_criterion(rho=0.5, **options), collate(sentences)
    found = []
    for is_on in (False, True):
        model = make_model(arch)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            loss = criterion(model, sample)[0]
        loss.backward()  # outside, as fairseq does with `--amp`
        gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        found.append(torch.cat(gradients))
    assert torch.cosine_similarity(*found, dim=0) > 0.95


@pytest.mark.parametrize("scale", [1024.0, 2.0**-10, 0.0])
@option_sets
def test_gradients_are_in_proportion_to_the_scale_of_the_loss(
    arch, scale, options, make_model, make_criterion, sentences, collate
):
    # Half precision multiplies the loss, and a batch of padding counts for nothing:
    # what is clipped must not depend on it.
    criterion, sample = make_criterion(rho=0.5, **options), collate(sentences)
    model = make_model(arch)
    _, expected = loss_and_gradients(criterion, model, sample)
    model.zero_grad()
    (scale * criterion(model, sample)[0]).backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            wanted = scale * expected[name]
            error = 1e-4 * float(wanted.abs().max())
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=error)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_with_autocast_a_straight_through_search_is_still_the_hard_one(
    dtype, make_model, make_criterion, sentences, collate
):
    sample, losses = collate(sentences), []
    for mixing in ("hard", "straight-through"):
        criterion = make_criterion(
            beam_loss="mrt", mixing=mixing, engine="rollout", beam_dropout="none"
        )
        with torch.autocast("cpu", dtype):
            losses.append(criterion(make_model("transformer"), sample)[2]["beam_loss"])
    assert torch.equal(*losses)


def test_a_search_leaves_every_module_in_its_mode(
    arch, make_model, make_criterion, sentences, collate
):
    model = make_model(arch, dropout=0.2)
    frozen = model.decoder.embed_tokens.eval()  # somebody's own choice
    before = {name: part.training for name, part in model.named_modules()}
    make_criterion(rho=0.5)(model, collate(sentences))
    assert {name: part.training for name, part in model.named_modules()} == before
    assert not frozen.training and not model.encoder._forward_hooks


def test_modes_and_hooks_are_restored_when_a_search_fails(
    arch, make_model, make_criterion, sentences, collate, monkeypatch
):
    from fairseq_plugins.beam import search as module

    def out_of_memory(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "expand", out_of_memory)
    model = make_model(arch, dropout=0.2)
    with pytest.raises(RuntimeError, match="out of memory"):
        make_criterion(rho=0.5)(model, collate(sentences))
    assert all(part.training for part in model.modules())
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize("dropout", ["none", "shared"])
def test_the_decoders_dropout_is_in_the_beam_loss_where_asked_for(
    arch, dropout, make_model, make_criterion, sentences, collate
):
    sample, model = collate(sentences), make_model(arch, dropout=0.0)
    # Dropout in the decoder only: the encoder must not be what makes the difference.
    for part in model.decoder.modules():
        if hasattr(part, "p"):
            part.p = 0.5
    criterion = make_criterion(rho=0.5, beam_dropout=dropout)
    searches = [loss_and_gradients(criterion, model, sample)[0] for _ in range(2)]
    torch.manual_seed(9)
    other = criterion(model, sample)[2]
    is_same = torch.equal(searches[0]["beam_loss"], other["beam_loss"])
    assert is_same == (dropout == "none")
    assert not torch.equal(searches[0]["ce_loss"], other["ce_loss"])


@pytest.mark.parametrize("reset_to_gold", [False, True])
def test_rates_are_shares_and_every_hypothesis_of_a_hard_beam_differs(
    arch, reset_to_gold, make_model, make_criterion, sentences, collate
):
    from fairseq.logging import metrics

    criterion = make_criterion(beam_loss="survival", reset_to_gold=reset_to_gold)
    logged, _ = loss_and_gradients(criterion, make_model(arch), collate(sentences))
    with metrics.aggregate() as aggregator:
        type(criterion).reduce_metrics([logged, logged])
        values = aggregator.get_smoothed_values()
    assert 0 < values["gold_in_beam"] < 1
    assert values["distinct"] == 1
    assert values["epsilon"] == pytest.approx(2.0)
    assert values["beam_loss"] > 0 and values["ce_loss"] > 0


def test_epsilon_follows_the_number_of_updates_that_the_task_is_told(
    make_model, make_criterion, sentences, collate, task, monkeypatch
):
    monkeypatch.setattr(task, "train_step", task.train_step)  # undone afterwards
    criterion = make_criterion(
        mixing="soft", beam_loss="slot-ce",
        epsilon=1.0, epsilon_end=0.01, epsilon_updates=10,
    )  # fmt: skip
    model, optimizer = make_model("lstm"), SimpleNamespace(backward=lambda loss: None)
    seen = []
    for update in (0, 5, 10, 50):
        task.train_step(
            sample=collate(sentences), model=model, criterion=criterion,
            optimizer=optimizer, update_num=update,
        )  # fmt: skip
        seen.append(criterion.epsilon)
    assert seen == pytest.approx([1.0, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(rho=1.5), r"`--rho` must be between 0 and 1, but is 1.5"),
        (dict(beam=0), r"`--beam` must be at least 1, but is 0"),
        (dict(epsilon=0.0), r"`--epsilon` must be positive and finite, but is 0.0"),
        (dict(epsilon_end=0.0), r"`--epsilon-end` must be positive and finite"),
        (dict(pool_size=5), r"`--pool-size` must be above the beam \(5\)"),
        (dict(pool_size=99), r"`--pool-size` must be above .* at most 38, .* is 99"),
        (dict(beam=40), r"`--beam` must be below 38, the size .*, but is 40"),
        (dict(beam_start=0), r"`--beam-start` must be at least 1, but is 0"),
        (dict(beam_max_len_a=-1.0), r"`--beam-max-len-a` must be 0 or more"),
        (dict(beam_cost="bleux"), r"`--beam-cost` must be one of bleu, gleu, chrf, ed"),
        (dict(beam=1), r"`--beam` must be at least 2 with risk: one"),
        (dict(beam_start=1, beam_updates=9), r"`--beam-start` must be at least 2 with"),
        (dict(beam_start=2), r"`--beam-updates` must be positive, .* `--beam-start`"),
        (
            dict(mixing="soft", epsilon_end=0.1),
            r"`--epsilon-updates` must be positive, .* `--epsilon-end`",
        ),
        (
            dict(epsilon_end=0.1, epsilon_updates=9),
            r"`--epsilon-end` must be left out with hard mixing",
        ),
        (dict(beam_min_len=12), r"`--beam-min-len` must be at most 11.5, the longest"),
        (dict(risk_epsilon=0.0), r"`--risk-epsilon` must be positive and finite"),
        (
            dict(engine="two-pass", mixing="soft"),
            r"`--engine` must be rollout unless mixing is hard, but is two-pass",
        ),
        (
            dict(beam_loss="risk,bso"),
            r"`--beam-loss` must be without risk when the beam is reset",
        ),
        (dict(ignore_prefix_size=1), r"`--ignore-prefix-size` must be 0, but is 1"),
        (dict(beam_loss="survivel"), r"has `survivel`. Did you mean `survival`\?"),
        (dict(beam_loss="survival=-1"), r"give `survival` a positive weight"),
        (dict(beam_loss="survival,survival"), r"name `survival` only once"),
    ],
)
def test_a_bad_option_is_named_with_its_rule_and_value(
    options, message, make_criterion
):
    with pytest.raises(ValueError, match=message):
        make_criterion(**options)


def test_a_model_whose_state_it_cannot_mix_is_refused(
    make_model, make_criterion, sentences, collate
):
    model = make_model("lstm")
    model.decoder = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="LSTMDecoder or .* but is Linear"):
        make_criterion()(model, collate(sentences))


def test_a_language_model_is_refused_by_what_it_lacks(
    make_model, make_criterion, sentences, collate
):
    from fairseq.models import FairseqLanguageModel

    model = FairseqLanguageModel(make_model("transformer").decoder)
    with pytest.raises(ValueError, match="FairseqLanguageModel has no encoder"):
        make_criterion()(model, collate(sentences))


def test_the_document_of_the_options_is_up_to_date():
    from fairseq_plugins.criterions.options import format_options

    assert (ROOT / "docs" / "options.md").read_text() == format_options()


def test_a_loss_per_token_is_refused_in_training(
    make_model, make_criterion, sentences, collate
):
    sample, criterion = collate(sentences), make_criterion()
    with pytest.raises(ValueError, match="`reduce` must be true in training"):
        criterion(make_model("lstm"), sample, reduce=False)
    loss, _, _ = criterion.eval()(make_model("lstm").eval(), sample, reduce=False)
    assert loss.numel() == sample["target"].numel()


def test_the_default_pool_fits_a_tiny_dictionary(task, make_criterion, monkeypatch):
    from fairseq.data import Dictionary

    tiny = Dictionary()
    for word in "abcdefghi":
        tiny.add_symbol(word)
    monkeypatch.setattr(task, "tgt_dict", tiny)
    assert len(tiny) == 13
    assert make_criterion().pool_size == 11
    with pytest.raises(ValueError, match="`--beam` must be below 11, .* but is 11"):
        make_criterion(beam=11)


@pytest.mark.parametrize("mixing", ["soft", "straight-through"])
@pytest.mark.parametrize("beam_loss", ["risk", "mrt", "slot-ce"])
def test_the_reference_has_no_effect_on_the_search_of_losses_that_do_not_follow_it(
    mixing, beam_loss, make_model, make_criterion, sentences, collate, monkeypatch
):
    from fairseq_plugins.criterions import soft_beam_search as module

    searches = []
    search = module.search_with_gradients

    def record(*args: Any) -> Any:
        searches.append(search(*args))
        return searches[-1]

    monkeypatch.setattr(module, "search_with_gradients", record)
    options = dict(mixing=mixing, beam_loss=beam_loss, pool_size=6, epsilon=5.0)
    criterion = make_criterion(beam_dropout="none", **options)
    for is_other in (False, True):
        sample = collate(sentences)
        if is_other:  # another reference of the same length
            is_word = sample["target"] > 3
            sample["target"][is_word] = 4 + (sample["target"][is_word] + 7) % 30
        criterion(make_model("transformer"), sample)
    one, other = searches
    assert torch.equal(one.pool, other.pool) and torch.equal(one.held, other.held)


def test_the_reference_stays_a_candidate_for_losses_that_follow_it(
    make_model, make_criterion, sentences, collate
):
    model, sample = make_model("transformer"), collate(sentences)
    logged = [
        make_criterion(
            mixing="soft", beam_loss=beam_loss, pool_size=6, epsilon=5.0,
            beam_dropout="none",
        )(model, sample)[2]["cost"]
        for beam_loss in ("risk", "risk=1,survival=1e-9")
    ]  # fmt: skip
    assert logged[0] != logged[1]
