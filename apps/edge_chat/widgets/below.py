"""The line between the conversation and the message box: what is going on out of sight."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.message import Message
from textual.widgets import Static

__all__ = ["Below"]


class Below(Static):
    """The state of a reply whose head is out of sight, and how many lines are below. A click goes to the end."""

    @dataclass
    class EndWanted(Message):
        """Scroll to the end."""

    def __init__(self) -> None:
        super().__init__("", id="below", markup=False)
        self.display = False
        self._shown = ""

    def show(self, text: str) -> None:
        """Show a text; "" takes no room."""
        if text != self._shown:
            self._shown = text
            self.display = bool(text)
            self.update(text)

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.EndWanted())
