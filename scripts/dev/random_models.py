"""Models of random weights and batches of random tokens, for benchmarks and tests."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Callable

import torch

__all__ = ["SIZES", "create_batch", "create_model", "create_task", "create_update"]

SIZES: dict[str, dict[str, Any]] = {
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


def create_task(vocabulary: int) -> Any:
    """Return fairseq's translation task with one dictionary for both sides."""
    from fairseq.data import Dictionary
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    import fairseq_plugins

    fairseq_plugins.register()
    dictionary = Dictionary()
    for number in range(vocabulary - dictionary.nspecial):
        dictionary.add_symbol(f"w{number}")
    return TranslationTask(TranslationConfig(), dictionary, dictionary)


def create_model(task: Any, arch: str, *, seed: int = 1, **options: Any) -> Any:
    """Return a model of a task in training mode, with options of its architecture."""
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    torch.manual_seed(seed)
    args = Namespace(**{"criterion": "cross_entropy", "dropout": 0.1, **options})
    ARCH_CONFIG_REGISTRY[arch](args)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task).train()


def create_batch(
    task: Any, *, tokens: int, length: int, device: str = "cpu"
) -> dict[str, Any]:
    """Return a batch of ``tokens`` target tokens in sentences of equal length."""
    dictionary = task.target_dictionary
    rows = max(1, tokens // length)
    values = torch.randint(
        dictionary.nspecial, len(dictionary), (2, rows, length),
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    values[..., -1] = dictionary.eos()
    source, target = values.to(device)
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


def create_update(
    model: Any, criterion: Any, sample: dict[str, Any]
) -> Callable[[], None]:
    """Return a function that does a forward and a backward pass of one batch."""

    def update() -> None:
        model.zero_grad(set_to_none=True)
        loss, size, _ = criterion(model, sample)
        (loss / size).backward()

    return update
