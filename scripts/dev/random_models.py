"""Models with random weights and batches of random tokens, for benchmarks."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Callable

import torch

__all__ = ["MODELS", "gradient_update", "random_batch", "random_model"]

MODELS: dict[str, dict[str, Any]] = {
    "lstm": dict(
        encoder_embed_dim=256, encoder_hidden_size=256, encoder_bidirectional=True,
        decoder_embed_dim=256, decoder_hidden_size=256, decoder_out_embed_dim=256,
        share_decoder_input_output_embed=True,
    ),
    "transformer": dict(
        encoder_embed_dim=256, encoder_ffn_embed_dim=1024, encoder_layers=3,
        encoder_attention_heads=4, decoder_layers=3, decoder_attention_heads=4,
        decoder_embed_dim=256,
        share_decoder_input_output_embed=True,
    ),
}  # fmt: skip


def random_model(case: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """Return fairseq's translation task and a model of it, in training mode.

    Args:
        case: with ``arch``, ``vocabulary`` and ``device``.
        options: of the architecture, beside those of `MODELS`, which an architecture
            with top-k attention shares with the plain one.
    """
    from fairseq.data import Dictionary
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    import fairseq_plugins

    fairseq_plugins.register()
    dictionary = Dictionary()
    for number in range(case["vocabulary"] - dictionary.nspecial):
        dictionary.add_symbol(f"w{number}")
    task = TranslationTask(TranslationConfig(), dictionary, dictionary)
    torch.manual_seed(1)
    arch = case["arch"]
    sizes = MODELS[arch.removesuffix("_topk")]
    args = Namespace(
        **{"criterion": "cross_entropy", "dropout": 0.1, **sizes, **options}
    )
    ARCH_CONFIG_REGISTRY[arch](args)
    model = ARCH_MODEL_REGISTRY[arch].build_model(args, task)
    return task, model.to(case["device"]).train()


def random_batch(case: dict[str, Any], task: Any) -> dict[str, Any]:
    """Return a batch of ``tokens`` target tokens in sentences of equal ``length``."""
    dictionary = task.target_dictionary
    rows, length = max(1, case["tokens"] // case["length"]), case["length"]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(
        dictionary.nspecial, len(dictionary), (2, rows, length), generator=generator
    )
    tokens[..., -1] = dictionary.eos()
    source, target = tokens.to(case["device"])
    return {
        "id": torch.arange(rows),
        "nsentences": rows,
        "ntokens": rows * length,
        "target": target,
        "net_input": {
            "src_tokens": source,
            "src_lengths": torch.full((rows,), length, device=source.device),
            "prev_output_tokens": target.roll(1, dims=1),
        },
    }


def gradient_update(
    model: Any, criterion: Any, sample: dict[str, Any]
) -> Callable[[], None]:
    """Return a forward and backward pass of one batch."""

    def update() -> None:
        model.zero_grad(set_to_none=True)
        loss, size, _ = criterion(model, sample)
        (loss / size).backward()

    return update
