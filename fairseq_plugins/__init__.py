"""SOFT top-k beam training for fairseq, loaded with ``--user-dir fairseq_plugins``.

``operators``, ``pipeline`` and ``evaluation`` do not need fairseq and do not import
it. Registration happens when fairseq itself imports this package; a program that
imported the package first calls :func:`register`.
"""

from __future__ import annotations

import sys

__all__ = ["register"]
__version__ = "0.1.0"


def register() -> None:
    """Mend fairseq where it is broken and register what this plug-in adds to it."""
    from fairseq_plugins import compat, criterions, models  # noqa: F401

    compat.apply()


if "fairseq" in sys.modules:
    register()
