"""How much disk and GPU memory the WMT runs need: estimates, each with its derivation.

None of this was measured on a GPU.
"""
from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BYTES_PER_PAIR",
    "CACHE_OF_EVALUATION",
    "MODELS",
    "checkpoint_bytes",
    "training_bytes",
]

# A pair of news text is about 300 bytes; it is kept as extracted, as cleaned, as
# ids and binarised (2 bytes a token), which together is somewhat more than thrice it.
BYTES_PER_PAIR = 1_000
CACHE_OF_EVALUATION = 4 << 30

# bf16 weights and gradients, fp32 weights and gradients, two fp32 moments of Adam.
_BYTES_PER_PARAMETER = 2 + 2 + 4 + 4 + 8
# In a file: bf16 weights, fp32 weights and moments.
_SAVED_PER_PARAMETER = 2 + 4 + 8
_BESIDES = 3  # the last, the best and the mean
_CONTEXT = 1 << 30  # CUDA's own memory


@dataclass(frozen=True)
class ModelSize:
    """A model of configs/wmt*.yaml, with its beam run, which needs the most.

    Attributes:
        parameters: with a vocabulary of 32,000.
        width: of the decoder.
        layers: of the decoder.
        is_lstm: which formula holds.
        tokens: ``max_tokens`` of the beam run.
        batches_per_update: of the beam run.
        kept: checkpoints that a run keeps (``keep_interval_updates``).
    """

    parameters: int
    width: int
    layers: int
    is_lstm: bool
    tokens: int
    batches_per_update: int
    kept: int


MODELS = {
    "lstm": ModelSize(88_700_000, 1000, 1, True, 2048, 16, 5),
    "base": ModelSize(60_500_000, 512, 6, False, 2048, 16, 5),
    "big": ModelSize(209_000_000, 1024, 6, False, 2048, 16, 20),
}
_VOCABULARY = 32_000
_BEAM = 5


def training_bytes(model: str) -> int:
    """Return the peak of a beam update: docs/beam_training.md, in fp32, at beam 5."""
    size = MODELS[model]
    n, v, d = size.tokens, _VOCABULARY, size.width
    if size.is_lstm:
        activations = 4 * (1.5 * n * v + 24 * _BEAM * n * d * size.layers + 3 * v * d)
    else:
        activations = 4 * (1.9 * n * v + 25 * _BEAM * n * d * size.layers)
    return int(activations) + _BYTES_PER_PARAMETER * size.parameters + _CONTEXT


def checkpoint_bytes(model: str) -> int:
    """Return the disk that one run's checkpoints take."""
    size = MODELS[model]
    return _SAVED_PER_PARAMETER * size.parameters * (size.kept + _BESIDES)
