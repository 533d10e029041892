"""Sizes, durations, names and failures as text: one form each, for every message, table and page."""

from __future__ import annotations

import re
import shlex

__all__ = ["count_text", "duration_text", "one_line", "plural", "quoted", "reason", "size_text"]


_CONTROLS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]")
"""Control characters, line ends, and marks that change the direction of the text around them."""

_EXPECTED = re.compile(r"Expected `([^`]+)`(.*?)(?:, got `([^`]+)`)?")
_FIELD = re.compile(r"Field '(\w+)' expected ([\w |]+), got (\w+)")
_FIELD_VALUE = re.compile(r"Field '(\w+)' with value .*? doesn't match any type")
_RUST = re.compile(r"invalid type: ([a-z]+)(?: point)?(?: `[^`]*`| \".*?\")?, expected (.+?) (at line \d+ column \d+)")
_RUST_KIND = re.compile(r"data did not match any variant of untagged enum \w+ (at line \d+ column \d+)")
_FIELD_NAME = re.compile(r"Object (missing required|contains unknown) field `([^`]+)`")
_CHOICE = re.compile(r"Invalid enum value (.+)")
_SIGNS = {">=": "of at least", "<=": "of at most", ">": "above", "<": "below"}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "null": "null",
    "array": "a list",
    "object": "a table",
    "NoneType": "null",
    "None": "null",
    "list": "a list",
    "tuple": "a list",
    "dict": "a table",
    "map": "a table",
    "a map": "a table",
    "sequence": "a list",
    "a sequence": "a list",
    "string": "text",
    "a string": "text",
    "boolean": "true or false",
    "a boolean": "true or false",
    "integer": "a whole number",
    "floating": "a number",
    "u8": "a whole number",
    "u32": "a whole number",
    "u64": "a whole number",
    "usize": "a whole number",
    "f32": "a number",
    "f64": "a number",
}
"""Libraries' names of types -> plain words."""


def one_line(text: str) -> str:
    """Return a text from outside, such as a name in a model file, as one line: its words with one blank between them.

    Characters that control a terminal or the direction of text are left out.
    """
    return " ".join(_CONTROLS.sub(" ", text).split())


def short_name(text: str, max_bytes: int = 100) -> str:
    """Return a name from outside as one that a file may be called by, as in `one_line`; "" if nothing is left of it.

    What is not UTF-8 becomes question marks, and what is longer than `max_bytes` is cut off.
    """
    whole = one_line(text.encode(errors="replace").decode())
    return whole.encode()[:max_bytes].decode(errors="ignore").strip()


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: "1 message", "2,000 messages"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size_text(n_bytes: float) -> str:
    """Return a size in decimal units, as disks are sold: "98.4 MB".

    Args:
        n_bytes: of a file, a disk or memory.
    """
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < (1000 if unit == "B" else 999.95):
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def count_text(number: int) -> str:
    """Return a number of parameters as model names have it: "135M", "1.7B"."""
    if number < 999_500:
        return f"{number:,}"
    if number < 999_500_000:
        return f"{number / 1e6:.0f}M"
    return f"{number / 1e9:.1f}B" if number < 99.95e9 else f"{number / 1e9:.0f}B"


def duration_text(seconds: float) -> str:
    """Return a duration as exact as is worth reading: "0.31 s", "12 s", "5 min", "1.5 h".

    Args:
        seconds: below 0 counts as 0.
    """
    seconds = max(0.0, seconds)
    if seconds < 59.5:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 59.5 * 60 else f"{seconds / 3600:.1f} h"


def reason(error: BaseException) -> str:
    """Return why something failed, for a message: the system's words without number and path, no words of Python."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text, at byte {error.start}"
    return type_words(str(error))


def type_words(text: str) -> str:
    """Return a library's message about a value of a wrong type in plain words; another message as it is.

    "Expected `int | null`, got `str` - at `$.head_dim`" (msgspec) becomes "head_dim is text, and should be a whole number or
    null", "Field 'use_cache' expected bool, got dict (value: {})" (huggingface_hub) "use_cache is a table, and should be true
    or false", "invalid type: map, expected u32 at line 1 column 7" (Rust) "the value at line 1, column 7 is a table, and should
    be a whole number".
    """
    if found := _FIELD.search(text):
        name, wanted, given = found.groups()
        return f"{name} is {_kinds(given)}, and should be {_kinds(wanted)}"
    if found := _FIELD_VALUE.search(text):
        return f"{found[1]} is of a wrong type"
    if found := _RUST.search(text):
        given, wanted, place = found.groups()
        return f"the value {place.replace(' column', ', column')} is {_kinds(given)}, and should be {_kinds(wanted)}"
    if found := _RUST_KIND.search(text):
        return f"the value {found[1].replace(' column', ', column')} is of a wrong kind"
    what, _, place = text.partition(" - at ")
    name = place.replace("`", "").removeprefix("key in ").removeprefix("$").removeprefix(".")
    name = f"an entry of {name.removesuffix('[...]') or 'it'}" if name.endswith("[...]") else name
    name = f"a key of {name or 'it'}" if place.startswith("`key`") else name or "it"
    if found := _EXPECTED.fullmatch(what):
        wanted, more, given = found.groups()
        return f"{name}{f' is {_kinds(given)}, and' if given else ''} should be {_kinds(wanted)}{_limit(more or '')}"
    if found := _FIELD_NAME.fullmatch(what):
        is_missing, key = found[1] == "missing required", found[2]
        where = f" in {name}" if place else ""
        return f"{key} is missing{where}" if is_missing else f"{key}{where} is not known"
    if found := _CHOICE.fullmatch(what):
        return f"{name} is {found[1]}, which is not known"
    return f"{name}: {what}" if place else text


def _kinds(names: str) -> str:
    kinds = (name.strip() for name in re.split(r"\|| or ", names))
    return " or ".join(dict.fromkeys("a table" if name.startswith("struct ") else _KINDS.get(name, name) for name in kinds))


def _limit(more: str) -> str:
    sign, _, number = more.strip().partition(" ")
    return f" {_SIGNS[sign]} {number}" if sign in _SIGNS else more


def quoted(value: object) -> str:
    """Return a path, name or text as one word of a shell's command, for the commands that hints and notes show."""
    return shlex.quote(str(value))
