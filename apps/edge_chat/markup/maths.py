"""Formulas as one line of Unicode: x², ½, √π, ∑ᵢ₌₁ⁿ. `maths_block` draws displayed ones on several lines.

The result means the same as the LaTeX, or there is none: then the source is shown as it is. No published converter promises
that: pylatexenc turns \\frac{a+b}{c} into a+b/c and drops commands that it does not know, as flatlatex does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_chat.markup.maths_parser import parse
from edge_chat.markup.maths_symbols import SUBSCRIPTS, SUPERSCRIPTS, VULGAR
from edge_chat.markup.maths_tree import (
    Atom,
    Binomial,
    Boxed,
    Fenced,
    Fraction,
    Matrix,
    Node,
    Root,
    Row,
    Script,
    UnsupportedMathsError,
)

__all__ = ["Part", "flat", "is_single", "join_spaced", "line_of", "part_of", "script_text", "to_unicode"]

_ROOTS = {"3": "∛", "4": "∜"}


def to_unicode(source: str) -> str | None:
    """Return a formula as one line of text; None if that would lose something.

    Args:
        source: LaTeX without its delimiters.
    """
    try:
        text = line_of(parse(source))
    except UnsupportedMathsError:
        return None
    return text.strip() or None


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the line, with what decides the spaces around it.

    Attributes:
        text: the piece.
        kind: as in maths_symbols, and "frac" for a fraction written with a slash, "root" for a root without brackets.
        touched: the piece as it must be when an operand follows at once; "" if that makes no difference.
    """

    text: str
    kind: str
    touched: str = ""


def line_of(row: Row, *, is_tight: bool = False) -> str:
    """Return nodes as one line. A tight one has no spaces around operators, as in a superscript."""
    return join([part_of(node, is_tight) for node in flat(row.nodes)], is_tight=is_tight)


def join(parts: Sequence[Part], *, is_tight: bool = False) -> str:
    """Put pieces side by side: spaces around operators, brackets where the neighbours would change the meaning."""
    kinds = [part.kind for part in parts]
    gaps = join_spaced(kinds, is_tight=is_tight)
    text = ""
    for i, (part, gap) in enumerate(zip(parts, gaps, strict=True)):
        before = kinds[i - 1] if i else ""
        after = kinds[i + 1] if i + 1 < len(kinds) else ""
        is_between = before in _OPERANDS or "slash" in (before, after) or after in ("op", "space")
        piece = part.text
        if after in _OPERANDS and part.touched and not gaps[i + 1]:
            piece = part.touched
        elif part.kind == "frac" and (is_between or after in _OPERANDS):
            piece = f"({piece})"
        text += " " + piece if gap and not text.endswith(" ") and not piece.startswith(" ") else piece
    return text


def join_spaced(kinds: Sequence[str], *, is_tight: bool = False) -> list[bool]:
    """Return which of the pieces, given by their kinds, have a space before them."""
    kinds = list(kinds)
    for i, kind in enumerate(kinds):  # a sign is not an operator between two things
        if kind == "bin" and (i == 0 or kinds[i - 1] in ("bin", "rel", "open", "punct", "op", "space")):
            kinds[i] = "sign"
        if kind == "bin" and i == len(kinds) - 1:
            kinds[i] = "ord"
    return [i > 0 and _has_space(kinds[i - 1], kind, is_tight) for i, kind in enumerate(kinds)]


_OPERANDS = ("ord", "frac", "vulgar", "root", "open", "close", "number", "fenced")


def _has_space(left: str, right: str, is_tight: bool) -> bool:
    if "space" in (left, right):
        return False
    if "text" in (left, right):
        return not is_tight and bool({left, right} & {"rel", "bin"})
    if left == "op" or (right == "op" and left not in ("open", "sign", "slash")):
        return not (left == "op" and right in ("open", "fenced", "punct", "close"))
    if is_tight:
        return False
    if left == "punct":
        return True
    if "rel" in (left, right):
        return left != "open" and right not in ("close", "punct")
    return "bin" in (left, right)


def flat(nodes: Sequence[Node]) -> list[Node]:
    """Take groups that only hold other nodes out of their braces."""
    out: list[Node] = []
    for node in nodes:
        out += flat(node.nodes) if isinstance(node, Row) else [node]
    return out


def part_of(node: Node, is_tight: bool = False) -> Part:
    """Return a node as a piece of a line."""
    if isinstance(node, Atom):
        return Part(node.text, node.kind)
    if isinstance(node, Script):
        return _script(node)
    if isinstance(node, Fraction):
        return _fraction(node)
    if isinstance(node, Root):
        return _root(node)
    if isinstance(node, Fenced):
        return Part(f"{node.left}{line_of(node.body, is_tight=is_tight)}{node.right}", "fenced")
    if isinstance(node, Binomial):
        return Part(f"({line_of(node.above)} choose {line_of(node.below)})", "fenced")
    if isinstance(node, Boxed):
        return Part(f"[{line_of(node.body)}]", "fenced")
    if isinstance(node, Matrix):
        return _matrix(node)
    return Part(line_of(node, is_tight=is_tight), "ord")


def is_single(row: Row) -> bool:
    """Return whether a row is one letter, number, name or bracketed thing, which needs no brackets of its own."""
    nodes = flat(row.nodes)
    if len(nodes) != 1:
        return False
    node = nodes[0]
    if isinstance(node, Script):
        return (
            is_single(Row((node.base,)))
            and script_text(node.sup, SUPERSCRIPTS) != ""
            and script_text(node.sub, SUBSCRIPTS) != ""
        )
    if isinstance(node, Fenced):
        return bool(node.left and node.right)
    return (isinstance(node, Atom) and node.kind in ("ord", "number")) or isinstance(node, (Binomial, Boxed))


def script_text(row: Row | None, table: dict[str, str]) -> str | None:
    """Return a script in the small characters of `table`; "" if some have none, None if there is no script."""
    if row is None:
        return None
    nodes = flat(row.nodes)
    if not all(isinstance(node, Atom) and node.kind not in ("space",) for node in nodes):
        return ""
    text = "".join(node.text for node in nodes if isinstance(node, Atom))
    return "".join(table[character] for character in text) if text and all(c in table for c in text) else ""


def _script(node: Script) -> Part:
    part = part_of(node.base)
    base, kind, base_row = part.text, part.kind, Row((node.base,))
    bases = flat((node.base,))
    is_double = len(bases) == 1 and isinstance(bases[0], Script) and bool(bases[0].sup or (bases[0].sub and node.sub))
    if (
        is_double
        or kind in ("frac", "root", "vulgar")
        or (not is_single(base_row) and kind not in ("op", "close", "rel", "bin") and base)
    ):
        base = f"({base})"
        kind = "ord"
    text = touched = base
    sub, sup = script_text(node.sub, SUBSCRIPTS), script_text(node.sup, SUPERSCRIPTS)
    for row, small, mark in ((node.sub, sub, "_"), (node.sup, sup, "^")):
        if row is not None:
            inner = line_of(row, is_tight=True)
            if not inner:
                continue
            closed = small or f"{mark}({inner})"
            is_open = not small and _is_closed(row, inner)
            text += mark + inner if is_open else closed
            touched += closed
    return Part(text, "ord" if kind in ("text", "space", "punct", "fenced", "number") else kind, touched)


def _is_closed(row: Row, inner: str) -> bool:
    """Return whether a script ends visibly without brackets: one character, like ∞, or something in brackets."""
    return is_single(row) and (len(inner) == 1 or inner[-1] in ")]}⟩")


def _fraction(node: Fraction) -> Part:
    above, below = line_of(node.above), line_of(node.below)
    if not above or not below:
        raise UnsupportedMathsError("half a fraction")
    if above.isdecimal() and below.isdecimal() and above.isascii() and below.isascii():
        vulgar = VULGAR.get((int(above), int(below))) if len(above + below) < 4 else None
        if vulgar:
            return Part(vulgar, "vulgar")
    if not is_single(node.above) and not _is_product(node.above) and not _is_differential(node.above):
        above = f"({above})"
    is_root = len(bottom := flat(node.below.nodes)) == 1 and isinstance(bottom[0], Root)
    if not is_single(node.below) and not _is_differential(node.below) and not is_root:
        below = f"({below})"
    return Part(f"{above}/{below}", "frac")


def _is_product(row: Row) -> bool:
    """Return whether a numerator is a product, like 2πr or n(n + 1): (2πr)/T and 2πr/T are the same."""
    opened = 0
    for node in flat(row.nodes):
        core = node.base if isinstance(node, Script) else node
        kind = core.kind if isinstance(core, Atom) else "fenced" if isinstance(core, (Fenced, Row)) else ""
        opened += {"open": 1, "close": -1}.get(kind, 0)
        if kind not in ("ord", "open", "close", "fenced") and not opened:
            return False
    return bool(row.nodes) and not opened


def _is_differential(row: Row) -> bool:
    """Return whether a row is dx, ∂f or the like, which is read as one thing."""
    nodes = flat(row.nodes)
    if not nodes or len(nodes) > 2:
        return False
    first = nodes[0].base if isinstance(nodes[0], Script) and len(nodes) == 2 else nodes[0]
    is_d = isinstance(first, Atom) and first.text in ("d", "∂")
    return is_d and (len(nodes) == 1 or is_single(Row((nodes[1],))))


def _root(node: Root) -> Part:
    body = line_of(node.body)
    sign = "√"
    if node.degree is not None:
        degree = line_of(node.degree)
        small = script_text(node.degree, SUPERSCRIPTS)
        if degree not in ("2", *_ROOTS) and not small:
            raise UnsupportedMathsError("degree of a root")
        sign = "√" if degree == "2" else _ROOTS.get(degree, f"{small}√")
    if not body:
        raise UnsupportedMathsError("empty root")
    inner = flat(node.body.nodes)[0]
    if is_single(node.body) and not (isinstance(inner, Script) and inner.sup is not None):
        return Part(sign + body, "root", f"{sign}({body})")
    return Part(f"{sign}({body})", "ord")


def _matrix(node: Matrix) -> Part:
    rows = [[line_of(cell) for cell in row] for row in node.rows]
    if node.is_aligned:
        return Part(",  ".join(" ".join(cell for cell in row if cell) for row in rows), "text")
    if node.is_cases:
        return Part(
            f"{node.left} " + "; ".join(", ".join(cell for cell in row if cell) for row in rows) + f" {node.right}", "ord"
        )
    return Part((node.left or "[") + "; ".join(", ".join(row) for row in rows) + (node.right or "]"), "fenced")
