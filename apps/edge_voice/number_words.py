"""English words for numbers: how many, which one, years, decimals, digits, money and times of day."""

from __future__ import annotations

__all__ = ["cardinal", "clock", "decimal", "digits", "fraction", "money", "ordinal", "plural", "year"]

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_LARGE = ("", " thousand", " million", " billion", " trillion")
_MOST = 10 ** (3 * len(_LARGE)) - 1
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth", "twelve": "twelfth",
}  # fmt: skip
_MONEY = {
    "$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny"), "¥": ("yen", ""), "₹": ("rupee", "paisa"),
    "₩": ("won", ""), "₿": ("bitcoin", ""), "¢": ("cent", ""),
}  # fmt: skip
_SAME_IN_PLURAL = frozenset({"yen", "won", "hertz", "kilohertz", "megahertz", "gigahertz", "Celsius", "Fahrenheit", "kelvin"})


def cardinal(number: int) -> str:
    """Return "forty-two" for 42. What is too long for that is read digit by digit."""
    if number < 0:
        return f"minus {cardinal(-number)}"
    if number > _MOST:
        return digits(str(number))
    if number < 1000:
        return _below_thousand(number)
    groups, place = list[str](), 0
    while number:
        number, rest = divmod(number, 1000)
        if rest:
            groups.insert(0, _below_thousand(rest) + _LARGE[place])
        place += 1
    return " ".join(groups)


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    if rest < 20:
        words = _SMALL[rest] if rest or not hundreds else ""
    else:
        tens, ones = divmod(rest, 10)
        words = _TENS[tens - 2] + (f"-{_SMALL[ones]}" if ones else "")
    return f"{_SMALL[hundreds]} hundred {words}".rstrip() if hundreds else words


def ordinal(number: int) -> str:
    """Return "forty-second" for 42."""
    words = cardinal(number)
    head, last = words[: len(words) - len(words.replace("-", " ").split(" ")[-1])], words.replace("-", " ").split(" ")[-1]
    if last in _ORDINALS:
        return head + _ORDINALS[last]
    return head + (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")


def year(number: int) -> str:
    """Return "nineteen eighty-four" for 1984; a year has four digits."""
    century, rest = divmod(number, 100)
    if number % 1000 < 10:
        return cardinal(number)  # two thousand one
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {f'oh {_SMALL[rest]}' if rest < 10 else cardinal(rest)}"


def digits(text: str) -> str:
    """Return "four two" for "42"; all characters but digits separate."""
    return " ".join(_SMALL[int(character)] for character in text if character.isascii() and character.isdigit())


def decimal(text: str) -> str:
    """Return "three point one four" for "3.14", "twelve hundred" never; commas between thousands are left out."""
    whole, _, part = text.replace(",", "").partition(".")
    words = cardinal(int(whole)) if whole else "zero"
    if len(whole) > 1 and whole.startswith("0"):
        words = digits(whole)
    return f"{words} point {digits(part)}" if part else words


def fraction(above: int, below: int) -> str:
    """Return "three quarters" for 3/4, "three over twenty-five" where no name is usual."""
    if below in (2, 3, 4, 5, 8, 10) and 0 < above < below:
        name = {2: "half", 4: "quarter"}.get(below) or ordinal(below)
        if above == 1:
            return f"one {name}"
        return f"{cardinal(above)} {'halves' if below == 2 else name + 's'}"
    return f"{cardinal(above)} over {cardinal(below)}"


def money(sign: str, amount: str, scale: str = "") -> str:
    """Return "five dollars and twenty cents" for "$", "5.20"; "three million dollars" with the scale "million"."""
    unit, part_unit = _MONEY[sign]
    whole, _, part = amount.replace(",", "").partition(".")
    if scale or len(part) not in (0, 2) or not part_unit:
        return f"{decimal(amount)} {scale}".rstrip() + " " + (unit if decimal(amount) == "one" and not scale else plural(unit))
    said = [f"{cardinal(int(whole))} {unit if int(whole) == 1 else plural(unit)}"] if int(whole) or not int(part or 0) else []
    if int(part or 0):
        said.append(f"{cardinal(int(part))} {part_unit if int(part) == 1 else plural(part_unit)}")
    return " and ".join(said)


def clock(hour: int, minute: int, half: str = "") -> str:
    """Return "nine thirty A M" for 9, 30, "am"; "fourteen oh five" for 14, 5; "ten o'clock" for 10, 0."""
    if half:
        said = cardinal(hour) + (f" {_minutes(minute)}" if minute else "")
        return f"{said} {half[0].upper()} M"
    if minute == 0:
        return f"{cardinal(hour)} o'clock" if 0 < hour <= 12 else f"{cardinal(hour)} hundred hours"
    return f"{cardinal(hour)} {_minutes(minute)}"


def _minutes(minute: int) -> str:
    return f"oh {_SMALL[minute]}" if minute < 10 else cardinal(minute)


def plural(unit: str) -> str:
    """Return the plural of a unit; of "kilometre per hour" that of its first word."""
    first, space, rest = unit.partition(" ")
    if first in ("foot", "inch", "penny", "paisa", "degree"):
        first = {"foot": "feet", "inch": "inches", "penny": "pence", "paisa": "paise", "degree": "degrees"}[first]
    elif first not in _SAME_IN_PLURAL:
        first += "s"
    return first + space + rest
