"""English text as words only: numbers, times, money, units, abbreviations and signs written out."""

from __future__ import annotations

import re
from collections.abc import Callable

from edge_voice import number_words as words

__all__ = ["write_out"]

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_UNITS = {
    "km/h": "kilometre per hour", "mph": "mile per hour", "m/s": "metre per second", "MB/s": "megabyte per second",
    "GB/s": "gigabyte per second", "Mbps": "megabit per second", "Gbps": "gigabit per second", "tok/s": "token per second",
    "°C": "degree Celsius", "°F": "degree Fahrenheit", "°": "degree", "km²": "square kilometre", "m²": "square metre",
    "m³": "cubic metre", "km": "kilometre", "cm": "centimetre", "mm": "millimetre", "µm": "micrometre", "nm": "nanometre",
    "m": "metre", "ft": "foot", "mi": "mile", "kg": "kilogram", "mg": "milligram", "µg": "microgram", "g": "gram",
    "lb": "pound", "lbs": "pound", "oz": "ounce", "ml": "millilitre", "mL": "millilitre", "L": "litre", "l": "litre",
    "ms": "millisecond", "µs": "microsecond", "ns": "nanosecond", "s": "second", "sec": "second", "min": "minute",
    "h": "hour", "hr": "hour", "hrs": "hour", "GHz": "gigahertz", "MHz": "megahertz", "kHz": "kilohertz", "Hz": "hertz",
    "kW": "kilowatt", "kWh": "kilowatt hour", "MW": "megawatt", "mW": "milliwatt", "W": "watt", "V": "volt",
    "mA": "milliampere", "A": "ampere", "TB": "terabyte", "GB": "gigabyte", "MB": "megabyte", "kB": "kilobyte",
    "KB": "kilobyte", "TiB": "tebibyte", "GiB": "gibibyte", "MiB": "mebibyte", "KiB": "kibibyte", "px": "pixel",
    "dB": "decibel", "K": "kelvin", "J": "joule", "kJ": "kilojoule", "kcal": "kilocalorie", "x": "time",
}  # fmt: skip
_SHORT = {
    "Dr.": "Doctor", "Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miz", "Prof.": "Professor", "St.": "Saint", "Jr.": "Junior",
    "Sr.": "Senior", "e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus",
    "approx.": "approximately", "cf.": "compare", "a.m.": "A M", "p.m.": "P M", "Fig.": "Figure", "No.": "Number",
    "Sec.": "Section", "Vol.": "Volume", "w/o": "without", "w/": "with", "Inc.": "Incorporated", "Ltd.": "Limited",
    "Corp.": "Corporation",
}  # fmt: skip
_SIGNS = {
    "&": " and ", "%": " percent ", "@": " at ", "+": " plus ", "=": " equals ", "≈": " is about ",
    "≠": " is not equal to ", "≤": " is at most ", "≥": " is at least ", "<": " is less than ", ">": " is greater than ",
    "±": " plus or minus ", "×": " times ", "÷": " divided by ", "→": " to ", "⇒": " gives ", "←": " from ",
    "∞": " infinity ", "√": " the root of ", "π": " pi ", "°": " degrees ", "©": " copyright ", "™": "", "®": "",
    "§": " section ", "½": " one half ", "¼": " one quarter ", "¾": " three quarters ", "²": " squared ", "³": " cubed ",
    "∑": " the sum of ", "#": " number ", "/": " slash ", "\\": " backslash ", "^": " to the power of ", "|": ", ",
    "~": " about ", "_": " ", "•": ", ", "·": ", ", "{": ", ", "}": ", ", "[": ", ", "]": ", ", "*": " times ",
    "$": " dollars ", "€": " euros ", "£": " pounds ", "¥": " yen ", "¢": " cents ", "`": " ",
}  # fmt: skip
_N = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_UNIT = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))
_SCALE = r"thousand|million|billion|trillion"
_MONTH = "|".join(f"{month}|{month[:3]}" for month in _MONTHS)
_NOT_IN = r"(?<![\w.,:/$€£-])"

_Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]


def write_out(text: str) -> str:
    """Return English text without digits and signs: words, and the punctuation that voices pause at."""
    for short, word in _SHORT.items():
        pattern = rf"(?<![\w.]){re.escape(short)}" + ("" if short.endswith("/") else r"(?!\w)")
        text = re.sub(pattern, _with_stop(word) if short in ("etc.", "a.m.", "p.m.") else word, text)
    for pattern_, say in _RULES:
        text = pattern_.sub(say, text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    return re.sub(r"[ \t]{2,}", " ", text)


def _with_stop(word: str) -> Callable[[re.Match[str]], str]:
    """Return a function that writes an abbreviation out, with its full stop where that ends the text or a sentence."""

    def say(found: re.Match[str]) -> str:
        rest = found.string[found.end() :]
        return f"{word}." if not rest.strip() or re.match(r"\s+[A-Z]", rest) else word

    return say


def _date(found: re.Match[str]) -> str:
    year, month, day = int(found[1]), int(found[2]), int(found[3])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return f"{words.digits(found[1])}, {words.digits(found[2])}, {words.digits(found[3])}"
    return f"{_MONTHS[month - 1]} {words.ordinal(day)}, {_year(year)}"


def _year(number: int) -> str:
    return words.year(number) if 1000 <= number <= 9999 else words.cardinal(number)


def _day_of_month(found: re.Match[str]) -> str:
    month = next(name for name in _MONTHS if name.startswith(found[1][:3]))
    year = f", {_year(int(found[3]))}" if found[3] else ""
    return f"{month} {words.ordinal(int(found[2]))}{year}"


def _clock(found: re.Match[str]) -> str:
    hour, minute, half = int(found[1]), int(found[2]), (found["half"] or "").replace(".", "").strip().lower()
    seconds = f" and {words.cardinal(int(found['seconds']))} seconds" if found["seconds"] else ""
    if hour > 24 or minute > 59:
        return f"{words.cardinal(hour)} to {words.cardinal(minute)}"  # a score, a ratio
    return words.clock(hour, minute, half) + seconds


def _amount(found: re.Match[str]) -> str:
    minus = "minus " if found["minus"] else ""
    scale = found["scale"] or {"k": "thousand", "K": "thousand", "M": "million", "B": "billion"}.get(found["letter"] or "", "")
    return minus + words.money(found["sign"], found["amount"], scale.strip())


def _measure(found: re.Match[str]) -> str:
    minus = "minus " if found["minus"] else ""
    amount, unit = found["amount"], _UNITS[found["unit"]]
    return f"{minus}{words.decimal(amount)} {unit if amount == '1' else words.plural(unit)}"


def _number(found: re.Match[str]) -> str:
    minus, text = ("minus " if found["minus"] else ""), found["amount"]
    if re.fullmatch(r"1[1-9]\d\d|20\d\d", text) and not minus:
        return words.year(int(text))
    if len(text) > 1 and text[0] == "0" and "." not in text:
        return words.digits(text)
    return minus + words.decimal(text)


def _dotted(found: re.Match[str]) -> str:
    version = "version " if found["version"] else ""
    return version + " point ".join(words.cardinal(int(part)) for part in found["parts"].split("."))


def _lone_digits(found: re.Match[str]) -> str:
    said = words.cardinal(int(found[0])) if len(found[0]) <= 4 and found[0][0] != "0" else words.digits(found[0])
    return f" {said} "


_RULES: tuple[_Rule, ...] = (
    (re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b"), _date),
    (re.compile(rf"\b({_MONTH})\.? (\d{{1,2}})(?:st|nd|rd|th)?(?:,? (\d{{4}}))?\b"), _day_of_month),
    (re.compile(r"\+?\(?\b\d{2,4}\)?(?:[ -]\d{2,4}){2,5}\b"), lambda found: words.digits(found[0])),  # a telephone
    (
        re.compile(
            rf"{_NOT_IN}(\d{{1,2}}):(\d{{2}})(?::(?P<seconds>\d{{2}}))?(?P<half> ?[ap]\.?m\b\.?| ?[AP]\.?M\b\.?)?(?![:\d])"
        ),
        _clock,
    ),
    (
        re.compile(r"\b(\d{1,2}) ?([ap])\.?m\b\.?", re.IGNORECASE),
        lambda found: words.clock(int(found[1]), 0, found[2]),
    ),
    (
        re.compile(
            rf"(?P<minus>(?<![\w-])[-−])?(?P<sign>[$€£¥₹₩₿])\s?(?P<amount>{_N})(?:\s(?P<scale>{_SCALE})\b|(?P<letter>[kKMB])\b)?"
        ),
        _amount,
    ),
    (re.compile(rf"(?P<minus>(?<![\w-])[-−])?\b(?P<amount>{_N})\s?(?P<sign>[€£¢])(?P<scale>)(?P<letter>)"), _amount),
    (re.compile(r"\b(?P<version>v(?:ersion )?)?(?P<parts>\d{1,5}(?:\.\d{1,5}){2,})\b"), _dotted),
    (re.compile(r"\bv(\d+)(?:\.(\d+))?\b"), lambda found: f"version {words.decimal(found[0][1:])}"),
    (re.compile(r"\b(\d{1,6})(?:st|nd|rd|th)\b"), lambda found: words.ordinal(int(found[1]))),
    (re.compile(r"\b(\d{3})0s\b"), lambda found: _decade(int(found[1] + "0"))),
    (re.compile(r"(?<![\d/.])(\d{1,3})/(\d{1,3})(?![\d/.])"), lambda found: words.fraction(int(found[1]), int(found[2]))),
    (re.compile(r"(?<=\d)\s?[-–—]\s?(?=[$€£]?\d)"), lambda found: " to "),
    (re.compile(rf"(?P<minus>(?<![\w)-])[-−])?(?<![\w.])(?P<amount>{_N})\s?(?P<unit>{_UNIT})(?![\w²³/])"), _measure),
    (re.compile(r"(?<=\s)[-−](?=[A-Za-z]?\s)"), lambda found: "—"),
    (re.compile(r"(?<!\w)#(?=\d)"), lambda found: "number "),
    (re.compile(rf"(?P<minus>(?<![\w)-])[-−])?(?<![\w.])(?P<amount>{_N})(?![\w])(?!\.\d)"), _number),
    (re.compile(r"\d+"), _lone_digits),
)
"""Tried in this order; what is left of digits at the end is read one number at a time."""


def _decade(number: int) -> str:
    said = words.year(number)
    return (said[:-1] + "ies") if said.endswith("y") else said + "s"
