"""The two CLDR locales, and how their text is cleaned."""
from __future__ import annotations

from typing import Callable

from babel import Locale

from synchronous import Phrase

__all__ = ["EN", "FR", "both", "plain"]

EN, FR = Locale("en"), Locale("fr")


def plain(text: str) -> str:
    """Replace CLDR's no-break and thin spaces by the space that everybody types."""
    return " ".join(text.split())


def both(write: Callable[[Locale], str]) -> Phrase:
    """Return what a function writes in each of the two locales."""
    return Phrase({"": plain(write(EN))}, {"": plain(write(FR))})
