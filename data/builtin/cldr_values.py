"""Values formatted by CLDR's rules: dates, times, durations, money, numbers."""
from __future__ import annotations

import datetime
from decimal import Decimal
from functools import partial

from babel import Locale
from babel.dates import (
    format_date,
    format_interval,
    format_time,
    format_timedelta,
    get_day_names,
    get_quarter_names,
)
from babel.lists import format_list
from babel.numbers import (
    format_compact_decimal,
    format_currency,
    format_decimal,
    get_currency_precision,
)
from babel.units import format_unit

from cldr import EN, FR, render, clean
from french import starts_with_vowel
from synchronous import Dice, Phrase, Source

__all__ = ["money", "value_sources"]

# First and last day of the past and the future in the corpus, whenever it is made.
_PAST = datetime.date(1960, 1, 1), datetime.date(2024, 12, 31)
_FUTURE = datetime.date(2025, 1, 1), datetime.date(2039, 12, 31)

# Currencies whose symbol is better known than their code.
_WITH_SYMBOL = "USD EUR GBP JPY INR CAD AUD NZD MXN KRW PHP HKD".split()
_DAYS = {"day": 1, "week": 7, "month": 30, "year": 365}
# CLDR's patterns for the days of a calendar, English and French.
_DAY_PATTERNS = (
    ("EEEE, MMMM d, y", "EEEE d MMMM y"),
    ("EEEE, MMMM d", "EEEE d MMMM"),
    ("MMMM d, y", "d MMMM y"),
    ("MMMM d", "d MMMM"),
    ("M/d/y", "dd/MM/y"),
)

Limits = tuple[datetime.date, datetime.date]


def value_sources() -> dict[str, Source]:
    """Return the sources of values, which are the same in all splits."""
    return {
        "date": partial(_date, _FUTURE),
        "date_past": partial(_date, _PAST),
        "month": partial(_month, _FUTURE),
        "month_past": partial(_month, _PAST),
        "quarter": partial(_quarter, _FUTURE),
        "quarter_past": partial(_quarter, _PAST),
        "year": partial(_year, _FUTURE),
        "year_past": partial(_year, _PAST),
        "span": partial(_span, _FUTURE),
        "interval": partial(_interval, _PAST),
        "weekday": _weekday,
        "time": _time,
        "ago": partial(_distance, -1),
        "from_now": partial(_distance, 1),
        "elapsed": _elapsed,
        "percent": _percent,
        "count": partial(_number, 1_100, 990_000),
        "few": partial(_number, 2, 60),
        "millions": _millions,
    }


def money(code: str, dice: Dice, *, low: int, high: int) -> Phrase:
    """Format an amount, with the currency's name or its symbol."""
    cents = get_currency_precision(code) == 2 and dice.chance(0.4)
    amount = Decimal(dice.between(low * 100, high * 100)) / 100
    amount = amount if cents else Decimal(int(amount))
    if code in _WITH_SYMBOL and dice.chance(0.6):
        return render(lambda locale: _with_symbol(amount, code, locale, cents=cents))
    pattern = "#,##0.00" if cents else "#,##0"
    return render(
        lambda locale: format_currency(
            amount, code, pattern, locale, currency_digits=False, format_type="name"
        )
    )


def _with_symbol(amount: Decimal, code: str, locale: Locale, *, cents: bool) -> str:
    pattern = locale.currency_formats["standard"].pattern
    if not cents:
        pattern = pattern.replace(".00", "")
    return format_currency(amount, code, pattern, locale, currency_digits=False)


def _day(limits: Limits, dice: Dice) -> datetime.date:
    first, last = (day.toordinal() for day in limits)
    return datetime.date.fromordinal(dice.between(first, last))


def _french_day(day: datetime.date, pattern: str) -> str:
    text = clean(format_date(day, pattern, FR))
    # CLDR writes "1 mars", but French is "1er mars".
    return text.replace("1 ", "1er ", 1) if day.day == 1 else text


def _date(limits: Limits, dice: Dice) -> Phrase:
    day, (english, french) = _day(limits, dice), dice.pick(_DAY_PATTERNS)
    text = _french_day(day, french)
    forms = {form: f"{form} {text}" for form in ("le", "du", "au")}
    return Phrase({"": clean(format_date(day, english, EN))}, {"": text, **forms})


def _month(limits: Limits, dice: Dice) -> Phrase:
    day, pattern = _day(limits, dice), dice.pick(["MMMM y", "MMMM y", "MMMM"])
    english, french = (format_date(day, pattern, locale) for locale in (EN, FR))
    origin = ("d’" if starts_with_vowel(french) else "de ") + french
    return Phrase({"": english}, {"": french, "de": origin})


def _quarter(limits: Limits, dice: Dice) -> Phrase:
    year, number = _day(limits, dice).year, dice.between(1, 4)
    english, french = (get_quarter_names(locale=locale)[number] for locale in (EN, FR))
    return Phrase({"": f"{english} of {year}"}, {"": f"{french} {year}"})


def _year(limits: Limits, dice: Dice) -> Phrase:
    year = str(_day(limits, dice).year)
    return Phrase({"": year}, {"": year})


def _two_days(limits: Limits, dice: Dice) -> list[datetime.date]:
    start = _day(limits, dice)
    return [start, start + datetime.timedelta(days=dice.between(2, 40))]


def _span(limits: Limits, dice: Dice) -> Phrase:
    start, end = _two_days(limits, dice)
    with_year = dice.chance(0.5)
    first, last = (format_date(day, "MMMM d", EN) for day in (start, end))
    english = f"from {first} to {last}" + (f", {end.year}" if with_year else "")
    begin = _french_day(start, "d MMMM")
    if start.month == end.month:
        begin = begin.partition(" ")[0]
    finish = _french_day(end, "d MMMM y" if with_year else "d MMMM")
    return Phrase({"": english}, {"": f"du {begin} au {finish}"})


def _interval(limits: Limits, dice: Dice) -> Phrase:
    days = _two_days(limits, dice)
    return render(lambda locale: format_interval(*days, "yMMMd", locale=locale))


def _weekday(dice: Dice) -> Phrase:
    number = dice.below(7)
    english, french = (get_day_names(locale=locale)[number] for locale in (EN, FR))
    return Phrase({"": english, "s": english + "s"}, {"": french, "s": french + "s"})


def _time(dice: Dice) -> Phrase:
    minute = dice.pick([0, 0, 5, 10, 15, 15, 20, 30, 30, 40, 45, 50, dice.below(60)])
    moment = datetime.time(dice.between(5, 23), minute)
    english = "h a" if minute == 0 else "h:mm a"
    if minute == 0:
        french = "H 'h'"
    else:
        french = "HH:mm" if dice.chance(0.65) else "H 'h' mm"
    return Phrase(
        {"": clean(format_time(moment, english, locale=EN))},
        {"": clean(format_time(moment, french, locale=FR))},
    )


def _distance(direction: int, dice: Dice) -> Phrase:
    unit = dice.pick(list(_DAYS))
    delta = datetime.timedelta(days=direction * _DAYS[unit] * dice.between(2, 20))
    return render(
        lambda locale: format_timedelta(
            delta,
            granularity=unit,
            threshold=1e9,  # so high that the unit stays the given one
            add_direction=True,
            locale=locale,
        )
    )


def _elapsed(dice: Dice) -> Phrase:
    units = dice.pick([("hour", "minute"), ("minute", "second")])
    values = dice.between(2, 9), dice.between(2, 59)

    def write(locale: Locale) -> str:
        parts = [
            format_unit(value, "duration-" + unit, locale=locale)
            for value, unit in zip(values, units)
        ]
        return format_list(parts, "unit", locale)

    return render(write)


def _percent(dice: Dice) -> Phrase:
    value = Decimal(dice.between(11, 990)) / 10
    width = "short" if dice.chance(0.8) else "long"
    return render(lambda loc: format_unit(value, "concentr-percent", width, locale=loc))


def _number(low: int, high: int, dice: Dice) -> Phrase:
    value = dice.between(low, high)
    return render(lambda locale: format_decimal(value, locale=locale))


def _millions(dice: Dice) -> Phrase:
    value = dice.between(21, 999) * 100_000
    return render(
        lambda locale: format_compact_decimal(
            value, format_type="long", locale=locale, fraction_digits=1
        )
    )
