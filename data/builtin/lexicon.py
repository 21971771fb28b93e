"""The project's nouns, adjectives and first names, with French gender.

In ``lexicon.txt``, a section ``[symbol]`` contains lines such as

    invoice = facture f
    accountant = comptable m / comptable f    (the source leaves the gender open)
    blue = bleu, bleue, bleus, bleues         (an adjective: m, f, mp, fp)
    modern = moderne, modernes                (an adjective: singular, plural)
    brown = marron,                           (an adjective that never changes)
"""
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Sequence

from french import AGREEMENTS, noun_forms, person_forms, starts_with_vowel
from synchronous import Dice, Phrase, Source, pick_weighted, split_weight

__all__ = ["people", "person", "read_lexicon"]

_WOMEN = (
    "Anna Marie Sofia Emma Nadia Julie Clara Elena Louise Yasmine Alice Fatou Olga Mei "
    "Ingrid Priya Lucie Zoé"
).split()
_MEN = (
    "Paul Thomas Lucas Omar Karim Victor David Martin Antoine Samuel Oscar Kenji Ivan "
    "Diego Rachid Louis Mehdi Simon"
).split()
_NAMES = [(name, "f") for name in _WOMEN] + [(name, "m") for name in _MEN]
# Which of the 1, 2 or 4 forms of an adjective is used for m, f, mp and fp.
_FORMS = {1: (0, 0, 0, 0), 2: (0, 0, 1, 1), 4: (0, 1, 2, 3)}

Word = Sequence[tuple[int, Phrase]]  # the weighted translations of one English word


def read_lexicon(path: Path) -> dict[str, Source]:
    """Return a source of phrases for each section of a lexicon file."""
    sections: dict[str, list[Word]] = {}
    words: list[Word] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            words = sections.setdefault(line.strip("[]"), [])
        elif " = " in line:
            english, _, french = line.partition(" = ")
            choices = map(split_weight, french.split(" / "))
            words.append([(weight, _phrase(english, text)) for weight, text in choices])
    return {symbol: partial(_draw, words) for symbol, words in sections.items()}


def person(dice: Dice) -> Phrase:
    """Draw a first name."""
    return _person(*dice.pick(_NAMES))


def people(dice: Dice) -> Phrase:
    """Draw two people; French uses the feminine only if both are women."""
    (first, one), (second, other) = dice.shuffle(_NAMES)[:2]
    agreement = "fp" if one == other == "f" else "mp"
    forms = person_forms(first, agreement)
    for form, text in person_forms(second, agreement).items():
        if form in ("", "à", "de"):
            forms[form] += " et " + text
    return Phrase({"": f"{first} and {second}"}, forms, agreement)


def _person(name: str, agreement: str) -> Phrase:
    english, french = _english_forms(name, agreement), person_forms(name, agreement)
    return Phrase(english, french, agreement)


def _draw(words: Sequence[Word], dice: Dice) -> Phrase:
    return pick_weighted(dice, dice.pick(words))


def _phrase(english: str, french: str) -> Phrase:
    if "," in french:
        given = [form.strip() for form in french.strip(",").split(",")]
        each = [given[index] for index in _FORMS[len(given)]]
        return Phrase({"": english}, dict(zip(AGREEMENTS, each)))
    noun, _, agreement = french.rpartition(" ")
    forms = noun_forms(noun, agreement)
    return Phrase(_english_forms(english, agreement), forms, agreement)


def _english_forms(english: str, agreement: str) -> dict[str, str]:
    article = "an" if starts_with_vowel(english) else "a"
    his = "her" if agreement == "f" else "his"
    return {"": english, "a": f"{article} {english}", "his": his}
