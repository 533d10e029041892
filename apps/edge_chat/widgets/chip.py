"""An attachment of the message being written: its name, lines and tokens; Enter shows its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.style import Style
from textual.widgets import Static

from edge.units import size_text
from edge_chat import format as fmt

if TYPE_CHECKING:
    from edge.conversation import Attachment

__all__ = ["Chip"]


class Chip(Static, can_focus=True):
    """An attachment of the message that is being written."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("delete,backspace,x", "remove", "Remove the attachment", show=False),
        Binding("enter", "open", "Show the text", show=False),
        Binding("escape", "leave", "Back to the text", show=False),
    ]

    @dataclass
    class Removed(Message):
        """The attachment should be removed."""

        chip: Chip

    @dataclass
    class Opened(Message):
        """The text should be shown."""

        chip: Chip

    class Left(Message):
        """The focus should go back to the text."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        super().__init__(self._label(None), classes="chip")
        self.tooltip = "Enter shows its text, Delete removes it"

    def show_tokens(self, n_tokens: int | None) -> None:
        """Show how many tokens it has; None while that is not known."""
        self.update(self._label(n_tokens))

    def _label(self, n_tokens: int | None) -> Content:
        text = self.attachment.text
        size = [fmt.plural(len(text.splitlines()), "line")]
        size.append(size_text(len(text.encode())) if n_tokens is None else f"~{n_tokens:,} tokens")
        name = Style.from_meta({"@click": "open"})
        remove = Style.from_meta({"@click": "remove"})
        shown = fmt.one_line(fmt.clean(self.attachment.name), 40)
        return Content.assemble((shown, name), " ", (", ".join(size), "$foreground 70%"), " ", ("×", remove))

    def action_open(self) -> None:
        self.post_message(self.Opened(self))

    def action_remove(self) -> None:
        self.post_message(self.Removed(self))

    def action_leave(self) -> None:
        self.post_message(self.Left())
