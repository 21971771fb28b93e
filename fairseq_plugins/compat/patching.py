"""Replace a function of fairseq, once."""

from __future__ import annotations

import inspect
from typing import Any, Callable

__all__ = ["wrap"]

_IS_FIXED = "_is_fixed_by_fairseq_plugins"


def wrap(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Replace the function ``owner.name`` by ``wrapper(function)``, unless it was.

    ``owner`` is a module or a class. The wrapper of a class method gets it bound.
    """
    original = getattr(owner, name)
    if getattr(original, _IS_FIXED, False):
        return
    fixed = wrapper(original)
    setattr(fixed, _IS_FIXED, True)
    kind = inspect.getattr_static(owner, name)
    is_static = isinstance(kind, (staticmethod, classmethod))
    setattr(owner, name, staticmethod(fixed) if is_static else fixed)
