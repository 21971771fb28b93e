"""Replace a function of fairseq, once."""

from __future__ import annotations

from typing import Any, Callable

__all__ = ["wrap"]

_MENDED = "_fairseq_plugins_mended"


def wrap(
    owner: Any, name: str, wrapper: Callable[[Any], Any], *, bound: bool = False
) -> None:
    """Put ``wrapper(original)`` in the place of a function; a second call does nothing.

    Args:
        owner: the module or class that has it.
        name: its name in there.
        wrapper: returns the mended function.
        bound: it is an ordinary method; those of classes are static otherwise.
    """
    original = getattr(owner, name)
    if not getattr(original, _MENDED, False):
        mended = wrapper(original)
        setattr(mended, _MENDED, True)
        is_static = isinstance(owner, type) and not bound
        setattr(owner, name, staticmethod(mended) if is_static else mended)
