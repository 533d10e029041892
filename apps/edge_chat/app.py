"""The terminal chat: builds the screen on the base app, and closes everything at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.binding import BindingType

from edge_chat.actions import COMPLETERS, RUNNERS
from edge_chat.base import BaseApp
from edge_chat.keys import bindings, register_enter_sequences, take_all_characters
from edge_chat.own_themes import load_own_themes
from edge_chat.screens.chat import ChatScreen
from edge_chat.table import REGISTRY
from edge_chat.theme import THEMES, choose_theme

if TYPE_CHECKING:
    from edge.config import Settings

__all__ = ["ChatApp"]

_INTERRUPT_TWICE_S = 2.0


class ChatApp(BaseApp):
    """The app. Arguments as for BaseApp, and `conversation`: id of the one to open, or the beginning of an id.

    Attributes:
        farewell: lines for the shell once the app has ended: the conversation, and how to open it again.

    Raises:
        ConfigError: `chat.theme` or `chat.keys` cannot be used.
    """

    CSS_PATH = "app.tcss"
    TITLE = "edge chat"
    BINDINGS: ClassVar[list[BindingType]] = list(bindings(REGISTRY, "everywhere"))
    ENABLE_COMMAND_PALETTE = False  # palette.py has our own
    HORIZONTAL_BREAKPOINTS = [(0, "-slim"), (60, "-roomy")]  # noqa: RUF012 (textual declares it so)
    VERTICAL_BREAKPOINTS = [(0, "-low"), (20, "-mid"), (32, "-high")]  # noqa: RUF012 (textual declares it so)

    def __init__(self, settings: Settings, *, conversation: str | None = None, **options: Any) -> None:
        register_enter_sequences()
        take_all_characters()
        super().__init__(settings, **options)
        self.farewell: list[str] = []
        self._interrupted_at = float("-inf")
        self._quitting: asyncio.Future[None] | None = None
        self.own_themes = load_own_themes(settings.paths.themes_dir)
        for own in (*THEMES, *self.own_themes.usable.values()):
            self.register_theme(own)
        # The ANSI themes misspell a colour that highlighted code needs, and crash the app.
        for name in [name for name, theme in self.available_themes.items() if theme.ansi]:
            self.unregister_theme(name)
        self.own_themes.refuse_broken(settings.chat.theme)
        self.theme = choose_theme(settings.chat.theme, self.available_themes, os.environ)
        self.set_keymap(self.keymap.changes)
        self.chat_screen = ChatScreen(self, RUNNERS, COMPLETERS, conversation)
        self.host.on_change = self._model_changed
        self.host.get_replies = lambda: self.chat_screen.controller.replies
        self.set_plain(self.is_plain)

    async def on_event(self, event: events.Event) -> None:
        """Give the message box the focus before a key that would be lost is handed on.

        If the focus moved later, letters typed fast would overtake each other.
        """
        if isinstance(event, (events.Key, events.Paste)) and not event.is_forwarded and self.screen is self.chat_screen:
            self.chat_screen.claim(event)
        await super().on_event(event)

    def get_default_screen(self) -> ChatScreen:
        """Return the only screen that is not a dialog."""
        return self.chat_screen

    def _model_changed(self) -> None:
        if self.is_running and self.chat_screen.is_mounted:
            self.chat_screen.model_changed()

    async def action_interrupt(self) -> None:
        """Handle Ctrl+C where nothing is selected: stop the reply; pressed twice, quit."""
        if self.screen is self.chat_screen and await self.chat_screen.stop():
            return
        now = time.monotonic()
        if now - self._interrupted_at < _INTERRUPT_TWICE_S:
            await self.action_quit()
            return
        self._interrupted_at = now
        self.notify(f"Press {self.keymap.display('interrupt')} again to quit.", markup=False, timeout=_INTERRUPT_TWICE_S)

    async def action_quit_now(self) -> None:
        await self.action_quit()

    async def action_quit(self) -> None:
        """Save drafts and replies, then quit."""
        await self._quit(0)

    def quit_at_signal(self, number: int) -> None:
        if self.editor is not None and number == signal.SIGINT:
            return  # Ctrl+C in the editor, which gets it as well
        if self._quitting is None:
            self._quitting = asyncio.ensure_future(self._quit(128 + number))

    async def _quit(self, code: int) -> None:
        try:
            if self.editor is not None:
                editor = self.editor
                editor.end(code - 128)
                await editor.closed.wait()
            if self.chat_screen.is_mounted:
                await self.chat_screen.voice.close()
                await self.chat_screen.controller.close()
                if code != 128 + signal.SIGHUP:  # then there is no terminal to say it on
                    last = await self.chat_screen.controller.farewell()
                    left = f"Text that the editor had not saved may be in {self.left_by_editor}." if self.left_by_editor else ""
                    self.farewell = [line for line in (left, last) if line]
        finally:
            self.exit(code)
