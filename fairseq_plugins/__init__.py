"""Beam-search-aware training for fairseq with the differentiable SOFT top-k operator.

Importing this package, or a part of it such as ``operators``, changes nothing in
fairseq or torch. Two things register the criterion and the architectures and fix
fairseq's defects (:mod:`fairseq_plugins.compat`): a fairseq command with ``--user-dir
fairseq_plugins``, and :func:`register`. fairseq skips a user-dir that the program has
imported already, so a program that imports the package itself calls ``register()``.
"""

from __future__ import annotations

__all__ = ["register"]
__version__ = "0.1.0"


def register() -> None:
    """Fix fairseq and register the criterion and the architectures in it.

    Raises:
        ValueError: FAIRSEQ_SOFT_TOPK_SKIP names an unknown fix.
    """
    from fairseq_plugins import compat
    from fairseq_plugins.criterions import soft_beam_search  # noqa: F401
    from fairseq_plugins.models import lstm_topk, transformer_topk  # noqa: F401

    compat.apply_fixes()
