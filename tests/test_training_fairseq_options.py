"""Options are checked against fairseq's own parser before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from fairseq_plugins.training.fairseq_options import build_arguments, list_options
from fairseq_plugins.utils.errors import UserError

BASE = {
    "arch": "lstm",
    "criterion": "label_smoothed_cross_entropy",
    "optimizer": "adam",
    "max_tokens": 100,
}


def arguments(**options: Any) -> list[str]:
    """Return what these options add to the base."""
    return build_arguments({**BASE, **options})[2 * len(BASE) :]


def test_the_base_is_written_in_its_order() -> None:
    assert build_arguments(BASE) == [
        "--arch", "lstm", "--criterion", "label_smoothed_cross_entropy",
        "--optimizer", "adam", "--max-tokens", "100",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("label_smoothing", 0.1, ["--label-smoothing", "0.1"]),  # the criterion's
        ("encoder_layers", 2, ["--encoder-layers", "2"]),  # the architecture's
        ("adam_betas", "(0.9, 0.98)", ["--adam-betas", "(0.9, 0.98)"]),
        ("lr", [0.5, 0.25], ["--lr", "[0.5, 0.25]"]),
        ("lr", "1e-3", ["--lr", "1e-3"]),
        ("stop_min_lr", -1, ["--stop-min-lr=-1"]),
        ("no_epoch_checkpoints", True, ["--no-epoch-checkpoints"]),
        ("no_epoch_checkpoints", False, []),
        # A flag whose default is true switches off.
        ("left_pad_source", False, ["--left-pad-source"]),
        ("left_pad_source", True, []),
        ("decoder_attention", True, ["--decoder-attention", "True"]),
        ("eval_bleu_remove_bpe", True, ["--eval-bleu-remove-bpe"]),
        (
            "eval_bleu_remove_bpe",
            "sentencepiece",
            ["--eval-bleu-remove-bpe", "sentencepiece"],
        ),
        ("eval_bleu_args", {"beam": 4}, ["--eval-bleu-args", '{"beam": 4}']),
    ],
)
def test_a_value_is_written_as_fairseq_reads_it(
    key: str, value: Any, expected: list[str]
) -> None:
    assert arguments(**{key: value}) == expected


def test_the_listed_options_have_the_defaults_of_their_architecture() -> None:
    listed = list_options({"arch": "transformer_iwslt_de_en"})
    assert "  encoder_attention_heads: 4\n" in listed
    assert "  beam_loss: risk\n      one of " in listed
    with pytest.raises(UserError, match="Did you mean `lstm`"):
        list_options({"arch": "lstmm"})


def test_the_options_of_this_plug_in_are_known() -> None:
    written = arguments(criterion="soft_beam_search", rho=0.5)
    assert written == ["--rho", "0.5"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lable_smoothing": 0.1}, "unknown key `lable_smoothing`. Did you mean "
         "`label_smoothing`?"),
        ({"strat_from": "x"}, "unknown key `strat_from`. Did you mean `start_from`?"),
        ({"rho": 1}, "unknown key `rho`. fairseq-train has no such option with this "
         "`arch`, `criterion`"),
        ({"arch": "lstn"}, "`arch` must be one of fairseq's"),
        ({"arch": "lstn"}, "but is `lstn`. Did you mean `lstm`?"),
        ({"criterion": "soft_beam_serch"}, "Did you mean `soft_beam_search`?"),
        ({"log_format": "xml"}, "must be one of `json`, `none`, `simple`, `tqdm`, but "
         "is `xml`"),
        ({"max_update": "1e3"}, "`max_update` must be a whole number, but is `1e3`."),
        ({"clip_norm": "much"}, "`clip_norm` must be a number, but is `much`."),
        ({"lr": "fast"}, "`lr` must be a number, or a list such as"),
        ({"fp16": 1}, "`fp16` must be true or false, but is `1`."),
        ({"max_update": True}, "`max_update` must be a whole number, but is `true`."),
        # In YAML an unquoted no, such as Norwegian, is false.
        ({"source_lang": False}, "`source_lang` must be text, but is `false`. YAML"),
        ({"save_dir": "x"}, "`save_dir` must not be given: it is always"),
        ({"user_dir": "x"}, "`user_dir` must not be given"),
        ({"finetune_from_model": "x"}, "use `start_from`"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named_with_the_rule(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        build_arguments({**BASE, **options}, also_known=["start_from"])
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["arch", "optimizer", "max_tokens"])
def test_an_option_that_fairseq_requires_must_be_given(key: str) -> None:
    options = {name: value for name, value in BASE.items() if name != key}
    with pytest.raises(UserError, match=f"`{key}`.* must be given"):
        build_arguments(options)
