"""An attachment beside the text that is being written."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.style import Style
from textual.widgets import Static

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

    class Removed(Message):
        """It is not wanted any more."""

        def __init__(self, chip: Chip) -> None:
            super().__init__()
            self.chip = chip

    class Left(Message):
        """The focus should go back to the text."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        name = fmt.one_line(fmt.clean(attachment.name), 40)
        size = fmt.n_bytes(len(attachment.text.encode()))
        remove = Style.from_meta({"@click": "remove"})
        super().__init__(Content.assemble(f"{name} ", (size, "$foreground 70%"), (" ×", remove)), classes="chip")
        self.tooltip = "Delete removes this attachment"

    def action_remove(self) -> None:
        """Take it away."""
        self.post_message(self.Removed(self))

    def action_leave(self) -> None:
        """Go back to the text."""
        self.post_message(self.Left())
