"""Markdown of a reply: for text that is still arriving, with code to copy, and without dropping any character."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from textual.message import Message

from edge_chat import format as fmt
from edge_chat.markup.document import Document
from edge_chat.markup.lines import Line
from edge_chat.markup.render import Options
from edge_chat.markup.tables import Table
from edge_chat.widgets.lines import LinesView

__all__ = ["MarkdownPage", "ReplyMarkdown"]


class ReplyMarkdown(LinesView):
    """A reply: `extend` while it is being generated, `finish` when it is complete.

    Args:
        text: the Markdown.
        is_plain: draw nothing, for screen readers.
        has_actions: offer to copy code and to see a table wide; the screen has to handle the messages below.
    """

    @dataclass
    class CopyRequested(Message):
        """Copy was clicked."""

        code: str

    @dataclass
    class WideRequested(Message):
        """The wide view of a table was asked for."""

        table: Table

    def __init__(self, text: str = "", *, is_plain: bool = False, has_actions: bool = True) -> None:
        super().__init__()
        is_ascii = not fmt.takes_unicode(sys.__stderr__)  # textual replaces sys.stderr
        self._document = Document(Options(is_plain=is_plain, has_actions=has_actions, is_redrawn=True, is_ascii=is_ascii))
        self._document.set_text(fmt.clean(text))

    @property
    def source(self) -> str:
        """Return the Markdown."""
        return self._document.text

    @property
    def codes(self) -> list[str]:
        """Return the code blocks in order."""
        return self._document.codes

    @property
    def tables(self) -> list[Table]:
        """Return the tables in order."""
        return self._document.tables

    def lines_at(self, width: int) -> list[Line]:
        return self._document.lines(width)

    async def extend(self, text: str) -> None:
        """Show more of the text. `text` is all of it so far."""
        text = fmt.clean(text)
        if text != self._document.text:
            self._document.set_text(text, is_whole=False)
            self.lines_changed()

    async def finish(self, text: str) -> None:
        """Show the complete text, parsed as a whole, since a later line can change the meaning of an earlier one."""
        self._document.set_text(fmt.clean(text))
        self.lines_changed()

    def action_copy(self, number: int) -> None:
        self.post_message(self.CopyRequested(self.codes[number]))

    def action_wide(self, number: int) -> None:
        self.post_message(self.WideRequested(self.tables[number]))

    def action_link(self, address: str) -> None:
        """Copy an address, and open it if there is a desktop; a text browser would take over this terminal.

        A model wrote the address, perhaps following a document, so only web and mail addresses are opened: never a file, a
        program, or text that the opener would take for an option.
        """
        address = fmt.clean(unquote(address))
        is_safe = is_web_address(address)
        if is_safe and has_desktop():
            self.app.open_url(address)
        self.app.copy_to_clipboard(address)
        why = "" if is_safe else " It was not opened: only http, https and mailto addresses are."
        self.notify(f"Copied {address}.{why}", markup=False)


class MarkdownPage(ReplyMarkdown):
    """A page to read; a function makes its text for the cells of a line."""

    def __init__(self, text: str | Callable[[int], str], *, is_plain: bool = False) -> None:
        super().__init__(text if isinstance(text, str) else "", is_plain=is_plain, has_actions=False)
        self._make = text if callable(text) else None
        self._made_for = 0

    def lines_at(self, width: int) -> list[Line]:
        if self._make is not None and width != self._made_for:
            self._made_for = width
            self._document.set_text(fmt.clean(self._make(width)))
        return super().lines_at(width)


def is_web_address(address: str) -> bool:
    """Return whether an address is safe to open, whoever wrote it."""
    return re.match(r"(https?://|mailto:)[^\s-]", address, re.IGNORECASE) is not None


def has_desktop(environ: Iterable[str] | None = None, platform: str = sys.platform) -> bool:
    """Return whether a browser would open in a window of its own, given the names of the environment variables."""
    import os

    names = set(os.environ if environ is None else environ)
    if "SSH_CONNECTION" in names:
        return False
    return platform in ("darwin", "win32") or bool(names & {"DISPLAY", "WAYLAND_DISPLAY"})
