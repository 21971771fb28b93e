"""Names from CLDR: territories, cities, languages, scripts, currencies, time zones.

CLDR has the names in both languages; this module adds the French articles.
"""
from __future__ import annotations

from typing import Iterable, Mapping

from babel.lists import format_list
from babel.numbers import get_currency_name

from cldr import EN, FR, clean
from french import city_forms, noun_forms, territory_forms
from synchronous import Dice, Phrase, Source

__all__ = ["CURRENCIES", "currency_name", "name_phrases", "name_sources"]

# Territories by the article of their French name; "n": none. Names with more than one
# usage ("en" or "à Haïti") and names that running text does not use are left out.
_TERRITORIES = {
    "f": "FR BE CH DE IT ES GR PL SE NO FI HU IE IS AT BG RO HR SI SK CZ EE LV LT AL "
    "UA RU TR RS CN IN KR TH MY ID MN SY JO SA AM GE AU NZ EG TN DZ LY MR GM GN CI ET "
    "ER TZ ZM NA ZA AR BO CO JM DO",
    "m": "JP BR MX CA PT DK LU NP PK BD VN KH LA LK IR IQ LB KW QA YE AF KZ UZ BT AZ "
    "MA SN ML NE NG TD CM GA BJ GH KE UG RW SD AO MZ ZW MW PE CL EC VE PY UY GT HN CR "
    "PA GL CV GB",
    "mp": "US NL AE",
    "fp": "PH MV SC BS KM",
    "n": "CY MT CU MG SG MC MU",
}
_WITH_THE = "US NL AE PH MV SC BS KM DO GM GB".split()
_REGIONS = (
    "002 003 005 009 011 013 014 015 017 018 030 034 035 039 142 143 145 150 151 154 "
    "155 202 419"
).split()
# By default, CLDR names a city after the id of its time zone.
_CITIES = (
    "Africa/Addis_Ababa Africa/Algiers Africa/Cairo Africa/Tunis Africa/Dakar "
    "Africa/Nairobi Africa/Lagos Africa/Casablanca Africa/Kigali Africa/Lusaka "
    "Africa/Mogadishu Africa/Accra America/Havana America/Mexico_City America/Detroit "
    "America/Santo_Domingo America/Sao_Paulo America/New_York America/Toronto "
    "America/Lima America/La_Paz America/Montevideo America/Argentina/Ushuaia "
    "America/Halifax Asia/Almaty Asia/Ashgabat Asia/Baghdad Asia/Baku Asia/Beirut "
    "Asia/Calcutta Asia/Damascus Asia/Dubai Asia/Irkutsk Asia/Jerusalem Asia/Kabul "
    "Asia/Katmandu Asia/Manila Asia/Muscat Asia/Nicosia Asia/Novosibirsk Asia/Riyadh "
    "Asia/Samarkand Asia/Seoul Asia/Tashkent Asia/Tehran Asia/Ulaanbaatar Asia/Yerevan "
    "Asia/Tokyo Asia/Bangkok Australia/Adelaide Australia/Sydney Pacific/Auckland "
    "Europe/Athens Europe/Brussels Europe/Bucharest Europe/Copenhagen Europe/Kiev "
    "Europe/Lisbon Europe/London Europe/Moscow Europe/Vienna Europe/Warsaw "
    "Europe/Paris Europe/Berlin Europe/Rome Europe/Madrid Europe/Oslo Europe/Dublin "
    "Europe/Prague Europe/Budapest Europe/Zurich Europe/Istanbul"
).split()
_LANGUAGES = (
    "af sq de am ar hy eu be bn my bg ca zh ko hr da en es eo et fi fr cy ka el he hi "
    "hu id ga is it ja km lo la lv lt lb mk mg ms mt mi mn ne nl no oc ur uz fa pl pt "
    "ro ru sm sr sk sl so sv sw ta cs th bo tr uk vi wo xh yi zu br sc gd gsw pt_BR "
    "en_GB en_US fr_CA es_MX zh_Hans grc"
).split()
_SCRIPTS = (
    "Arab Armn Beng Cyrl Deva Ethi Geor Goth Grek Hang Hebr Java Khmr Laoo Latn Mong "
    "Runr Sinh Syrc Taml Thai Tibt"
).split()
CURRENCIES = (
    "USD EUR GBP JPY CHF CAD AUD NZD SEK NOK DKK PLN CZK HUF RON BGN RSD UAH TRY EGP "
    "MAD TND ZAR NGN KES ETB INR PKR KRW THB VND PHP SGD MXN ARS CLP COP UYU CUP JMD "
    "ISK ALL AMD KZT MNT IQD JOD SAR LBP SYP KHR ZMW TZS RWF MUR XPF HTG DOP RUB"
).split()
_ZONES = (
    "Africa_Western Alaska America_Central America_Eastern America_Pacific Arabian "
    "Argentina Atlantic Australia_Eastern Azores Chile China Cuba Europe_Central "
    "Europe_Eastern Europe_Western Israel Japan Korea Moscow New_Zealand Peru"
).split()
# Lists by symbol: the kind of names, joined by "and" or by "or".
_LISTS = {
    "cities": ("city", "standard"),
    "countries": ("country", "standard"),
    "countries_or": ("country", "or"),
    "currencies_or": ("currency", "or"),
    "languages": ("language", "standard"),
    "languages_or": ("language", "or"),
}


def name_phrases() -> dict[str, list[Phrase]]:
    """Return all names that sentences may use, by symbol."""
    territories = [
        _territory(code, kind)
        for kind, codes in _TERRITORIES.items()
        for code in codes.split()
    ]
    return {
        "country": territories,
        "region": [_territory(code, "f") for code in _REGIONS],
        "city": [_city(zone) for zone in _CITIES],
        "language": [_language(code) for code in _LANGUAGES],
        "script": [_same(EN.scripts[code], FR.scripts[code]) for code in _SCRIPTS],
        "zone": [_zone(name) for name in _ZONES],
    }


def name_sources(draws: Mapping[str, Source]) -> dict[str, Source]:
    """Return sources of names and of lists of names."""
    return {
        **draws,
        **{
            symbol: _list_source(draws[one], style)
            for symbol, (one, style) in _LISTS.items()
        },
    }


def _list_source(draw: Source, style: str) -> Source:
    def source(dice: Dice) -> Phrase:
        names: dict[str, Phrase] = {}
        length = dice.between(2, 4)
        while len(names) < length:
            phrase = draw(dice)
            names[phrase.en[""]] = phrase
        return _join(names.values(), style)

    return source


def _join(phrases: Iterable[Phrase], style: str) -> Phrase:
    """Join names form by form, so that each one has its article."""
    names = list(phrases)
    english = format_list([name.en[""] for name in names], style, EN)
    french = {
        form: format_list([name.fr[form] for name in names], style, FR)
        for form in names[0].fr
    }
    return Phrase({"": english}, french, "mp")


def _same(english: str, french: str) -> Phrase:
    return Phrase({"": clean(english)}, {"": clean(french)})


def _territory(code: str, kind: str) -> Phrase:
    english, french = clean(EN.territories[code]), clean(FR.territories[code])
    the = "the " if code in _WITH_THE else ""
    return Phrase({"": the + english, "bare": english}, territory_forms(french, kind))


def _city(zone: str) -> Phrase:
    default = {"city": zone.rpartition("/")[2].replace("_", " ")}
    english = EN.time_zones.get(zone, {}).get("city", default["city"])
    french = FR.time_zones.get(zone, {}).get("city", default["city"])
    return Phrase({"": clean(english)}, city_forms(clean(french)))


def _language(code: str) -> Phrase:
    name = clean(FR.languages[code])
    forms = {**noun_forms(name, "m"), "en": "en " + name}
    return Phrase({"": clean(EN.languages[code])}, forms)


def currency_name(code: str) -> Phrase:
    """Return a currency's name in the plural: "Swiss francs"."""
    english, french = (get_currency_name(code, 5, locale) for locale in (EN, FR))
    return _same(english, french)


def _zone(name: str) -> Phrase:
    english, french = (zones[name]["long"] for zones in (EN.meta_zones, FR.meta_zones))
    kind = "generic" if "generic" in english else "standard"
    return _same(english[kind], french[kind])
