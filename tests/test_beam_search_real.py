"""The search of training is ``fairseq-generate``'s, on real text and trained models."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from typing import Any

import pytest
import torch
from conftest import ROOT

SENTENCES = 300
SIZES: dict[str, dict[str, Any]] = {
    "lstm": dict(
        encoder_embed_dim=128, encoder_hidden_size=128, encoder_bidirectional=True,
        decoder_embed_dim=128, decoder_hidden_size=128, decoder_out_embed_dim=128,
        share_decoder_input_output_embed=True,
    ),
    "transformer": dict(
        encoder_embed_dim=128, encoder_ffn_embed_dim=256, encoder_layers=2,
        encoder_attention_heads=4, decoder_layers=2, decoder_attention_heads=4,
        share_decoder_input_output_embed=True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def english_french(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The translation task of the built-in corpus."""
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    import fairseq_plugins

    fairseq_plugins.register()
    out = tmp_path_factory.mktemp("builtin") / "corpus"
    command = [sys.executable, ROOT / "scripts" / "prepare.py", "builtin-en-fr"]
    subprocess.run([*command, "--out", out], check=True, capture_output=True)
    cfg = TranslationConfig(data=str(out / "bin"), source_lang="en", target_lang="fr")
    cfg.dataset_impl, cfg.train_subset = None, "train"
    cfg.required_seq_len_multiple = 1
    task = TranslationTask.setup_task(cfg)
    task.load_dataset("train")
    task.load_dataset("test")
    return task


def trained(arch: str, task: Any) -> Any:
    """Train for half a minute: enough for hypotheses that end and that differ."""
    from fairseq.criterions.cross_entropy import CrossEntropyCriterion
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    torch.manual_seed(1)
    args = Namespace(criterion="cross_entropy", dropout=0.1, **SIZES[arch])
    ARCH_CONFIG_REGISTRY[arch](args)
    model = ARCH_MODEL_REGISTRY[arch].build_model(args, task).train()
    criterion = CrossEntropyCriterion(task, False)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    dataset = task.dataset("train")
    for update in range(100):
        start = 32 * update % (len(dataset) - 32)
        sample = dataset.collater([dataset[start + i] for i in range(32)])
        optimizer.zero_grad()
        loss, size, _ = criterion(model, sample)
        (loss / size).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("lenpen, min_len, max_len", [(1.0, 1, 60), (0.6, 3, 14)])
def test_hypotheses_and_scores_are_those_of_fairseqs_generator(
    arch, lenpen, min_len, max_len, english_french, models
):
    from fairseq.sequence_generator import SequenceGenerator

    from fairseq_plugins.beam.search import RequiredScores, SearchRequest, search
    from fairseq_plugins.beam.step import BeamSettings
    from fairseq_plugins.beam.trace import collect_hypotheses

    task, beam = english_french, 5
    model, dictionary = models(arch), task.target_dictionary
    settings = BeamSettings(
        beam_size=beam, pool_size=beam + 1, max_len=max_len, min_len=min_len,
        pad_id=dictionary.pad(), eos_id=dictionary.eos(),
    )  # fmt: skip
    generator = SequenceGenerator(
        [model], dictionary, beam_size=beam, len_penalty=lenpen, min_len=min_len,
        max_len_a=0, max_len_b=max_len,
    )  # fmt: skip
    dataset, compared, reordered = task.dataset("test"), 0, 0
    for start in range(0, SENTENCES, 50):
        sample = dataset.collater([dataset[start + i] for i in range(50)])
        net_input = sample["net_input"]
        with torch.no_grad():
            encoder_out = model.encoder(
                net_input["src_tokens"], net_input["src_lengths"]
            )
            start_tokens = net_input["prev_output_tokens"][:, 0]
            required = RequiredScores(finished=True)
            trace = search(
                SearchRequest(
                    model, encoder_out, start_tokens, sample["target"], settings,
                    required,
                )
            )  # fmt: skip
        found = collect_hypotheses(
            trace, pad_id=settings.pad_id, eos_id=settings.eos_id
        )
        scores = found.scores(lenpen)
        for row, theirs in enumerate(generator.generate([model], sample)):
            order = scores[row].argsort(descending=True, stable=True)
            ours = [found.tokens[row, i, : found.lengths[row, i]] for i in order]
            expected = [hypothesis["tokens"] for hypothesis in theirs]
            torch.testing.assert_close(
                scores[row, order],
                torch.stack([hypothesis["score"] for hypothesis in theirs]),
                rtol=1e-4, atol=1e-5,
            )  # fmt: skip
            # Two hypotheses whose scores are equal to rounding may change places.
            assert {tuple(t.tolist()) for t in ours} == {
                tuple(t.tolist()) for t in expected
            }
            reordered += not all(map(torch.equal, ours, expected))
            compared += len(theirs)
    assert compared == beam * SENTENCES and reordered <= 1


@pytest.fixture(scope="module")
def models(english_french: Any) -> Any:
    known: dict[str, Any] = {}

    def get(arch: str) -> Any:
        if arch not in known:
            known[arch] = trained(arch, english_french)
        return known[arch]

    return get
