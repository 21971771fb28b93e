"""Replace a function of fairseq, once."""

from __future__ import annotations

import inspect
from typing import Any, Callable

__all__ = ["wrap"]

_FIXES = "_fixes_of_fairseq_plugins"  # the names of the wrappers


def wrap(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Replace the function ``owner.name`` by ``wrapper(function)``, only once.

    ``owner`` is a module or a class. The wrapper of a class method gets it bound.
    """
    original = getattr(owner, name)
    applied: tuple[str, ...] = getattr(original, _FIXES, ())
    if wrapper.__qualname__ in applied:
        return
    fixed = wrapper(original)
    setattr(fixed, _FIXES, (*applied, wrapper.__qualname__))
    kind = inspect.getattr_static(owner, name)
    is_static = isinstance(kind, (staticmethod, classmethod))
    setattr(owner, name, staticmethod(fixed) if is_static else fixed)
