"""The WMT configurations: on a tiny slice, and against the published settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from fairseq_plugins.training.config import read_config
from fairseq_plugins.training.launch import build_command

CONFIGS = {path.stem: path for path in sorted((ROOT / "configs").glob("wmt*.yaml"))}
BASELINES = [name for name in CONFIGS if f"{name}_control" in CONFIGS]
LSTM = {
    "encoder_embed_dim": 12, "encoder_hidden_size": 20, "decoder_embed_dim": 12,
    "decoder_hidden_size": 20, "decoder_out_embed_dim": 10,
}  # fmt: skip
TRANSFORMER = {
    "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32, "encoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 32,
    "decoder_layers": 2, "decoder_attention_heads": 2,
}  # fmt: skip


def read(name: str) -> dict[str, Any]:
    return read_config(CONFIGS[name])


def differing(one: str, other: str) -> set[str]:
    a, b = read(one), read(other)
    return {key for key in a | b if a.get(key) != b.get(key)}


def test_each_task_has_its_systems() -> None:
    assert BASELINES == [
        "wmt14_en_de_base", "wmt14_en_de_big", "wmt14_en_fr_base", "wmt14_en_fr_big",
        "wmt14_en_fr_lstm", "wmt16_en_de_base", "wmt16_en_de_big",
    ]  # fmt: skip
    for baseline in BASELINES:
        for system in ("control", "soft_beam"):
            config = read(f"{baseline}_{system}")
            run = Path(read(baseline)["run"])
            assert Path(config["start_from"]).is_relative_to(run)
            assert config["data"] == read(baseline)["data"]
            assert config["arch"] == read(baseline)["arch"]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_trains_on_a_tiny_slice(
    name: str, task: object, tiny_data: Path, tmp_path: Path
) -> None:
    """One update through fairseq's own parser, trainer and checkpoints."""
    import fairseq_cli.train
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    config = read(name)
    for key in ("start_from", "bf16", "warmup_updates"):
        config.pop(key, None)
    sizes = LSTM if config["arch"] == "lstm" else TRANSFORMER
    config.update(
        sizes, data=str(tiny_data), run=str(tmp_path), cpu=True, num_workers=0,
        max_tokens=100, batches_per_update=1, max_update=1, save_interval_updates=1,
        lr_scheduler="fixed", warmup_init_lr=None, total_num_update=None,
    )  # fmt: skip
    config = {key: value for key, value in config.items() if value is not None}
    command = build_command(config)
    arguments = command[command.index("fairseq_cli.train") + 1 :]
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, arguments)
    fairseq_cli.train.main(convert_namespace_to_omegaconf(args))
    saved = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {"checkpoint_1_1.pt", "checkpoint_last.pt"} <= saved


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_have_the_published_schedule_and_batch(name: str) -> None:
    config = read(name)
    assert config["label_smoothing"] == 0.1
    assert config["adam_betas"] == "(0.9,0.98)"
    batch = config["max_tokens"] * config["batches_per_update"]
    if name.endswith("lstm"):
        return
    if name == "wmt16_en_de_big":  # Ott et al. (2018), section 4: 128 GPUs, lr 0.001
        assert batch == 3584 * 128 and float(config["lr"]) == 1e-3
    else:  # Vaswani et al. (2017), section 5: 25,000 tokens, equation 3
        width = 1024 if "big" in name else 512
        peak = width**-0.5 * config["warmup_updates"] ** -0.5
        assert float(config["lr"]) == pytest.approx(peak, rel=0.02)
        assert 25_000 <= batch <= 33_000  # padding counts here
        assert config["max_update"] == (300_000 if "big" in name else 100_000)
    assert config["dropout"] == (0.3 if name.endswith("de_big") else 0.1)


@pytest.mark.parametrize("name", BASELINES)
def test_beam_runs_see_batches_of_the_published_size(name: str) -> None:
    beam = read(f"{name}_soft_beam")
    assert beam["max_tokens"] * beam["batches_per_update"] == 32768
    assert beam["max_update"] == read(f"{name}_control")["max_update"]


@pytest.mark.parametrize("size", ["base", "big"])
def test_top_k_attention_is_all_that_differs_from_its_baseline(size: str) -> None:
    keys = differing(f"wmt16_en_de_{size}", f"wmt16_en_de_topk_{size}")
    settings = {"topk_operator", "topk_k", "topk_epsilon", "topk_attentions"}
    # fairseq's other big architecture has dropout in its attention by default.
    assert keys - {"attention_dropout"} == settings | {"arch", "run"}
    assert read(f"wmt16_en_de_topk_{size}").get("attention_dropout", 0.0) == 0.0


def test_the_lstm_has_the_sizes_of_bahdanau() -> None:
    config = read("wmt14_en_fr_lstm")
    assert config["encoder_embed_dim"] == config["decoder_embed_dim"] == 620
    assert config["encoder_hidden_size"] == config["decoder_hidden_size"] == 1000
    assert config["decoder_out_embed_dim"] == 500 and config["encoder_bidirectional"]
    assert Path(config["data"]).name == "wmt14-en-fr-12m"


@pytest.mark.parametrize("name", CONFIGS)
def test_its_recipe_exists(name: str) -> None:
    from fairseq_plugins.corpus.recipe import recipe_names

    recipe = Path(read(name)["data"]).name
    assert recipe in recipe_names()
    assert recipe.startswith(name[:11].replace("_", "-"))
