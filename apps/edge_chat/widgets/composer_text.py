"""The text area of the message box, and its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from textual import events

from edge_chat.widgets.text import ExactTextArea

__all__ = ["ComposerText"]


class Owner(Protocol):
    """The message box, as its text area sees it."""

    def send(self) -> None: ...

    def take_key(self, key: str) -> bool: ...

    def paste(self, text: str) -> None: ...

    def walk_history(self, *, back: bool) -> bool: ...


class ComposerText(ExactTextArea):
    """The text area.

    Args:
        composer: keys of the whole composer are passed on to it.
        key_actions: key -> "send" or "newline".
    """

    def __init__(self, composer: Owner, key_actions: Mapping[str, str]) -> None:
        super().__init__(
            id="text",
            compact=True,
            highlight_cursor_line=False,
            placeholder="Message",
            soft_wrap=True,
            show_line_numbers=False,
        )
        self._composer = composer
        self._key_actions = key_actions

    async def _on_key(self, event: events.Key) -> None:
        # Not as bindings: a priority binding runs while letters typed before it are still queued, and would send half a
        # message.
        action = self._key_actions.get(event.key)
        if action is not None:
            event.stop()
            event.prevent_default()
            getattr(self, f"action_{action}")()
        elif self._composer.take_key(event.key):
            event.stop()
            event.prevent_default()
        else:
            await super()._on_key(event)

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self._composer.paste(event.text)

    def action_send(self) -> None:
        self._composer.send()

    def action_newline(self) -> None:
        self.insert("\n")
        self.scroll_cursor_visible()

    def action_cursor_up(self, select: bool = False) -> None:
        """Move one line up; from the first line, go back through the history."""
        if select or not self.cursor_at_first_line or not self._composer.walk_history(back=True):
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """Move one line down; from the last line, go forward through the history."""
        if select or not self.cursor_at_last_line or not self._composer.walk_history(back=False):
            super().action_cursor_down(select)
