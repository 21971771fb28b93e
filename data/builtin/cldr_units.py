"""Measures formatted by CLDR's rules, with plausible values for each unit."""
from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from babel.units import format_unit

from cldr import render
from synchronous import Dice, Phrase

__all__ = ["Unit", "measure", "unit_pools"]

# Units by quantity: CLDR's id, smallest value, largest value, decimals. A star keeps
# the unit out of train.
_UNITS = {
    "length": "length-meter 1 400 1, length-centimeter 5 300 0, length-foot 2 900 0, "
    "length-inch 2 90 1, length-millimeter 2 900 0, *length-yard 5 400 0, "
    "length-decimeter 2 60 0, *length-fathom 2 80 0",
    "distance": "length-kilometer 2 9000 1, length-mile 2 5000 1, "
    "*length-nautical-mile 3 3000 0, length-meter 100 9000 0",
    "portion": "mass-gram 20 900 0, mass-kilogram 2 9 1, mass-ounce 2 30 0, "
    "mass-pound 2 9 1",
    "volume": "volume-liter 2 900 1, volume-milliliter 20 900 0, volume-gallon 2 90 1, "
    "volume-centiliter 10 75 0, volume-cubic-meter 2 9000 0, volume-barrel 2 500 0, "
    "*volume-pint 2 40 0, *volume-hectoliter 2 300 1",
    "temperature": "temperature-celsius -25 45 1, temperature-fahrenheit -10 110 0",
    "heat": "temperature-celsius 90 260 0, temperature-fahrenheit 200 480 0",
    "speed": "speed-kilometer-per-hour 5 320 0, speed-mile-per-hour 5 200 0, "
    "speed-meter-per-second 2 60 1, *speed-knot 4 70 0",
    "area": "area-square-meter 9 900 1, area-hectare 2 800 1, "
    "area-square-kilometer 2 90000 0, area-square-foot 100 9000 0, "
    "*area-square-mile 2 4000 0",
    "weight": "mass-kilogram 2 60 1, mass-gram 50 950 0, mass-pound 2 90 1, "
    "mass-ounce 3 60 0",
    "warm": "temperature-celsius 12 45 1",
    "cold": "temperature-celsius -30 11 1",
    "rain": "length-millimeter 2 90 0, length-inch 2 9 1, length-centimeter 2 30 0",
    "engine_power": "power-watt 150 2500 0, power-kilowatt 2 400 1, "
    "power-horsepower 5 600 0, *power-megawatt 2 9 1",
    "electricity": "energy-kilowatt-hour 90 900 1",
    "food_energy": "energy-kilocalorie 50 900 0, *energy-kilojoule 200 3000 0",
    "pressure": "pressure-hectopascal 960 1050 0, pressure-millibar 960 1050 0, "
    "pressure-kilopascal 90 300 0, *pressure-millimeter-ofhg 700 790 0",
    "data": "digital-megabyte 2 900 1, digital-gigabyte 2 500 1, "
    "digital-kilobyte 10 900 0, digital-terabyte 2 40 1, *digital-megabit 10 900 0",
    "frequency": "frequency-gigahertz 2 9 1, frequency-megahertz 50 900 1, "
    "frequency-kilohertz 20 900 0, *frequency-hertz 50 400 0",
    "duration": "duration-minute 2 90 0, duration-hour 2 72 0, duration-day 2 90 0, "
    "duration-week 2 12 0, duration-month 2 18 0",
    "stay": "duration-day 2 60 0, duration-week 2 12 0, duration-month 2 18 0",
    "small_volume": "volume-milliliter 20 900 0, volume-centiliter 5 75 0, "
    "volume-deciliter 2 8 0, *volume-fluid-ounce 2 20 0",
    "spell": "duration-hour 2 48 0, duration-day 2 20 0, duration-week 2 6 0",
    "race": "length-kilometer 2 42 0, length-mile 2 26 0, length-meter 400 9000 0",
    "minutes": "duration-minute 5 90 0",
    "years": "duration-year 2 60 0",
    "short_time": "duration-minute 5 59 0, duration-hour 2 9 1",
    "wait": "duration-minute 2 59 0, duration-second 5 59 0",
    "nights": "duration-night 2 14 0",
}


@dataclass(frozen=True)
class Unit:
    """A unit of measurement and its plausible values."""

    name: str
    low: int
    high: int
    decimals: int


def unit_pools() -> dict[str, tuple[list[Unit], list[Unit]]]:
    """Return the units of all splits and those kept out of train, by quantity."""
    pools: dict[str, tuple[list[Unit], list[Unit]]] = {}
    for quantity, listed in _UNITS.items():
        pools[quantity] = ([], [])
        for entry in listed.split(", "):
            name, low, high, decimals = entry.split()
            unit = Unit(name.strip("*"), int(low), int(high), int(decimals))
            pools[quantity][name.startswith("*")].append(unit)
    return pools


def measure(unit: Unit, dice: Dice, *, short: bool) -> Phrase:
    """Format a value with its unit, written out or abbreviated."""
    scale = 10**unit.decimals if dice.chance(0.5) else 1
    value = Decimal(dice.between(unit.low * scale, unit.high * scale)) / scale
    width = "short" if short else "long"
    return render(lambda locale: format_unit(value, unit.name, width, locale=locale))
