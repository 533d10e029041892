"""A widget that draws lines of styled text, all of it selectable: one widget, however many blocks and cells there are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from rich.segment import Segment
from rich.style import Style as RichStyle
from textual.geometry import Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.widget import Widget

from edge_chat.markup.lines import Line, Run

__all__ = ["LOOKS", "LinesView"]

LOOKS = {
    "strong": "bold",
    "em": "italic",
    "struck": "strike",
    "link": "$text-primary underline",
    "faint": "$foreground 70%",
    "heading1": "bold $text-primary",
    "heading2": "bold underline $text-primary",
    "heading3": "bold",
    "heading4": "bold italic",
    "bullet": "$text-primary",
    "quote": "$foreground 80%",
    "quote-bar": "$text-primary 60%",
    "rule": "$foreground 30%",
    "table-head": "bold $text-primary",
    "footnote": "$text-accent",
    "maths": "$text-secondary",
    "action": "$foreground 60%",
    "code": "$foreground on $surface",
    "code-inline": "$text-accent on $surface",
    "code-head": "$foreground 70% on $panel",
    "code-copy": "$foreground 70%",
    "code-wrap": "$foreground 40%",
    "code-comment": "$foreground 60% italic",
    "code-error": "$text-error",
    "code-keyword": "$text-primary",
    "code-number": "$text-accent",
    "code-string": "$text-secondary",
    "code-builtin": "$text-primary",
    "code-function": "$text-accent",
    "code-class": "bold $text-accent",
    "code-heading": "bold",
    "code-added": "$text-success",
    "code-removed": "$text-error",
    "found": "$background on $text-warning",
}
"""Name of a style in a line -> its look, from the colours of the theme."""


class _Looks:
    """Styles by their text, for the variables of one theme at a time; shared by all widgets.

    The name of the theme will not do: it changes a moment before the variables, and what is drawn between would stay.
    """

    def __init__(self) -> None:
        self._variables: dict[str, str] = {}
        self._styles: dict[str, Style] = {}

    def get(self, look: str, variables: dict[str, str]) -> Style:
        if variables is not self._variables:
            if variables != self._variables:
                self._styles = {}
            self._variables = variables
        if look not in self._styles:
            self._styles[look] = Style.parse(look, variables) if look else Style()
        return self._styles[look]


_looks = _Looks()


class LinesView(Widget):
    """Draws what `lines_at` returns. Clicks on links and actions call `action_link`, `action_copy` and `action_wide`."""

    DEFAULT_CSS = """
    LinesView { width: 1fr; height: auto; }
    """

    def __init__(self, *, classes: str | None = None) -> None:
        super().__init__(classes=classes)
        self._strips: dict[int, tuple[Line, int, Strip]] = {}
        self._styles_of_runs: dict[tuple[str, str, str], RichStyle] = {}
        self._find: Callable[[str], list[tuple[int, int]]] = lambda text: []

    def mark(self, find: Callable[[str], list[tuple[int, int]]]) -> int | None:
        """Mark what `find` finds in each line, as (start, end). Return the first line with something; None without any."""
        self._find = find
        self._strips.clear()
        self.refresh()
        lines = self.lines_at(self.size.width) if self.size.width else []
        return next((y for y, line in enumerate(lines) if find(line.text)), None)

    def lines_at(self, width: int) -> list[Line]:
        """Return the lines in a width."""
        raise NotImplementedError

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return container.width

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.lines_at(width)) if width else 0

    def notify_style_update(self) -> None:
        """Forget the colours of another theme."""
        self._strips.clear()
        self._styles_of_runs.clear()
        super().notify_style_update()

    def lines_changed(self) -> None:
        """Draw again, with another height."""
        self.refresh(layout=True)

    def render_line(self, y: int) -> Strip:
        """Draw a line."""
        width = self.size.width
        lines = self.lines_at(width) if width else []
        if not 0 <= y < len(lines):
            return Strip.blank(width, self.rich_style)
        line = lines[y]
        selection = self.text_selection
        span = selection.get_span(y) if selection is not None else None
        if span is not None:
            return self._draw(line, width, y, span)
        kept = self._strips.get(y)
        if kept is not None and kept[0] is line and kept[1] == width:
            return kept[2]
        strip = self._draw(line, width, y, None)
        self._strips[y] = (line, width, strip)
        return strip

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the selected text as it was written: wrapped lines as one, formulas as LaTeX, nothing that we drew."""
        text = ""
        for y, line in enumerate(self.lines_at(self.size.width)):
            span = selection.get_span(y)
            if span is None:
                continue
            start, end = span[0], span[1] if span[1] >= 0 else len(line.text) + 1
            if line.runs and all(run.copied == "" or run.is_decor for run in line.runs):
                continue
            text += ("\n" if text and not line.is_wrapped else "") + _selected(line, start, end)
        return text, "\n"

    def _draw(self, line: Line, width: int, y: int, span: tuple[int, int] | None) -> Strip:
        fill = self._style_of(Run("", line.fill))
        segments: list[Segment] = []
        position = 0
        found = self._find(line.text)
        for run in line.runs:
            style = self._style_of(run)
            for piece, is_found in _split_found(run.text, position, found):
                look = style + self._look(LOOKS["found"]).rich_style if is_found else style
                for text, is_selected in _split(piece, position, span):
                    shown = look + self.selection_style if is_selected else look
                    segments.append(Segment(text, shown + RichStyle.from_meta({"offset": (position, y)})))
                    position += len(text)
        strip = Strip(segments)
        if strip.cell_length < width:
            strip = Strip([*segments, Segment(" " * (width - strip.cell_length), fill)], width)
        return strip.crop(0, width)

    def _style_of(self, run: Run) -> RichStyle:
        key = (run.style, run.link, run.action)
        style = self._styles_of_runs.get(key)
        if style is None:
            look = self.visual_style
            for name in run.style.split():
                look += self._look(LOOKS.get(name, ""))
            if run.link:
                look += Style.from_meta({"@click": f"link({run.link!r})"})
            elif run.action:
                name, _, number = run.action.partition(" ")
                look += Style.from_meta({"@click": f"{name}({number})"})
            style = self._styles_of_runs[key] = look.rich_style
        return style

    def _look(self, look: str) -> Style:
        return _looks.get(look, self.app.theme_variables)


def _selected(line: Line, start: int, end: int) -> str:
    text = ""
    position = 0
    for run in line.runs:
        size = len(run.text)
        first, last = max(start - position, 0), min(end - position, size)
        is_whole = first == 0 and last == size and start <= position < max(end, 1)
        if not run.is_decor and (first < last or (not size and start <= position < end)):
            text += run.copied if is_whole and run.copied is not None else run.text[first:last]
        position += size
    return text


def _split_found(text: str, position: int, found: list[tuple[int, int]]) -> list[tuple[str, bool]]:
    """Split the text of a run at the ends of what was found in its line: (text, was it found)."""
    cuts = {min(max(edge - position, 0), len(text)) for span in found for edge in span}
    edges = sorted({0, len(text), *cuts})
    middle = ((text[a:b], any(start <= position + a < end for start, end in found)) for a, b in pairwise(edges))
    return [part for part in middle if part[0]]


def _split(text: str, position: int, span: tuple[int, int] | None) -> list[tuple[str, bool]]:
    """Split the text of a run at the ends of the selection: (text, is it selected)."""
    if span is None or not text:
        return [(text, False)] if text else []
    start, end = span
    first = min(max(start - position, 0), len(text))
    last = len(text) if end < 0 else min(max(end - position, first), len(text))
    parts = [(text[:first], False), (text[first:last], True), (text[last:], False)]
    return [part for part in parts if part[0]]
