"""A text area that keeps every character, and shows control characters instead of sending them to the terminal."""

from __future__ import annotations

import re

from rich.segment import Segment
from rich.text import Text
from textual.color import Color
from textual.document._document import Document, EditResult, Location
from textual.document._document_navigator import DocumentNavigator
from textual.document._wrapped_document import WrappedDocument
from textual.filter import LineFilter
from textual.widgets import TextArea

from edge_chat import format as fmt

__all__ = ["ControlFilter", "ExactTextArea"]

_LINE_END = re.compile("\r\n|\r|\n")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]+")


class ExactTextArea(TextArea):
    """Textual's text area, in which a line ends at a line end only: U+2028 and other characters stay as they are."""

    def _set_document(self, text: str, language: str | None) -> None:
        self.document = _ExactDocument(_Lines(text))
        self.wrapped_document = WrappedDocument(self.document, tab_width=self.indent_width)
        self.navigator = DocumentNavigator(self.wrapped_document)
        self._build_highlight_map()
        self.move_cursor((0, 0))
        self._rewrap_and_refresh_virtual_size()

    def get_line(self, line_index: int) -> Text:
        """Return a line with its control characters made visible."""
        shown = fmt.clean(self.document.get_line(line_index)).replace("\n", "\u2424")
        return Text(shown, end="", no_wrap=True)


class _Lines(str):
    """A text that textual's document takes apart at line ends only."""

    __slots__ = ()

    def splitlines(self, keepends: bool = False) -> list[str]:
        """Return the lines as `str.splitlines` does."""
        lines = _LINE_END.split(self)
        return lines if lines[-1] else lines[:-1]


class _ExactDocument(Document):
    def replace_range(self, start: Location, end: Location, text: str) -> EditResult:
        return super().replace_range(start, end, _Lines(text))


class ControlFilter(LineFilter):
    """Keeps control characters away from the terminal, whatever widget draws them."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the segments without control characters, which take no room."""
        if not any(_CONTROL.search(segment.text) for segment in segments):
            return segments
        return [Segment(_CONTROL.sub("", text), style) for text, style, control in segments if not control]
