"""Displayed formulas on several lines of Unicode: fractions with a bar, limits above and below, matrices in tall brackets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from edge_chat.markup.maths import flat, is_single, join_spaced, line_of, part_of, script_text
from edge_chat.markup.maths_parser import parse
from edge_chat.markup.maths_symbols import LIMITS, SUBSCRIPTS, SUPERSCRIPTS, VULGAR
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

__all__ = ["to_lines"]


def to_lines(source: str, width: int) -> list[str] | None:
    """Return a displayed formula as lines of text; None if it cannot be shown faithfully in that width.

    Args:
        source: LaTeX without its delimiters.
        width: cells that a line may have.
    """
    try:
        box = _row(parse(source))
    except UnsupportedMathsError:
        return None
    if not any(line.strip() for line in box.lines) or box.width > width:
        return None
    return [line.rstrip() for line in box.lines]


@dataclass(frozen=True, slots=True)
class _Box:
    """Lines of equal width.

    Attributes:
        lines: from top to bottom.
        base: index of the line that stands on the line of writing.
        kind: as of a maths.Part.
    """

    lines: tuple[str, ...]
    base: int
    kind: str

    @property
    def width(self) -> int:
        return cell_len(self.lines[0])


def _box(text: str, kind: str = "ord") -> _Box:
    return _Box((text,), 0, kind)


def _pad(text: str, width: int, align: str = "center") -> str:
    room = width - cell_len(text)
    left = {"left": 0, "right": room}.get(align, room // 2)
    return " " * left + text + " " * (room - left)


def _beside(boxes: Sequence[_Box]) -> _Box:
    """Put boxes side by side, their base lines at one height."""
    boxes = [box for box in boxes if box.width]
    if not boxes:
        return _box("")
    above = max(box.base for box in boxes)
    below = max(len(box.lines) - box.base for box in boxes)
    lines = [""] * (above + below)
    for box in boxes:
        blank = " " * box.width
        for index in range(len(lines)):
            inside = index - above + box.base
            lines[index] += box.lines[inside] if 0 <= inside < len(box.lines) else blank
    return _Box(tuple(lines), above, "ord")


def _stacked(boxes: Sequence[_Box], base: int, kind: str, align: str = "center") -> _Box:
    """Put boxes below each other; the base line is that of the box with index `base`."""
    width = max(box.width for box in boxes)
    lines = tuple(_pad(line, width, align) for box in boxes for line in box.lines)
    return _Box(lines, sum(len(box.lines) for box in boxes[:base]) + boxes[base].base, kind)


def _row(row: Row) -> _Box:
    boxes = [_node(node) for node in flat(row.nodes)]
    spaced: list[_Box] = []
    for gap, box in zip(join_spaced([box.kind for box in boxes]), boxes, strict=True):
        is_tall = bool(spaced) and (len(box.lines) > 1 or len(spaced[-1].lines) > 1)
        kinds = (spaced[-1].kind, box.kind) if spaced else ("", "")
        if gap or (is_tall and kinds[0] not in ("open", "space") and kinds[1] not in ("close", "punct", "space")):
            spaced.append(_box(" ", "space"))
        spaced.append(box)
    return _beside(spaced)


def _node(node: Node) -> _Box:
    """Draw a node. What fits on one line without slashes and carets is drawn as in a line of text."""
    for kind, draw in _DRAWN.items():
        if isinstance(node, kind):
            return draw(node)
    part = part_of(node)
    return _box(part.text, part.kind)


def _fraction(node: Fraction) -> _Box:
    above, below = _row(node.above), _row(node.below)
    if not above.width or not below.width:
        raise UnsupportedMathsError("half a fraction")
    numbers = (*above.lines, *below.lines)
    if len(numbers) == 2 and all(n.isascii() and n.isdecimal() and len(n) == 1 for n in numbers):
        vulgar = VULGAR.get((int(numbers[0]), int(numbers[1])))
        if vulgar:
            return _box(vulgar, "vulgar")
    bar = _box("─" * (max(above.width, below.width) + 2))
    return _stacked([above, bar, below], 1, "stack")


def _script(node: Script) -> _Box:
    inner = flat((node.base,))
    core = inner[0] if len(inner) == 1 else None
    if isinstance(core, Atom) and core.text in LIMITS:
        parts = [_limit(row) for row in (node.sup,) if row is not None] + [_box(core.text)]
        parts += [_limit(node.sub)] if node.sub is not None else []
        return _stacked(parts, 1 if node.sup is not None else 0, "op")
    base = _node(node.base) if len(inner) == 1 else _row(Row((node.base,)))
    sub, sup = script_text(node.sub, SUBSCRIPTS), script_text(node.sup, SUPERSCRIPTS)
    if len(base.lines) == 1 and sub != "" and sup != "":
        part = part_of(node)
        return _box(part.text, part.kind)
    if isinstance(core, Script) or not (
        is_single(Row((node.base,))) or isinstance(core, (Fenced, Atom)) or (isinstance(core, Matrix) and core.left)
    ):
        base = _fenced_box(base, "(", ")")
    return _with_scripts(base, node.sup, node.sub)


def _limit(row: Row) -> _Box:
    return _box(line_of(row, is_tight=True))


def _with_scripts(base: _Box, sup: Row | None, sub: Row | None) -> _Box:
    """Put a superscript above the top line of a box and a subscript below its last one, both to the right."""
    above = _row(sup) if sup is not None else None
    below = _row(sub) if sub is not None else None
    width = max(box.width for box in (above, below) if box is not None)
    lines = [line + " " * width for line in base.lines]
    at = base.base
    if above is not None:
        lines = [" " * base.width + _pad(line, width, "left") for line in above.lines] + lines
        at += len(above.lines)
    if below is not None:
        lines += [" " * base.width + _pad(line, width, "left") for line in below.lines]
    return _Box(tuple(lines), at, "ord")


def _root(node: Root) -> _Box:
    body = _row(node.body)
    if len(body.lines) == 1:
        part = part_of(node)
        return _box(part.text, part.kind)
    degree = script_text(node.degree, SUPERSCRIPTS) if node.degree is not None else ""
    if node.degree is not None and not degree:
        raise UnsupportedMathsError("degree of a root")
    sign = f"{degree or ''}√"
    width = cell_len(sign)
    lines = [" " * width + "┌" + "─" * (body.width + 1)]
    for index, line in enumerate(body.lines):
        lines.append((sign if index == len(body.lines) - 1 else " " * width) + "│" + line + " ")
    return _Box(tuple(lines), body.base + 1, "ord")


_TALL = {
    "(": ("⎛", "⎜", "⎜", "⎝"),
    ")": ("⎞", "⎟", "⎟", "⎠"),
    "[": ("⎡", "⎢", "⎢", "⎣"),
    "]": ("⎤", "⎥", "⎥", "⎦"),
    "{": ("⎧", "⎪", "⎨", "⎩"),
    "}": ("⎫", "⎪", "⎬", "⎭"),
    "⌊": ("⎢", "⎢", "⎢", "⎣"),
    "⌋": ("⎥", "⎥", "⎥", "⎦"),
    "⌈": ("⎡", "⎢", "⎢", "⎢"),
    "⌉": ("⎤", "⎥", "⎥", "⎥"),
    "|": ("│", "│", "│", "│"),
    "‖": ("║", "║", "║", "║"),
}
"""Bracket -> its top, its stem, its middle and its bottom."""


def _bracket(character: str, height: int, base: int) -> _Box:
    if not character:
        return _box("")
    if height == 1:
        return _box(character)
    if character not in _TALL:
        raise UnsupportedMathsError("no tall bracket")
    top, stem, middle, bottom = _TALL[character]
    lines = [top, *[stem] * (height - 2), bottom]
    if character in "{}" and height > 2:
        lines[height // 2] = middle
    return _Box(tuple(lines), base, "ord")


def _fenced_box(body: _Box, left: str, right: str) -> _Box:
    height = len(body.lines)
    inner = [body] if height == 1 else [_box(" "), body, _box(" ")]
    box = _beside([_bracket(left, height, body.base), *inner, _bracket(right, height, body.base)])
    return _Box(box.lines, box.base, "fenced")


def _fenced(node: Fenced) -> _Box:
    return _fenced_box(_row(node.body), node.left, node.right)


def _binomial(node: Binomial) -> _Box:
    above, below = _row(node.above), _row(node.below)
    body = _stacked([above, _box(" "), below], 1, "ord")
    return _fenced_box(body, "(", ")")


def _boxed(node: Boxed) -> _Box:
    body = _row(node.body)
    edge = "─" * (body.width + 2)
    lines = [f"┌{edge}┐", *(f"│ {line} │" for line in body.lines), f"└{edge}┘"]
    return _Box(tuple(lines), body.base + 1, "fenced")


def _matrix(node: Matrix) -> _Box:
    rows = [[_row(cell) for cell in row] for row in node.rows]
    n_columns = max(map(len, rows))
    widths = [max((row[i].width for row in rows if i < len(row)), default=0) for i in range(n_columns)]
    drawn: list[_Box] = []
    for row in rows:
        cells: list[_Box] = []
        for i, cell in enumerate(row):
            align = ("right" if i % 2 == 0 else "left") if node.is_aligned and n_columns > 1 else "left"
            if not (node.is_aligned or node.is_cases):
                align = "center"
            gap = (" " if i % 2 else "   ") if node.is_aligned else "   " if node.is_cases else "  "
            cells += [_box(gap)] if i else []
            cells.append(_Box(tuple(_pad(line, widths[i], align) for line in cell.lines), cell.base, "ord"))
        line = _beside(cells)
        if drawn and node.is_aligned and (len(line.lines) > 1 or len(drawn[-1].lines) > 1):
            drawn.append(_box(" "))  # tall equations keep apart
        drawn.append(line)
    body = _stacked(drawn, 0, "ord", "left")
    body = _Box(body.lines, len(body.lines) // 2 if len(body.lines) % 2 else (len(body.lines) - 1) // 2, "ord")
    if node.is_aligned:
        return body
    return _fenced_box(body, node.left, node.right)


_DRAWN: dict[type, Callable[..., _Box]] = {
    Fraction: _fraction,
    Script: _script,
    Root: _root,
    Fenced: _fenced,
    Binomial: _binomial,
    Boxed: _boxed,
    Matrix: _matrix,
}
