"""Limits of one rendering of a chat template, and the price of each operation. See `edge.prompt.sandbox`.

Nothing can interrupt a single long operation of the interpreter, so an operation that multiplies text (`*`, replace, join,
format, ...) is priced before it runs, and everything that repeats pays a step each time.
"""

from __future__ import annotations

import re
import string
import time
from collections.abc import ItemsView, Iterable, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jinja2.utils import Namespace

__all__ = [
    "Budget",
    "LimitError",
    "Limits",
    "budget",
    "call_method",
    "check_binop",
    "check_filter",
    "check_numbers",
    "join",
    "pay",
    "price_format",
]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one rendering. Real templates stay far below: the longest known has 20 thousand characters.

    Attributes:
        source_chars: length of the template itself.
        steps: loop turns, calls, operators and filters.
        chars: characters of text made on the way, besides `chars_per_input_char` for each character of the input.
        chars_per_input_char: see `chars`.
        seconds: wall clock; the other limits end a rendering first, except on a very slow or busy device.
    """

    source_chars: int = 500_000
    steps: int = 1_000_000
    chars: int = 50_000_000
    chars_per_input_char: int = 200
    seconds: float = 5.0


class LimitError(Exception):
    """The template used up its budget. Not a Jinja or Python error, so that nothing in between catches it."""


_MAX_NUMBER = 100_000  # the sandbox's own limit on ranges; no template needs a larger width, count or indent
_MAX_BITS = 4096
_MAX_NEEDLE = 4096  # longest text to search for or to strip: some of Python's searches take len(text) * len(needle)
_FORWARD_METHODS = frozenset(("endswith", "find", "index", "partition", "split", "startswith", "removeprefix", "removesuffix"))
_CONTAINERS = (list, tuple, Mapping, set, frozenset, KeysView, ValuesView, ItemsView)


class Budget:
    """The rest of the limits in one rendering."""

    def __init__(self, limits: Limits, n_input_chars: int = 0) -> None:
        self.chars = limits.chars + limits.chars_per_input_char * n_input_chars
        self._steps = limits.steps
        self._steps_to_clock = 0
        self._deadline = time.monotonic() + limits.seconds
        # Sizes of containers, by identity. Templates cannot change them, and being held here they cannot go away either.
        self._sizes: dict[int, tuple[object, int]] = {}

    def step(self, count: int = 1) -> None:
        self._steps -= count
        if self._steps < 0:
            raise LimitError("it runs too many steps")
        self._steps_to_clock -= count
        if self._steps_to_clock < 0:
            self._steps_to_clock = 64
            if time.monotonic() > self._deadline:
                raise LimitError("it runs too long")

    def spend(self, n_chars: int) -> None:
        """Pay for text."""
        self.chars -= n_chars
        if self.chars < 0:
            raise LimitError("it makes too much text")

    def measure(self, value: object) -> int:
        """Return about the length of `value` as text, counting what is in it as often as it is in it."""
        if isinstance(value, str):
            return len(value) + 1
        if isinstance(value, int):
            return value.bit_length() // 3 + 1
        if isinstance(value, Namespace):
            # Namespaces can change after they were measured, and could then hold themselves.
            raise LimitError("it puts a namespace into a value")
        if not isinstance(value, _CONTAINERS):
            return 1
        known = self._sizes.get(id(value))
        if known is not None:
            return known[1]
        self.step(1 + len(value) // 16)
        size = 1 + sum(map(self.measure, value))
        if isinstance(value, Mapping):
            size += sum(map(self.measure, value.values()))
        if size > self.chars:
            raise LimitError("it makes too much text")
        self._sizes[id(value)] = (value, size)
        return size


budget: ContextVar[Budget] = ContextVar("edge_template_budget")
"""The budget of the rendering that runs in this context."""


def pay(value: Any) -> Any:
    """Pay for a value and return it; refuse nested lists that would explode when written out."""
    left = budget.get()
    if isinstance(value, str):
        left.spend(len(value))
    elif isinstance(value, _CONTAINERS):
        left.measure(value)
        left.spend(len(value))
    return value


def join(parts: Iterable[object], separator: str = "") -> str:
    """Return separator.join(parts), paid for part by part."""
    left = budget.get()
    texts = []
    for part in parts:
        left.step()
        text = str(part)
        left.spend(len(text) + len(separator))
        texts.append(text)
    return separator.join(texts)


def check_binop(operator: str, left: Any, right: Any) -> None:
    """Pay for an operator before it runs."""
    purse = budget.get()
    purse.step()
    if operator == "%" and isinstance(left, str):
        values = right.values() if isinstance(right, Mapping) else right if isinstance(right, tuple) else (right,)
        purse.spend(_price_percent(left, values))
    elif operator == "+" and isinstance(left, str):
        purse.spend(len(left) + (len(right) if isinstance(right, str) else 0))
    elif operator == "+" and isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        purse.spend(len(left) + len(right))
        if purse.measure(left) + purse.measure(right) > purse.chars:
            raise LimitError("it makes too much text")
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                check_numbers([times])
                purse.spend(purse.measure(value) * max(0, times))
    if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        n_bits = left.bit_length() * max(0, right) if operator == "**" else left.bit_length() + right.bit_length()
        if n_bits > _MAX_BITS:
            raise LimitError("it computes with huge numbers")


def call_method(text: str, name: str, args: tuple[Any, ...]) -> str | None:
    """Pay for a method of str before it runs. Returns the result if it was computed here, None if Python may compute it."""
    check_numbers(args)
    if name == "join" and len(args) == 1:
        return join(args[0], text)
    if name == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
        budget.get().spend(_price_replace(text, args[0], args[1]))
    elif name not in _FORWARD_METHODS and any(isinstance(arg, str) and len(arg) > _MAX_NEEDLE for arg in args):
        raise LimitError(f"it calls {name}() with a huge text")
    return None


def check_filter(name: str, value: Any, options: list[Any]) -> None:
    """Pay for a filter before it runs."""
    purse = budget.get()
    purse.step()
    check_numbers(options)
    if name == "replace" and len(options) >= 2:
        purse.spend(_price_replace(str(value), str(options[0]), str(options[1])))
    elif name == "indent":
        width = max([4, *(len(o) if isinstance(o, str) else o for o in options if isinstance(o, (str, int)))])
        purse.spend(width * (str(value).count("\n") + 1))
    elif name == "format":
        purse.spend(_price_percent(str(value), options))
    elif name == "sum" and not all(isinstance(option, (int, float, str)) for option in options):
        raise LimitError("it adds up things that are not numbers")
    elif name in ("int", "float", "round") and isinstance(value, str) and len(value) > 1000:
        raise LimitError("it reads a number of more than 1,000 digits")


def check_numbers(values: Iterable[object]) -> None:
    """Refuse numbers that are too large for a size."""
    if any(isinstance(value, int) and abs(value) > _MAX_NUMBER for value in values):
        raise LimitError(f"it uses a number above {_MAX_NUMBER:,} as a size")


def price_format(text: str, values: Iterable[object]) -> int:
    """Return an upper bound of the length of text.format(values)."""
    n_fields = 0
    for _, field, spec, _ in string.Formatter().parse(text):
        if field is None:
            continue
        n_fields += 1
        if spec and (re.search(r"\d{5}", spec) or "{" in spec):
            raise LimitError("it formats text with a huge width, or one taken from a value")
    return _price_fields(text, n_fields, values)


def _price_percent(text: str, values: Iterable[object]) -> int:
    if re.search(r"\d{5}|\*", text.partition("%")[2]):
        raise LimitError("it formats text with a huge width, or one taken from a value")
    return _price_fields(text, text.count("%"), values)


def _price_fields(text: str, n_fields: int, values: Iterable[object]) -> int:
    purse = budget.get()
    return len(text) + n_fields * (max(map(purse.measure, values), default=0) + 10_000)


def _price_replace(text: str, old: str, new: str) -> int:
    n_times = text.count(old) if old else len(text) + 1
    return len(text) + n_times * max(0, len(new) - len(old))
