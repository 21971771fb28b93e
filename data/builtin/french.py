"""French articles, contractions and agreement, which CLDR does not have."""
from __future__ import annotations

import re
import unicodedata

__all__ = [
    "AGREEMENTS",
    "city_forms",
    "elide",
    "noun_forms",
    "person_forms",
    "starts_with_vowel",
    "territory_forms",
]

AGREEMENTS = ("m", "f", "mp", "fp")

# Words of the lexicon and of CLDR with a mute h; every other h counts as aspirated.
_MUTE_H = ("hôtel", "hôpital", "horaire", "huile", "hébreu")
# An elided "que" before a vowel, and "si il" -> "s’il", whatever the slots contain.
_QUE = re.compile(r"\b([Qq]u|[Ll]orsqu|[Pp]uisqu)e (?=(\w))")
_SI_IL = re.compile(r"\b([Ss])i (?=ils?\b)")

_LE = {"m": "le ", "f": "la ", "mp": "les ", "fp": "les "}
_UN = {"m": "un ", "f": "une ", "mp": "des ", "fp": "des "}
_DU = {"m": "du ", "f": "de la ", "mp": "des ", "fp": "des "}
_AU = {"m": "au ", "f": "à la ", "mp": "aux ", "fp": "aux "}
_CE = {"m": "ce ", "f": "cette ", "mp": "ces ", "fp": "ces "}
_NEW = {"m": "nouveau ", "f": "nouvelle ", "mp": "nouveaux ", "fp": "nouvelles "}
_OWN = {"m": "on ", "f": "a ", "mp": "es ", "fp": "es "}  # after t- or s-
_IL = {"m": "il", "f": "elle", "mp": "ils", "fp": "elles"}
_NE = {"m": "", "f": "ne", "mp": "s", "fp": "nes"}  # "ancien", "ancienne"
_E = {"m": "", "f": "e", "mp": "s", "fp": "es"}


def starts_with_vowel(text: str) -> bool:
    """Tell whether ``le``, ``la``, ``de`` and ``que`` elide before ``text``."""
    if text.lower().startswith(_MUTE_H):
        return True
    first = unicodedata.normalize("NFD", text.lower())[:1]
    return first in "aeiouœ"


def noun_forms(noun: str, agreement: str) -> dict[str, str]:
    """Return the forms of a noun, by the names that templates use.

    Args:
        noun: the bare noun, "facture".
        agreement: "m" or "f", followed by "p" for a plural.
    """
    vowel = starts_with_vowel(noun)
    short = vowel and agreement in ("m", "f")
    before_vowel = short and agreement == "m"  # "cet", "nouvel"
    own = "on " if short else _OWN[agreement]
    return {
        "": noun,
        "le": ("l’" if short else _LE[agreement]) + noun,
        "un": _UN[agreement] + noun,
        "du": ("de l’" if short else _DU[agreement]) + noun,
        "de": ("d’" if vowel else "de ") + noun,
        "au": ("à l’" if short else _AU[agreement]) + noun,
        "ce": ("cet " if before_vowel else _CE[agreement]) + noun,
        "art": _LE[agreement].strip(),
        "un_art": _UN[agreement].strip(),
        "dun": ("de " + noun) if "p" in agreement else "d’" + _UN[agreement] + noun,
        "nouveau": (
            _LE[agreement] + ("nouvel " if before_vowel else _NEW[agreement]) + noun
        ),
        "ton": "t" + own + noun,
        "son": "s" + own + noun,
        "votre": ("vos " if "p" in agreement else "votre ") + noun,
        "il": _IL[agreement],
        "e": _E[agreement],
        "ne": _NE[agreement],
    }


def person_forms(name: str, agreement: str) -> dict[str, str]:
    """Return the forms of a name; ``e`` and ``il`` agree with its gender."""
    origin = ("d’" if starts_with_vowel(name) else "de ") + name
    il, e = _IL[agreement], _E[agreement]
    return {"": name, "à": "à " + name, "de": origin, "il": il, "e": e}


def territory_forms(name: str, kind: str) -> dict[str, str]:
    """Return the forms of a country; ``en`` means in it, ``de`` from it.

    Args:
        name: "Japon".
        kind: as for a noun, or "n" for a name without an article ("Chypre").
    """
    vowel = starts_with_vowel(name)
    origin = ("d’" if vowel else "de ") + name
    one, many = {"a": "a", "nt": ""}, {"a": "ont", "nt": "nt"}  # ends of its verb
    if kind == "n":
        forms = {"": name, "le": name, "du": origin, "de": origin, "en": "à " + name}
        return {**forms, **one}
    forms = noun_forms(name, kind)
    if kind == "f" or (kind == "m" and vowel):
        where, origin = "en " + name, origin
    else:
        where, origin = forms["au"], forms["du"]
    kept = {form: forms[form] for form in ("", "le", "du")}
    verb = many if "p" in kind else one
    return {**kept, "de": origin, "en": where, **verb}


def city_forms(name: str) -> dict[str, str]:
    """Return the forms of a city: ``à`` and ``de`` contract with "Le Caire"."""
    if name.startswith("Le "):
        return {"": name, "à": "au " + name[3:], "de": "du " + name[3:]}
    origin = "d’" if starts_with_vowel(name) else "de "
    return {"": name, "à": "à " + name, "de": origin + name}


def elide(text: str) -> str:
    """Join "que" and "si" to the next word where French does so."""

    def shorten(match: re.Match[str]) -> str:
        return match[1] + ("’" if starts_with_vowel(match[2]) else "e ")

    return _SI_IL.sub(r"\1’", _QUE.sub(shorten, text))
