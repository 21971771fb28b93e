"""The two CLDR locales, and the cleaning of their text."""
from __future__ import annotations

from typing import Callable

from babel import Locale

from synchronous import Phrase

__all__ = ["EN", "FR", "render", "clean"]

EN, FR = Locale("en"), Locale("fr")


def clean(text: str) -> str:
    """Replace CLDR's no-break and thin spaces by plain spaces."""
    return " ".join(text.split())


def render(write: Callable[[Locale], str]) -> Phrase:
    """Return the output of a function in each of the two locales."""
    return Phrase({"": clean(write(EN))}, {"": clean(write(FR))})
