"""What a formula is made of."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Atom",
    "Binomial",
    "Boxed",
    "Fenced",
    "Fraction",
    "Matrix",
    "Node",
    "Root",
    "Row",
    "Script",
    "UnsupportedMathsError",
]


class UnsupportedMathsError(ValueError):
    """The formula has something that cannot be shown faithfully as text, or is not well-formed."""


@dataclass(frozen=True, slots=True)
class Atom:
    """Characters that belong together: a letter, number, operator, function name or text. Kinds as in maths_symbols."""

    text: str
    kind: str


@dataclass(frozen=True, slots=True)
class Row:
    """Nodes side by side."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """A base with a superscript, a subscript or both."""

    base: Node
    sup: Row | None
    sub: Row | None


@dataclass(frozen=True, slots=True)
class Fraction:
    """A fraction."""

    above: Row
    below: Row


@dataclass(frozen=True, slots=True)
class Binomial:
    """A binomial coefficient."""

    above: Row
    below: Row


@dataclass(frozen=True, slots=True)
class Root:
    """A root; the degree is None for a square root."""

    body: Row
    degree: Row | None


@dataclass(frozen=True, slots=True)
class Boxed:
    """A boxed result."""

    body: Row


@dataclass(frozen=True, slots=True)
class Fenced:
    """A body between brackets that grow with it; "" for none."""

    left: str
    body: Row
    right: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of cells between brackets. `is_aligned` is for equations below each other, aligned at "&"."""

    rows: tuple[tuple[Row, ...], ...]
    left: str
    right: str
    is_aligned: bool = False
    is_cases: bool = False


Node = Atom | Row | Script | Fraction | Binomial | Root | Boxed | Fenced | Matrix
