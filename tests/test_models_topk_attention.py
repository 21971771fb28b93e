"""Top-k attention in fairseq's models, on a real task."""

from __future__ import annotations

import copy
from argparse import Namespace
from typing import Any

import pytest
import torch
from conftest import _build

from fairseq_plugins.models.topk_attention import TopkMultiheadAttention

ALL = {"transformer_topk": "cross,decoder,encoder", "lstm_topk": "cross"}
KINDS = {
    "soft": dict(topk_k=2.5, topk_epsilon=0.7),
    "hard": dict(topk_operator="hard", topk_k=3),
    "learned": dict(topk_k=2.5, topk_learn="both"),
}
kinds = pytest.mark.parametrize("options", KINDS.values(), ids=list(KINDS))


@pytest.fixture(params=list(ALL))
def topk_arch(request: pytest.FixtureRequest) -> str:
    return request.param


def output(model: Any, sample: Any) -> torch.Tensor:
    return model(**sample["net_input"])[0]


@pytest.mark.parametrize("beyond", [0, 7])
def test_k_at_or_above_the_length_is_the_plain_model_bit_for_bit(
    topk_arch, beyond, make_model, sentences, collate
):
    sample = collate(sentences)
    longest = sample["net_input"]["src_tokens"].size(1)
    options = dict(topk_k=longest + beyond, topk_attentions=ALL[topk_arch])
    plain = make_model(topk_arch.removesuffix("_topk"))
    ours = make_model(topk_arch, **options)
    results = []
    for model in (plain, ours):
        loss = output(model, sample).square().mean()
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters()]))
    (expected, expected_grads), (found, grads) = results
    assert torch.equal(found, expected)
    assert all(map(torch.equal, grads, expected_grads))


def test_a_smaller_k_changes_the_output(topk_arch, make_model, sentences, collate):
    sample = collate(sentences)
    plain = output(make_model(topk_arch.removesuffix("_topk")), sample)
    assert not torch.allclose(output(make_model(topk_arch, topk_k=2), sample), plain)


@kinds
def test_padding_changes_nothing(topk_arch, options, make_model, task, sentences):
    model = make_model(topk_arch, topk_attentions=ALL[topk_arch], **options).eval()
    # fairseq's LSTM takes no source padding beyond the longest sentence.
    dataset = task.dataset("train")
    items = sorted(sentences, key=lambda item: -len(item["source"]))
    alone = [dataset.collater([item]) for item in items]
    together = dataset.collater(items, pad_to_length={"source": None, "target": 20})
    outputs = output(model, together)
    for row, item, sample in zip(outputs, items, alone, strict=True):
        expected = output(model, sample)[0]
        torch.testing.assert_close(row[: len(expected)], expected, rtol=0, atol=1e-5)


@kinds
def test_later_words_do_not_influence_earlier_ones(
    options, make_model, sentences, collate
):
    model = make_model("transformer_topk", topk_attentions="decoder", **options).eval()
    sample = collate(sentences)
    before = output(model, sample)
    changed = sample["net_input"]["prev_output_tokens"]
    changed[:, 3:] = changed[:, 3:].flip(0)
    torch.testing.assert_close(output(model, sample)[:, :3], before[:, :3])


@kinds
def test_incremental_decoding_equals_parallel_decoding(
    topk_arch, options, make_model, sentences, collate
):
    model = make_model(topk_arch, topk_attentions=ALL[topk_arch], **options).eval()
    net_input = collate(sentences)["net_input"]
    tokens = net_input["prev_output_tokens"]
    encoder_out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])
    expected, _ = model.decoder(tokens, encoder_out=encoder_out)
    state: dict[str, Any] = {}
    steps = [
        model.decoder(tokens[:, :end], encoder_out=encoder_out, incremental_state=state)
        for end in range(1, tokens.size(1) + 1)
    ]
    found = torch.cat([step[0] for step in steps], dim=1)
    is_word = tokens.ne(model.decoder.dictionary.pad())
    difference = (found - expected)[is_word].abs().max()
    assert difference < 1e-5


@kinds
def test_returned_weights_are_those_of_the_operator(
    options, make_model, sentences, collate
):
    model = make_model("transformer_topk", topk_layers="-1", **options).eval()
    sample = collate(sentences)
    _, extra = model(**sample["net_input"])
    weights = extra["attn"][0]  # mean over heads, (B, T, S)
    padding = sample["net_input"]["src_tokens"].eq(model.encoder.padding_idx)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    assert not weights.masked_select(padding.unsqueeze(1)).any()
    if options.get("topk_operator") == "hard":
        heads = model.decoder.layers[-1].encoder_attn.num_heads
        assert (weights > 0).sum(-1).max() <= 3 * heads


LAYERDROP = dict(encoder_layerdrop=0.9, decoder_layerdrop=0.9)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, ["decoder.layers.0.encoder_attn", "decoder.layers.1.encoder_attn"]),
        (
            dict(topk_attentions="encoder", topk_layers="-1"),
            ["encoder.layers.1.self_attn"],
        ),
        (
            dict(topk_attentions="decoder, cross", topk_layers="0"),
            ["decoder.layers.0.encoder_attn", "decoder.layers.0.self_attn"],
        ),
        (
            dict(topk_attentions="cross,decoder,encoder", **LAYERDROP),
            [
                *(f"decoder.layers.{n}.encoder_attn" for n in range(2)),
                *(f"decoder.layers.{n}.self_attn" for n in range(2)),
                *(f"encoder.layers.{n}.self_attn" for n in range(2)),
            ],
        ),
    ],
    ids=["default", "one-layer", "two-attentions", "layerdrop"],
)
def test_exactly_the_named_attentions_are_replaced(options, expected, make_model):
    model = make_model("transformer_topk", **options)
    modules = model.named_modules()
    replaced = [name for name, m in modules if isinstance(m, TopkMultiheadAttention)]
    assert sorted(replaced) == sorted(expected)


def test_parameters_keep_names_order_and_random_numbers_of_the_plain_model(
    task, topk_arch
):
    plain = _build(task, topk_arch.removesuffix("_topk"))
    after_plain = torch.get_rng_state()
    ours = _build(task, topk_arch, topk_attentions=ALL[topk_arch])
    assert torch.equal(torch.get_rng_state(), after_plain)
    assert list(plain.state_dict()) == list(ours.state_dict())
    # The order of the parameters decides whether an optimizer's state fits.
    expected, found = list(plain.named_parameters()), list(ours.named_parameters())
    assert [name for name, _ in expected] == [name for name, _ in found]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(expected, found))


LEARNED = ["topk.log_epsilon", "topk.log_k_above_1"]


@pytest.mark.parametrize(
    "arch, attention, options, added",
    [
        ("transformer_topk", "encoder_attn", dict(topk_learn="both"), LEARNED),
        ("transformer_topk", "encoder_attn", dict(topk_updates=5), ["topk.updates"]),
        ("lstm_topk", "attention", dict(topk_learn="both"), LEARNED),
    ],
)
def test_names_that_a_checkpoint_gains_are_stable(
    arch, attention, options, added, task
):
    plain = _build(task, arch.removesuffix("_topk")).state_dict()
    ours = _build(task, arch, **options).state_dict()
    layers = [""] if arch == "lstm_topk" else ["layers.0.", "layers.1."]
    assert ours.keys() - plain.keys() == {
        f"decoder.{layer}{attention}.{name}" for layer in layers for name in added
    }


def test_learning_moves_k_and_epsilon_of_every_head(make_model, sentences, collate):
    model = make_model("transformer_topk", topk_k=2.5, topk_learn="both")
    output(model, collate(sentences)).square().mean().backward()
    for layer in model.decoder.layers:
        topk = layer.encoder_attn.topk
        assert topk.k.shape == topk.epsilon.shape == (layer.encoder_attn.num_heads,)
        assert (topk.log_epsilon.grad != 0).all()
        assert (topk.log_k_above_1.grad != 0).all()


def test_a_schedule_continues_in_a_loaded_checkpoint(make_model):
    options = dict(
        topk_k=8.0, topk_k_end=2.0, topk_epsilon=4.0, topk_epsilon_end=0.25,
        topk_updates=10,
    )  # fmt: skip
    model = make_model("transformer_topk", **options)  # from a plain checkpoint
    topk = model.decoder.layers[0].encoder_attn.topk
    assert (topk.k, topk.epsilon) == (8.0, 4.0)
    model.set_num_updates(5)
    assert topk.k == pytest.approx(4.0) and topk.epsilon == pytest.approx(1.0)
    again = make_model("transformer_topk", **options)
    again.load_state_dict(copy.deepcopy(model.half().state_dict()))
    topk = again.decoder.layers[1].encoder_attn.topk
    assert topk.k == pytest.approx(4.0) and topk.epsilon == pytest.approx(1.0)
    again.set_num_updates(99)
    assert topk.k == pytest.approx(2.0) and topk.epsilon == pytest.approx(0.25)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains(topk_arch, dtype, make_model, sentences, collate):
    model = make_model(topk_arch, topk_k=2, topk_attentions=ALL[topk_arch]).to(dtype)
    output(model, collate(sentences)).float().square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_entmax_gives_exact_zeros(make_model, sentences, collate):
    pytest.importorskip("entmax")
    model = make_model("transformer_topk", topk_operator="entmax15").eval()
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.encoder_attn.q_proj.weight *= 5
    _, extra = model(**collate(sentences)["net_input"])
    weights = extra["attn"][0]
    assert (weights == 0).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(topk_k=0), "`--topk-k` must be positive, but is 0.0"),
        (dict(topk_epsilon=-1), "`--topk-epsilon` must be positive, but is -1.0"),
        (dict(topk_k=2.5, topk_operator="hard"), "`--topk-k` must be whole when"),
        (dict(topk_k_end=2), "`--topk-updates` must be above 0 when k or epsilon"),
        (dict(topk_learn="k", topk_operator="hard"), "`--topk-learn` must be none"),
        (dict(topk_learn="k", topk_updates=5), "`--topk-learn` must be none with a"),
        (dict(topk_learn="k", topk_k=1), "`--topk-k` must be above 1 when it is"),
        (dict(topk_attentions="cros"), "has `cros`. Did you mean `cross`?"),
        (dict(topk_layers="last"), "`--topk-layers` must be `all` or numbers"),
        (
            dict(topk_layers="7"),
            "`--topk-layers` must name an existing layer, but is 7",
        ),
    ],
)
def test_a_bad_option_is_named_with_its_rule_and_value(options, message, task):
    with pytest.raises(ValueError) as error:
        _build(task, "transformer_topk", **options)
    assert message in str(error.value)


def test_an_lstm_has_one_attention_only(task):
    with pytest.raises(ValueError, match="`--topk-attentions` must be cross"):
        _build(task, "lstm_topk", topk_attentions="decoder")
    with pytest.raises(ValueError, match="`--decoder-attention` must be on"):
        _build(task, "lstm_topk", decoder_attention="0")


@pytest.mark.parametrize("preset", ["", "_iwslt_de_en", "_wmt_en_de", "_wmt_en_de_big"])
def test_presets_are_those_of_the_plain_transformer(preset, task):
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY

    plain, ours = Namespace(), Namespace()
    ARCH_CONFIG_REGISTRY[f"transformer{preset}"](plain)
    ARCH_CONFIG_REGISTRY[f"transformer_topk{preset}"](ours)
    assert ARCH_MODEL_NAME_REGISTRY[f"transformer_topk{preset}"] == "transformer_topk"
    extra = {k: v for k, v in vars(ours).items() if not k.startswith("topk_")}
    assert extra == vars(plain)
