"""The search of training begins as the generation of the task does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import run_module

ARCHITECTURE = [
    "--encoder-embed-dim", "16", "--decoder-embed-dim", "16", "--encoder-layers", "1",
    "--encoder-ffn-embed-dim", "32", "--decoder-layers", "1",
    "--encoder-attention-heads", "2", "--decoder-attention-heads", "2",
    "--dropout", "0.0",
]  # fmt: skip


def set_up(name: str, data: Path, *options: object) -> tuple[Any, Any]:
    """Return a task of fairseq and its options."""
    from fairseq import options as fairseq_options
    from fairseq import tasks

    import fairseq_plugins

    fairseq_plugins.register()
    parser = fairseq_options.get_training_parser(default_task=name)
    words = [str(data), "--task", name, "--lang-pairs", "xx-yy", *map(str, options)]
    family = "multilingual_" if name == "multilingual_translation" else ""
    words += ["--arch", f"{family}transformer", *ARCHITECTURE]
    args = fairseq_options.parse_args_and_arch(parser, words)
    if not family:
        args.source_lang, args.target_lang = "xx", "yy"  # of generation
    args.max_source_positions = args.max_target_positions = 64
    return tasks.setup_task(args), args


def build_criterion(task: Any, **options: Any) -> Any:
    from fairseq_plugins.criterions.options import SoftBeamSearchConfig
    from fairseq_plugins.criterions.soft_beam_search import SoftBeamSearchCriterion

    cfg = SoftBeamSearchConfig(**{"beam_max_len_a": 0.0, **options})
    cfg.sentence_avg = False
    return SoftBeamSearchCriterion(cfg, task).train()


@pytest.fixture(scope="module")
def with_langtok(tiny_data: Path) -> Any:
    """The task that prepends the target language, a trained model and a batch."""
    task, args = set_up(
        "translation_multi_simple_epoch", tiny_data, "--langs", "xx,yy",
        "--decoder-langtok",
    )  # fmt: skip
    task.load_dataset("train")
    dataset = task.dataset("train")
    torch.manual_seed(1)
    model = task.build_model(args)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    cross_entropy = build_criterion(task, rho=1.0)
    for update in range(40):
        items = [dataset[i] for i in range(32 * update % 160, 32 * update % 160 + 32)]
        optimizer.zero_grad()
        loss, size, _ = cross_entropy(model, dataset.collater(items))
        (loss / size).backward()
        optimizer.step()
    return task, model, dataset.collater([dataset[i] for i in range(16)])


def test_the_language_token_is_forced_as_in_generation(with_langtok, monkeypatch):
    from fairseq_plugins.beam.trace import collect_hypotheses
    from fairseq_plugins.criterions import soft_beam_search as module

    task, model, sample = with_langtok
    searches = []

    def search(request: Any, engine: str) -> Any:
        searches.append(module_search(request, engine))
        return searches[-1]

    module_search = module.search_with_gradients
    monkeypatch.setattr(module, "search_with_gradients", search)
    criterion = build_criterion(task, beam_dropout="none")
    criterion(model, sample)
    found = collect_hypotheses(searches[0], pad_id=1, eos_id=2)
    generator = task.build_generator(
        [model],
        SimpleNamespace(beam=5, max_len_a=0, max_len_b=10, keep_inference_langtok=True),
    )
    model.eval()
    expected = task.inference_step(generator, [model], sample)
    model.train()
    langtok = sample["target"][0, 0]
    assert langtok >= 4 and found.tokens[:, :, 0].eq(langtok).all()
    for row, theirs in enumerate(expected):
        scores = found.scores(1.0)[row].detach()
        ours = {
            tuple(tokens[:length].tolist()): float(score)
            for tokens, length, score in zip(
                found.tokens[row], found.lengths[row], scores
            )
        }
        known = {tuple(h["tokens"].tolist()): float(h["score"]) for h in theirs}
        assert ours == pytest.approx(known, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(beam_loss="risk=1,survival=1", engine="two-pass"),
        dict(beam_loss="slot-ce=1,survival=1,mrt=1", mixing="soft"),
        dict(beam_loss="risk=1", mixing="straight-through"),
        dict(beam_loss="bso=1,survival=1"),
        dict(beam_loss="survival=1", reset_to_gold=True, engine="rollout"),
    ],
    ids=str,
)
def test_losses_with_a_forced_token_are_finite_and_have_gradients(
    options, with_langtok
):
    task, model, sample = with_langtok
    model.zero_grad()
    loss, _, logged = build_criterion(task, rho=0.1, **options)(model, sample)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients)
    assert sum(float(g.abs().sum()) for g in gradients) > 0
    assert logged["beam_loss"] > 0


def test_the_forced_token_is_no_part_of_the_text_that_costs_compare(make_criterion):
    from fairseq_plugins.beam.costs import Detokenizer
    from fairseq_plugins.beam.losses import SearchedBatch

    pieces = Detokenizer(["", "", "", "", "▁a", "▁b", "__yy__"])
    no_trace: Any = None
    batch = SearchedBatch(
        no_trace, torch.tensor([[6, 4, 2]]), make_criterion().cfg, 1, 2, pieces,
        prefix_size=1,
    )  # fmt: skip
    assert batch.cost(torch.tensor([[6, 5, 2]]), batch.target).tolist() == [1.0]
    assert batch.cost(torch.tensor([[6, 4, 2]]), batch.target).tolist() == [0.0]


def test_a_language_token_that_replaces_the_start_token_is_no_prefix(tiny_data):
    from fairseq_plugins.criterions.generation import find_prefix_size

    task, _ = set_up(
        "translation_multi_simple_epoch", tiny_data, "--langs", "xx,yy",
        "--decoder-langtok", "--lang-tok-replacing-bos-eos",
    )  # fmt: skip
    assert find_prefix_size(task) == 0
    task.load_dataset("train")
    dataset = task.dataset("train")
    sample = dataset.collater([dataset[i] for i in range(4)])
    langtok = task.data_manager.get_decoder_langtok("yy", "tgt")
    assert sample["net_input"]["prev_output_tokens"][:, 0].eq(langtok).all()


def test_data_without_the_language_token_of_generation_is_refused(tiny_data):
    task, args = set_up(
        "translation_multi_simple_epoch", tiny_data, "--langs", "xx,yy",
        "--decoder-langtok",
    )  # fmt: skip
    args.extra_data = {"mined": "elsewhere"}
    with pytest.raises(ValueError, match="`--langtoks` must .* `mined` differs"):
        build_criterion(task)
    args.langtoks["mined"] = (None, "tgt")
    build_criterion(task)


def test_a_task_that_generates_in_another_way_is_refused_unless_rho_is_1(task):
    class WithPrefix(type(task)):  # type: ignore[misc]
        def inference_step(self, *args: Any, **kwargs: Any) -> Any:
            return super().inference_step(*args, prefix_tokens=None, **kwargs)

    class WithGenerator(type(task)):  # type: ignore[misc]
        def build_generator(self, *args: Any, **kwargs: Any) -> Any:
            return None

    for cls, method in ((WithPrefix, "inference_step"), (WithGenerator, "build_gene")):
        other = cls(task.cfg, task.source_dictionary, task.target_dictionary)
        with pytest.raises(
            ValueError, match=f"must generate as `translation`.*{method}"
        ):
            build_criterion(other)
        build_criterion(other, rho=1.0)


def test_non_autoregressive_models_and_their_task_are_refused_by_that_name(
    task, sentences, collate
):
    from fairseq.models.nat import NATransformerModel
    from fairseq.tasks.translation_lev import TranslationLevenshteinTask
    from random_models import create_model

    nat_task = TranslationLevenshteinTask(
        task.cfg, task.source_dictionary, task.target_dictionary
    )
    with pytest.raises(ValueError, match="non-autoregressive models"):
        build_criterion(nat_task)
    model = create_model(
        task, "nonautoregressive_transformer", seed=1, encoder_embed_dim=16,
        encoder_ffn_embed_dim=32, encoder_layers=1, encoder_attention_heads=2,
        decoder_layers=1, decoder_attention_heads=2,
    )  # fmt: skip
    assert isinstance(model, NATransformerModel)
    with pytest.raises(ValueError, match="NATransformerModel is non-autoregressive"):
        build_criterion(task)(model, collate(sentences))


def test_the_tag_of_a_speech_translation_is_a_prefix():
    from fairseq.tasks.speech_to_text import SpeechToTextTask

    from fairseq_plugins.criterions.generation import find_prefix_size

    task = object.__new__(SpeechToTextTask)
    data = SimpleNamespace(
        prepend_tgt_lang_tag=True, prepend_bos_and_append_tgt_lang_tag=False, config={}
    )
    task.cfg, task.args, task.data_cfg = None, SimpleNamespace(), data
    assert find_prefix_size(task) == 1
    data.prepend_bos_and_append_tgt_lang_tag = True
    with pytest.raises(ValueError, match="must end targets with `</s>`"):
        find_prefix_size(task)


@pytest.fixture
def two_languages(tmp_path: Path) -> Path:
    """xx -> yy and xx -> zz with a dictionary per language."""
    words = {"xx": ["a", "b", "c"], "yy": list("yxdefghij"),
             "zz": ["k", "l", "m", "n", "o", "p", "q", "r"]}  # fmt: skip
    for language in ("yy", "zz"):
        for side in ("xx", language):
            lines = [
                " ".join(words[side][(i + j) % len(words[side])] for j in range(4))
                for i in range(20)
            ]
            (tmp_path / f"{language}.{side}").write_text("\n".join(lines) + "\n")
        known = [] if language == "yy" else ["--srcdict", tmp_path / "bin/dict.xx.txt"]
        result = run_module(
            "fairseq_cli.preprocess", "--source-lang", "xx", "--target-lang", language,
            "--trainpref", tmp_path / language, "--destdir", tmp_path / "bin",
            *known,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    return tmp_path / "bin"


def test_costs_use_the_dictionary_of_the_language_of_a_batch(
    two_languages, monkeypatch
):
    from fairseq_plugins.criterions import soft_beam_search as module

    task, args = set_up(
        "multilingual_translation", two_languages, "--lang-pairs", "xx-yy,xx-zz"
    )
    task.load_dataset("train")
    model = task.build_model(args)
    dataset = task.dataset("train")
    dataset.ordered_indices()
    sample = dataset.collater([dataset[i] for i in range(8)])
    used = {}

    def search(batch: Any, weights: Any) -> Any:
        used[len(batch.target)] = batch.detokenizer
        return loss_of(batch, weights)

    loss_of = module.beam_loss
    monkeypatch.setattr(module, "beam_loss", search)
    criterion = build_criterion(task)
    for pair, (first, second) in {"xx-yy": "yd", "xx-zz": "kl"}.items():
        criterion(model.models[pair], sample[pair])
        target = task.dicts[pair[3:]]
        (detokenizer,) = used.values()
        letters = detokenizer.characters(torch.tensor([target.index(first)]).view(1, 1))
        assert chr(int(letters[0, 0])) == first
        used.clear()
