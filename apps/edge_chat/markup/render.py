"""Markdown to lines of a given width. Nothing in here knows of a screen: the chat and `edge run` draw the lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from markdown_it.token import Token
from rich.cells import cell_len

from edge_chat.markup.code import code_runs
from edge_chat.markup.inline import footnote_mark, inline_runs
from edge_chat.markup.lines import Line, Run, plain_text, runs_len, wrap
from edge_chat.markup.maths import to_unicode
from edge_chat.markup.maths_block import to_lines
from edge_chat.markup.tables import Table, is_narrowed, table_lines

__all__ = ["LOW_HEADINGS", "Options", "Rendering", "render_tokens"]

_BULLETS = "•◦▪"
_HEADINGS = {"h1": "heading1", "h2": "heading2", "h3": "heading3"}
_MIN_WIDTH = 8
_STABLE_STEP = 40  # lines of code after which those above are kept while more is generated
LOW_HEADINGS = ("h3", "h4", "h5", "h6")
"""Tags of headings that stand right above their text."""


@dataclass(slots=True)
class Rendering:
    """The lines, and what can be done with parts of them.

    Attributes:
        lines: from top to bottom, without blank lines at the ends.
        codes: the code blocks, as they are copied.
        tables: the tables, for a wide view.
    """

    lines: list[Line] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Options:
    """How to render.

    Attributes:
        is_plain: no drawing, nothing that only a colour tells: for screen readers.
        has_actions: offer to copy code and to see a table wide, with runs that have an `action`.
        is_redrawn: what is shown while the text grows is replaced when it is whole: the end of long code is coloured on its own
            until then, which is faster.
        is_growing: more of the text will come.
        is_ascii: the terminal shows ASCII alone: formulas stay LaTeX.
    """

    is_plain: bool = False
    has_actions: bool = False
    is_redrawn: bool = False
    is_growing: bool = False
    is_ascii: bool = False


def render_tokens(
    tokens: Sequence[Token], width: int, options: Options, *, first_code: int = 0, first_table: int = 0
) -> Rendering:
    """Lay parsed Markdown out.

    Args:
        tokens: of `parser.make_parser().parse`, or a part of them that is complete.
        width: cells of a line.
        options: see there.
        first_code, first_table: number of code blocks and tables above, by which the actions name them.
    """
    renderer = _Renderer(options, first_code, first_table)
    renderer.out.lines = renderer.blocks(_Cursor(tokens), max(_MIN_WIDTH, width), "")
    return renderer.out


class _Cursor:
    """Goes through the tokens."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def until(self, closer: str) -> Iterator[Token]:
        """Yield the tokens up to the next one of that type, which is taken too."""
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            self._at += 1
            if token.type == closer:
                return
            yield token


class _Renderer:
    """Renders blocks, one method a kind."""

    def __init__(self, options: Options, first_code: int, first_table: int) -> None:
        self.out = Rendering()
        self._is_plain = options.is_plain
        self._has_actions = options.has_actions
        self._is_growing = options.is_growing and options.is_redrawn
        self._first_code = first_code
        self._first_table = first_table
        self._depth = 0
        self._is_loose = False  # the list that was rendered last has paragraphs of their own

    def blocks(self, cursor: _Cursor, width: int, closer: str, style: str = "") -> list[Line]:
        """Render blocks up to the token that closes their container, with blank lines between them."""
        lines: list[Line] = []
        was_tight = is_under_heading = False
        for token in cursor.until(closer):
            is_tight = token.hidden or (was_tight and token.type in ("bullet_list_open", "ordered_list_open"))
            is_loose = token.type == "paragraph_open" and not token.hidden
            drawn = self._block(token, cursor, max(1, width), style)
            self._is_loose |= is_loose and closer == "list_item_close"
            if drawn is None:
                continue
            if lines and not is_tight and not is_under_heading:
                lines.append(Line())
            lines += drawn
            was_tight, is_under_heading = token.hidden, token.tag in LOW_HEADINGS
        return lines

    def _block(self, token: Token, cursor: _Cursor, width: int, style: str) -> list[Line] | None:
        kind = token.type
        if kind == "heading_open":
            return self._heading(token, cursor, width)
        if kind in ("bullet_list_open", "ordered_list_open"):
            return self._list(token, cursor, width, style)
        if kind == "blockquote_open":
            return self._quote(cursor, width)
        if kind == "table_open":
            return self._table(cursor, width)
        if kind in ("fence", "code_block"):
            return self._fence(token, width)
        if kind == "math_block":
            return self._formula(token, width)
        if kind == "footnote_open":
            return self._footnote(token, cursor, width)
        if kind == "hr":
            return [Line((Run("---" if self._is_plain else "─" * width, "rule", is_decor=not self._is_plain),))]
        if kind == "inline":
            return self._text(inline_runs(token.children or (), style), width)
        if kind == "paragraph_open":
            return [
                line for inner in cursor.until("paragraph_close") for line in self._block(inner, cursor, width, style) or ()
            ]
        return self._text([Run(line, style) for line in token.content.split("\n")], width) if token.content else None

    def _text(self, runs: Sequence[Run], width: int) -> list[Line]:
        lines: list[Line] = []
        part: list[Run] = []
        for run in [*runs, Run("\n")]:
            if run.text == "\n":
                lines += [Line(tuple(piece), is_wrapped=number > 0) for number, piece in enumerate(wrap(part, width))]
                part = []
            else:
                part.append(run)
        return lines

    def _heading(self, token: Token, cursor: _Cursor, width: int) -> list[Line]:
        style = _HEADINGS.get(token.tag, "heading4")
        runs = [run for inner in cursor.until("heading_close") for run in inline_runs(inner.children or (), style)]
        if self._is_plain:
            return self._text([Run("#" * int(token.tag[1:]) + " ", style), *runs], width)
        lines = self._text(runs, width)
        if token.tag == "h1" and lines:
            size = max(runs_len(line.runs) for line in lines)
            lines.append(Line((Run("━" * size, "heading1", is_decor=True),)))
        return lines

    def _list(self, token: Token, cursor: _Cursor, width: int, style: str) -> list[Line]:
        is_ordered = token.type == "ordered_list_open"
        closer = token.type.replace("_open", "_close")
        items: list[tuple[str, list[Line]]] = []
        self._depth += 1
        outer_is_loose, self._is_loose = self._is_loose, False
        bullet = "-" if self._is_plain else _BULLETS[(self._depth - 1) % len(_BULLETS)]
        # The numbers are not known before the items, whose width depends on them: three digits are enough for most.
        n_cells = 4 if is_ordered else 2
        for item in cursor.until(closer):
            sign = f"{item.info}." if is_ordered else bullet
            task = (item.meta or {}).get("task")
            if task is not None:
                box = ("[x]" if task == "x" else "[ ]") if self._is_plain else ("☑" if task == "x" else "☐")
                sign = f"{sign} {box}" if is_ordered else box
            inside = max(1, width - max(n_cells, cell_len(sign) + 1))
            items.append((sign, self.blocks(cursor, inside, "list_item_close", style)))
        self._depth -= 1
        column = max((cell_len(sign) for sign, _ in items), default=1) + 1
        is_loose, self._is_loose = self._is_loose, outer_is_loose
        out: list[Line] = []
        for number, (sign, lines) in enumerate(items):
            if number and is_loose:
                out.append(Line())
            mark = Run(sign.rjust(column - 1) + " " if is_ordered else sign.ljust(column), "bullet")
            out += _prefixed(lines or [Line()], mark, Run(" " * column, is_decor=True))
        return out

    def _quote(self, cursor: _Cursor, width: int) -> list[Line]:
        bar = Run("  " if self._is_plain else "▎ ", "quote-bar", is_decor=True)
        return _prefixed(self.blocks(cursor, width - 2, "blockquote_close", "quote"), bar, bar)

    def _table(self, cursor: _Cursor, width: int) -> list[Line]:
        rows: list[list[tuple[Run, ...]]] = []
        aligns: list[str] = []
        for token in cursor.until("table_close"):
            if token.type == "tr_open":
                rows.append([])
            elif token.type == "th_open":
                style = str(token.attrs.get("style", ""))
                aligns.append(style.rpartition(":")[2] or "left")
            elif token.type == "inline":
                rows[-1].append(tuple(inline_runs(token.children or ())))
        n_columns = max(map(len, rows))
        aligns += ["left"] * (n_columns - len(aligns))
        filled = [tuple(row + [()] * (n_columns - len(row))) for row in rows]
        table = Table(filled[0], tuple(filled[1:]), tuple(aligns))
        number = self._first_table + len(self.out.tables)
        self.out.tables.append(table)
        lines = table_lines(table, width, is_plain=self._is_plain)
        if self._has_actions and is_narrowed(table, width):
            note = Run(f"wide view: /table {number + 1}", "action", action=f"wide {number}", is_decor=True)
            lines.append(Line((note,)))
        return lines

    def _fence(self, token: Token, width: int) -> list[Line]:
        code = token.content.rstrip()
        # "```python title=x.py" names the language with its first word.
        language = token.info.split(maxsplit=1)[0] if token.info.strip() else ""
        number = self._first_code + len(self.out.codes)
        self.out.codes.append(code)
        if self._is_plain:
            head = Line((Run(f"Code, {language or 'text'}:", is_decor=True),))
            return [head, *self._code(code, language, width, "")]
        title = f" {language or 'text'}"
        runs = [Run(title, "code-head", is_decor=True)]
        if self._has_actions:
            room = max(1, width - cell_len(title) - len("copy "))
            runs.append(Run(" " * room, "code-head", is_decor=True))
            runs.append(Run("copy", "code-head code-copy", action=f"copy {number}", is_decor=True))
        return [Line(tuple(runs), fill="code-head"), *self._code(code, language, width, " ")]

    def _code(self, code: str, language: str, width: int, pad: str) -> Sequence[Line]:
        lines = code.split("\n")
        n_stable = (len(lines) - 1) // _STABLE_STEP * _STABLE_STEP if self._is_growing else 0
        if not n_stable:
            return _code_lines(code, language, width, pad)
        above, below = "\n".join(lines[:n_stable]), "\n".join(lines[n_stable:])
        return [*_stable_code_lines(above, language, width, pad), *_code_lines(below, language, width, pad)]

    def _formula(self, token: Token, width: int) -> list[Line]:
        source = str(token.meta["source"])
        indent = Run("" if self._is_plain else "  ", is_decor=True)
        inside = max(1, width - len(indent.text))
        drawn = to_lines(token.content, inside) if token.content and not self._is_plain else None
        after = token.info
        if drawn is not None:
            # A selection of the first line copies the whole source.
            runs = [Run(line, "maths", copied=source if number == 0 else "") for number, line in enumerate(drawn)]
            lines = [Line((run,)) for run in runs]
            lines[-1] = Line((*lines[-1].runs, Run(after))) if after else lines[-1]
            return _prefixed(lines, indent, indent)
        text = to_unicode(token.content) if token.content else None
        if text is not None:
            return _prefixed(self._text([Run(text, "maths", copied=source), Run(after)], inside), indent, indent)
        shown = [Run(line, "code-inline") for line in source.split("\n")]
        lines = [line for run in shown for line in self._text([run], inside)]
        lines[-1] = Line((*lines[-1].runs, Run(after)), is_wrapped=lines[-1].is_wrapped) if after else lines[-1]
        return _prefixed(lines, indent, indent)

    def _footnote(self, token: Token, cursor: _Cursor, width: int) -> list[Line]:
        mark = footnote_mark(token.info) + " "
        runs = [run for inner in cursor.until("footnote_close") for run in inline_runs(inner.children or (), "faint")]
        indent = Run(" " * cell_len(mark), is_decor=True)
        head = Run(mark, "footnote", copied=f"[^{token.info}]: ")
        return _prefixed(self._text(runs, max(1, width - cell_len(mark))), head, indent)


def _prefixed(lines: Sequence[Line], first: Run, rest: Run) -> list[Line]:
    """Put a run before each line: `first` before the first one, `rest` before the others."""
    out = [replace(line, runs=((first if number == 0 else rest), *line.runs)) for number, line in enumerate(lines)]
    return [replace(line, runs=()) if not line.text.strip() and not line.fill else line for line in out]


@lru_cache(maxsize=4)
def _stable_code_lines(code: str, language: str, width: int, pad: str) -> tuple[Line, ...]:
    """Keep the lines above the end of code that is still being generated."""
    return tuple(_code_lines(code, language, width, pad))


def _code_lines(code: str, language: str, width: int, pad: str) -> list[Line]:
    """Wrap code. A continued line is marked, and indented as far as the line that it belongs to."""
    lines: list[Line] = []
    fill = "code" if pad else ""
    margin = [Run(pad, is_decor=True)] if pad else []
    inside = max(1, width - 2 * len(pad))
    for runs in code_runs(code, language):
        text = plain_text(runs)
        indent = len(text) - len(text.lstrip(" "))
        hanging = indent + 2 if indent + 2 <= inside // 2 else 2
        mark = Run(" " * (hanging - 2) + ("↪ " if pad else "  "), "code-wrap", is_decor=True)
        for number, part in enumerate(wrap(runs, inside, hanging=hanging if inside > 6 else 0)):
            is_wrapped = number > 0
            prefix = [*margin, mark] if is_wrapped and inside > 6 else margin
            shown = [replace(run, style=f"{fill} {run.style}".strip()) for run in (*prefix, *part)]
            lines.append(Line(tuple(shown), fill=fill, is_wrapped=is_wrapped))
    return lines
