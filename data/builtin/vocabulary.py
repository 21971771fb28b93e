"""All phrases that can fill a slot, and those of them that never occur in train."""
from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Sequence, TypeVar

import cldr_names
import cldr_units
import cldr_values
import lexicon
from cldr_units import Unit
from synchronous import Dice, Phrase, Source

__all__ = ["Vocabulary"]

T = TypeVar("T")
_ONE_IN = 6  # one of six names is kept out of train
# Durations are written out, because running text does not contain "2 mths".
_LONG_ONLY = "duration minutes nights short_time spell stay wait years".split()


@dataclass(frozen=True)
class _Pool(Generic[T]):
    """Items to draw: ``common`` ones, and ``rare`` ones that train never contains."""

    common: Sequence[T]
    rare: Sequence[T]

    def draw(self, dice: Dice, *, rare_share: float) -> T:
        use_rare = dice.chance(rare_share) and self.rare
        return dice.pick(self.rare) if use_rare else dice.pick_skewed(self.common)


class Vocabulary:
    """Names, values and words; creating it chooses the rare names.

    Args:
        lexicon_path: the project's own nouns and adjectives.
        dice: decides which names are rare.
    """

    def __init__(self, lexicon_path: Path, dice: Dice) -> None:
        self._words = lexicon.read_lexicon(lexicon_path)
        self._units = {
            quantity: _Pool(common, rare)
            for quantity, (common, rare) in cldr_units.unit_pools().items()
        }
        self._names = {
            symbol: _split(names, dice)
            for symbol, names in cldr_names.name_phrases().items()
        }
        self._currencies = _split(cldr_names.CURRENCIES, dice)

    def sources(self, *, rare_share: float) -> dict[str, Source]:
        """Return the source of each slot; ``rare_share`` of the names are rare."""
        return {
            **cldr_values.value_sources(),
            **cldr_names.name_sources(self._name_draws(rare_share)),
            **{
                quantity: partial(self._measure, quantity, rare_share)
                for quantity in self._units
            },
            "small_price": partial(self._money, (2, 20), rare_share),
            "price": partial(self._money, (3, 900), rare_share),
            "money": partial(self._money, (1_000, 900_000), rare_share),
            "person": lexicon.person,
            "people": lexicon.people,
            **self._words,
        }

    def _name_draws(self, rare_share: float) -> dict[str, Source]:
        draws: dict[str, Source] = {
            symbol: partial(pool.draw, rare_share=rare_share)
            for symbol, pool in self._names.items()
        }

        def currency(dice: Dice) -> Phrase:
            code = self._currencies.draw(dice, rare_share=rare_share)
            return cldr_names.currency_name(code)

        return {**draws, "currency": currency}

    def _measure(self, quantity: str, rare_share: float, dice: Dice) -> Phrase:
        unit: Unit = self._units[quantity].draw(dice, rare_share=rare_share)
        short = quantity not in _LONG_ONLY and dice.chance(0.4)
        return cldr_units.measure(unit, dice, short=short)

    def _money(self, limits: tuple[int, int], rare_share: float, dice: Dice) -> Phrase:
        code = self._currencies.draw(dice, rare_share=rare_share)
        return cldr_values.money(code, dice, low=limits[0], high=limits[1])


def _split(items: Sequence[T], dice: Dice) -> _Pool[T]:
    shuffled = dice.shuffle(items)
    cut = len(shuffled) // _ONE_IN
    return _Pool(shuffled[cut:], shuffled[:cut])
