"""An attachment of the message being written."""

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
        Binding("escape,enter", "leave", "Back to the text", show=False),
    ]

    @dataclass
    class Removed(Message):
        """The attachment should be removed."""

        chip: Chip

    class Left(Message):
        """The focus should go back to the text."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        name = fmt.one_line(fmt.clean(attachment.name), 40)
        size = size_text(len(attachment.text.encode()))
        remove = Style.from_meta({"@click": "remove"})
        super().__init__(Content.assemble(f"{name} ", (size, "$foreground 70%"), (" ×", remove)), classes="chip")
        self.tooltip = "Delete removes this attachment"

    def action_remove(self) -> None:
        self.post_message(self.Removed(self))

    def action_leave(self) -> None:
        self.post_message(self.Left())
