"""The wide view of a table: nothing is wrapped, and the arrow keys scroll."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import ScrollableContainer, Vertical
from textual.geometry import Size
from textual.widgets import Static

from edge_chat.markup.lines import Line, runs_len
from edge_chat.markup.tables import Table, table_lines
from edge_chat.screens.dialogs import Dialog
from edge_chat.widgets.lines import LinesView

__all__ = ["WideTable"]

_STEP = 8  # columns that Left and Right scroll


class _TableView(LinesView):
    """A table as wide as it wants to be."""

    DEFAULT_CSS = """
    _TableView { width: auto; }
    """

    def __init__(self, table: Table, *, is_plain: bool) -> None:
        super().__init__()
        self._lines = table_lines(table, None, is_plain=is_plain)

    def lines_at(self, width: int) -> list[Line]:
        return self._lines

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return max((runs_len(line.runs) for line in self._lines), default=1)


class WideTable(Dialog[None]):
    """A table to scroll in both directions."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Close", show=False),
        Binding("down,j", "scroll(0, 1)", "Down", show=False),
        Binding("up,k", "scroll(0, -1)", "Up", show=False),
        Binding("right,l", f"scroll({_STEP}, 0)", "Right", show=False, priority=True),
        Binding("left,h", f"scroll(-{_STEP}, 0)", "Left", show=False, priority=True),
        Binding("home", "to_edge(False)", "First column", show=False, priority=True),
        Binding("end", "to_edge(True)", "Last column", show=False, priority=True),
    ]

    def __init__(self, table: Table) -> None:
        super().__init__("Table")
        self._table = table

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box -wide"):
            with ScrollableContainer():
                yield _TableView(self._table, is_plain=self.app.has_class("-plain"))
            yield Static("Esc closes; arrow and Page keys scroll, Home and End go to the sides.", classes="dialog-keys")

    def on_mount(self) -> None:
        """Focus the table, so that keys scroll it."""
        self._box.focus()

    @property
    def _box(self) -> ScrollableContainer:
        return self.query_one(ScrollableContainer)

    def action_scroll(self, x: int, y: int) -> None:
        """Scroll by columns and lines."""
        self._box.scroll_relative(x, y, animate=False)

    def action_to_edge(self, is_right: bool) -> None:
        """Scroll to the first or the last column."""
        self._box.scroll_to(x=self._box.max_scroll_x if is_right else 0, animate=False)

    def on_key(self, event: events.Key) -> None:
        """Page with Space and b, as in less."""
        if event.key in ("space", "b"):
            step = self._box.scroll_page_down if event.key == "space" else self._box.scroll_page_up
            step(animate=False)
