"""A line that stands for a text, and shows it when it is opened: thoughts, tool calls and their results."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from edge_chat import format as fmt

__all__ = ["Fold"]


class Fold(Static):
    """See the module. A click opens and closes it.

    Args:
        title: what is inside, in a few words.
        text: what is shown when it is open.
        note: after the title: a state, or the start of the text.
    """

    def __init__(self, title: str = "", text: str = "", note: str = "") -> None:
        super().__init__("", classes="fold", markup=False)
        self.title_text, self.text, self.note = title, text, note
        self.is_open = False
        self.display = bool(title)

    def on_mount(self) -> None:
        self._show()

    def set(self, title: str, text: str, note: str = "") -> None:
        """Change what is inside; nothing happens where it is the same."""
        if (title, text, note) != (self.title_text, self.text, self.note):
            self.title_text, self.text, self.note = title, text, note
            self._show()

    def open(self, is_open: bool) -> None:
        """Show the text, or hide it."""
        if is_open != self.is_open:
            self.is_open = is_open
            self._show()

    def on_click(self) -> None:
        self.open(not self.is_open)

    def _show(self) -> None:
        self.display = bool(self.title_text)
        marks = ("[closed] ", "[open] ") if self.app.has_class("-plain") else ("▸ ", "▾ ")
        mark = marks[self.is_open]
        note = f"  {fmt.one_line(self.note, 100)}" if self.note and not self.is_open else ""
        parts = [(f"{mark}{fmt.one_line(self.title_text, 100)}", "$foreground 80%"), (note, "$foreground 60%")]
        if self.is_open:
            parts.append((f"\n{fmt.clean(self.text)}", "$foreground 70%"))
        self.update(Content.assemble(*parts))
