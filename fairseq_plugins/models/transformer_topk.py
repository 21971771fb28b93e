"""``--arch transformer_topk``: fairseq's Transformer with top-k attention."""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import (
    TransformerModel,
    base_architecture,
    transformer_iwslt_de_en,
    transformer_wmt_en_de,
    transformer_wmt_en_de_big,
)

from fairseq_plugins.models.topk_attention import (
    TopkMultiheadAttention,
    TopkSettings,
    add_options,
    fill_in_defaults,
)

__all__ = ["TransformerTopkModel"]


@register_model("transformer_topk")
class TransformerTopkModel(TransformerModel):
    """A Transformer that attends softly to the k best positions.

    Only the weights of its attentions differ from fairseq's model; see
    `topk_attention`. A checkpoint of the plain Transformer can be loaded.
    """

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        super().add_args(parser)
        add_options(parser)

    @classmethod
    def build_model(cls, args: argparse.Namespace, task: Any) -> TransformerTopkModel:
        """Build fairseq's model and replace the attentions that the options name.

        Raises:
            ValueError: an option is out of its range or names no attention.
        """
        settings = TopkSettings.from_args(args)
        model: TransformerTopkModel = super().build_model(args, task)
        num_replaced = 0
        for attention, layers, child in (
            ("cross", model.decoder.layers, "encoder_attn"),
            ("decoder", model.decoder.layers, "self_attn"),
            ("encoder", model.encoder.layers, "self_attn"),
        ):
            for number in range(len(layers)):  # iteration applies --layerdrop
                if settings.is_selected(attention, number, len(layers)):
                    layer = layers[number]
                    new = TopkMultiheadAttention(getattr(layer, child), settings)
                    setattr(layer, child, new)
                    num_replaced += 1
        if not num_replaced:
            raise ValueError(
                "`--topk-layers` must name an existing layer, but is "
                f"{args.topk_layers}."
            )
        return model


def _register_architecture(name: str, base: Any) -> None:
    @register_model_architecture("transformer_topk", name)
    def set_defaults(args: argparse.Namespace) -> None:
        fill_in_defaults(args)
        base(args)


_register_architecture("transformer_topk", base_architecture)
_register_architecture("transformer_topk_iwslt_de_en", transformer_iwslt_de_en)
_register_architecture("transformer_topk_wmt_en_de", transformer_wmt_en_de)
_register_architecture("transformer_topk_wmt_en_de_big", transformer_wmt_en_de_big)
