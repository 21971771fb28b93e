"""A synchronous grammar: it derives an English and a French sentence together.

A grammar file has sections, ``[symbol]``. In a section, an unindented line is an
English template. The indented lines below it are its French translations, one of which
is drawn. ``3* `` before a line is its weight. In templates,

* ``{city}`` and ``{city:b}`` are slots: two different cities, the same on both sides.
  ``{city.de}`` asks for a form ("d’Athènes"), ``{colour@coat}`` for agreement.
* ``<vous avez|tu as>`` depends on the register, formal or informal. It is drawn once
  per sentence, unless a French line begins with ``!vous`` or ``!tu``.
"""
from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Mapping, Sequence, TypeVar

from french import elide

__all__ = [
    "Dice",
    "Grammar",
    "Phrase",
    "Rule",
    "Source",
    "pick_weighted",
    "read_rules",
    "split_weight",
]

T = TypeVar("T")
_SLOT = re.compile(r"\{(\w+(?::\w)?)(?:\.(\w+)|@(\w+(?::\w)?))?\}")
_REGISTER = re.compile(r"<([^|<>]*)\|([^|<>]*)>")
_WEIGHT = re.compile(r"(\d+)\* ")
_FORMAL = 0.65  # probability of "vous" if English leaves the register open


class Dice:
    """Random choices from ``Random.random``, the only stream that Python guarantees."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, limit: int) -> int:
        """Return an integer in [0, limit)."""
        return int(self._random() * limit)

    def between(self, low: int, high: int) -> int:
        """Return an integer in [low, high]."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random() < probability

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices, all equally likely."""
        return choices[self.below(len(choices))]

    def pick_skewed(self, choices: Sequence[T]) -> T:
        """Return one of the choices, the first ones most often, like words in text."""
        draw = self._random()
        return choices[int(len(choices) * draw * draw)]

    def shuffle(self, items: Sequence[T]) -> list[T]:
        """Return the items in random order."""
        keyed = [(self._random(), index) for index in range(len(items))]
        return [items[index] for _, index in sorted(keyed)]


@dataclass(frozen=True)
class Phrase:
    """The content of a slot: its forms in both languages; the form "" is the base.

    ``agreement`` determines French adjectives: "m", "f", "mp" or "fp".
    """

    en: Mapping[str, str]
    fr: Mapping[str, str]
    agreement: str = "m"


@dataclass(frozen=True)
class Rule:
    """One English template with its weighted French translations."""

    english: str
    french: list[tuple[int, str]] = field(default_factory=list)
    weight: int = 1


Source = Callable[[Dice], Phrase]


@dataclass
class Grammar:
    """Rules for some symbols, and Python functions (``sources``) for the others."""

    rules: Mapping[str, Sequence[Rule]]
    sources: Mapping[str, Source]

    def sentence(self, dice: Dice) -> tuple[str, str]:
        """Draw one sentence pair from the symbol ``sentence``."""
        phrase = self.expand("sentence", dice, formal=dice.chance(_FORMAL))
        return _capitalize(phrase.en[""]), _capitalize(elide(phrase.fr[""]))

    def expand(self, symbol: str, dice: Dice, *, formal: bool) -> Phrase:
        """Draw a phrase for a symbol, in the formal or the informal register."""
        if symbol in self.sources:
            return self.sources[symbol](dice)
        rule = pick_weighted(dice, [(rule.weight, rule) for rule in self.rules[symbol]])
        french = pick_weighted(dice, rule.french)
        for mark, register in (("!vous ", True), ("!tu ", False)):
            if french.startswith(mark):
                french, formal = french[len(mark) :], register
        french = _REGISTER.sub(r"\1" if formal else r"\2", french)
        slots: dict[str, Phrase] = {}
        for match in _SLOT.finditer(rule.english):
            if match[1] not in slots:
                slots[match[1]] = self._fill_slot(match[1], slots, dice, formal=formal)
        return Phrase(
            {"": _SLOT.sub(lambda slot: _english(slot, slots), rule.english)},
            {"": _SLOT.sub(lambda slot: _french(slot, slots), french)},
        )

    def _fill_slot(
        self, slot: str, slots: Mapping[str, Phrase], dice: Dice, *, formal: bool
    ) -> Phrase:
        """Expand a slot into a phrase that no other slot of the same symbol has."""
        symbol = slot.partition(":")[0]
        same = [other for other in slots if other.partition(":")[0] == symbol]
        taken = [slots[other].en for other in same]
        while (phrase := self.expand(symbol, dice, formal=formal)).en in taken:
            pass
        return phrase


def read_rules(path: Path) -> dict[str, list[Rule]]:
    """Read a grammar file; the format is described at the top of this module."""
    sections: dict[str, list[Rule]] = {}
    rules: list[Rule] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            rules = sections.setdefault(line.strip("[]"), [])
            continue
        weight, text = split_weight(line.strip())
        if line.startswith(" "):
            rules[-1].french.append((weight, text))
        else:
            rules.append(Rule(text, weight=weight))
    return sections


def split_weight(text: str) -> tuple[int, str]:
    """Split ``3* text`` into 3 and the text; without a number the weight is 1."""
    match = _WEIGHT.match(text)
    return (int(match[1]), text[match.end() :]) if match else (1, text)


def pick_weighted(dice: Dice, choices: Sequence[tuple[int, T]]) -> T:
    """Return one of the choices, with probabilities in proportion to the weights."""
    left = dice.below(sum(weight for weight, _ in choices))
    for weight, choice in choices:
        left -= weight
        if left < 0:
            return choice
    raise ValueError("There must be at least one choice, but there is none.")


def _english(slot: re.Match[str], slots: Mapping[str, Phrase]) -> str:
    return slots[slot[1]].en[slot[2] or ""]


def _french(slot: re.Match[str], slots: Mapping[str, Phrase]) -> str:
    form = slots[slot[3]].agreement if slot[3] else slot[2] or ""
    return slots[slot[1]].fr[form]


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
