"""fairseq's decoders behind one interface: one module per decoder family.

To add a family, write one module with a subclass of :class:`DecoderAdapter` under
:func:`register_adapter` and import it here.
"""

from __future__ import annotations

from fairseq_plugins.beam.adapters.base import (
    ADAPTERS,
    DecoderAdapter,
    find_adapter,
    register_adapter,
)
from fairseq_plugins.beam.adapters.lstm import LSTMAdapter
from fairseq_plugins.beam.adapters.transformer import TransformerAdapter

__all__ = [
    "ADAPTERS",
    "DecoderAdapter",
    "LSTMAdapter",
    "TransformerAdapter",
    "find_adapter",
    "register_adapter",
]
