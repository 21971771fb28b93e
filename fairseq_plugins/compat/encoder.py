"""A mend of the Transformer's encoder in the last release of fairseq."""
from __future__ import annotations

import functools
from typing import Any, Callable

from fairseq_plugins.compat.wrapping import wrap

__all__ = ["keep_to_the_plain_encoder_layer"]


def keep_to_the_plain_encoder_layer() -> None:
    """Keep fairseq 0.12.2 from torch's fused encoder layer.

    When a Transformer translates, fairseq gives that layer a mask without the type that
    torch 2 wants (``Mask Type should be defined``). Later fairseqs do not use it.
    """
    from fairseq.modules.transformer_layer import TransformerEncoderLayerBase

    wrap(TransformerEncoderLayerBase, "__init__", _without_fused_layer, bound=True)


def _without_fused_layer(build: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(build)
    def build_plain(layer: Any, *args: Any, **kwargs: Any) -> None:
        build(layer, *args, **kwargs)
        if hasattr(layer, "can_use_fastpath"):
            layer.can_use_fastpath = False

    return build_plain
