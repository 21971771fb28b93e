"""What ``--arch`` gains; fairseq imports these by itself, other programs do not."""

from fairseq_plugins.models import lstm_topk, transformer_topk

__all__ = ["lstm_topk", "transformer_topk"]
