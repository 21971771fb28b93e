"""``--arch transformer_topk``: fairseq's Transformer with top-k attention."""

from __future__ import annotations

import argparse
from typing import Any, Iterator

from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import (
    TransformerModel,
    base_architecture,
    transformer_iwslt_de_en,
    transformer_wmt_en_de,
    transformer_wmt_en_de_big,
)
from torch import nn

from fairseq_plugins.models.topk_attention import TopkMultiheadAttention
from fairseq_plugins.models.topk_options import (
    TopkSettings,
    add_options,
    fill_in_defaults,
)

__all__ = ["TransformerTopkModel"]


@register_model("transformer_topk")
class TransformerTopkModel(TransformerModel):
    """A Transformer that attends softly to the k best positions.

    Weights are softmax(f + log A), A the SOFT top-k memberships of the scores f (Xie
    et al., 2020, section 6). All else is fairseq's; a plain checkpoint can be loaded.
    """

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add the Transformer's options and those of top-k attention."""
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
        attentions = list(_attentions(model, settings))
        if not attentions:
            raise ValueError(
                "`--topk-layers` must name a layer that is there, but is "
                f"{args.topk_layers}."
            )
        for attention in attentions:
            TopkMultiheadAttention.take_over(attention, settings)
        return model


def _attentions(model: TransformerModel, settings: TopkSettings) -> Iterator[nn.Module]:
    for name, layers, attribute in (
        ("cross", model.decoder.layers, "encoder_attn"),
        ("decoder", model.decoder.layers, "self_attn"),
        ("encoder", model.encoder.layers, "self_attn"),
    ):
        for number in range(len(layers)):  # an iterator of --layerdrop leaves some out
            if settings.bears_on(name, number, len(layers)):
                yield getattr(layers[number], attribute)


@register_model_architecture("transformer_topk", "transformer_topk")
def transformer_topk(args: argparse.Namespace) -> None:
    fill_in_defaults(args)
    base_architecture(args)


@register_model_architecture("transformer_topk", "transformer_topk_iwslt_de_en")
def transformer_topk_iwslt_de_en(args: argparse.Namespace) -> None:
    fill_in_defaults(args)
    transformer_iwslt_de_en(args)


@register_model_architecture("transformer_topk", "transformer_topk_wmt_en_de")
def transformer_topk_wmt_en_de(args: argparse.Namespace) -> None:
    fill_in_defaults(args)
    transformer_wmt_en_de(args)


@register_model_architecture("transformer_topk", "transformer_topk_wmt_en_de_big")
def transformer_topk_wmt_en_de_big(args: argparse.Namespace) -> None:
    fill_in_defaults(args)
    transformer_wmt_en_de_big(args)
