"""``--arch lstm_topk``: fairseq's LSTM with top-k attention over the source."""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.models import register_model, register_model_architecture
from fairseq.models.lstm import LSTMModel, base_architecture

from fairseq_plugins.models.topk_attention import (
    TopkAttentionLayer,
    TopkSettings,
    add_options,
    fill_in_defaults,
)

__all__ = ["LSTMTopkModel"]


@register_model("lstm_topk")
class LSTMTopkModel(LSTMModel):
    """An LSTM that attends softly to the k best source positions."""

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        LSTMModel.add_args(parser)
        add_options(parser)

    @classmethod
    def build_model(cls, args: argparse.Namespace, task: Any) -> LSTMTopkModel:
        """Build fairseq's model and replace its attention.

        Raises:
            ValueError: an option is out of its range or does not apply to an LSTM.
        """
        settings = TopkSettings.from_args(args)
        if settings.attentions != ("cross",) or settings.layers is not None:
            raise ValueError(
                "`--topk-attentions` must be cross and `--topk-layers` all for an "
                "LSTM, which has one attention."
            )
        model: LSTMTopkModel = super().build_model(args, task)
        decoder = model.decoder
        decoder.attention = TopkAttentionLayer(decoder.attention, settings)
        return model


@register_model_architecture("lstm_topk", "lstm_topk")
def lstm_topk(args: argparse.Namespace) -> None:
    fill_in_defaults(args)
    base_architecture(args)
