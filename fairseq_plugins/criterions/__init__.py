"""What ``--criterion`` gains: fairseq imports none of these by itself."""

from fairseq_plugins.criterions import soft_beam_search

__all__ = ["soft_beam_search"]
