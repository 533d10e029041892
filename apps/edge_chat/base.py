"""The app as its screens and the controller see it: settings, keys, conversations and the model.

`app.ChatApp` adds the screen, so that nothing below needs to import it.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.app import App
from textual.filter import NoColor

from edge.errors import EdgeError
from edge_chat.commands import Completion
from edge_chat.few_colours import for_terminal
from edge_chat.history import HISTORY_FILE, PromptHistory
from edge_chat.keys import Keymap
from edge_chat.library import Library
from edge_chat.model_host import Loader, ModelHost
from edge_chat.own_themes import OwnThemes
from edge_chat.signals import WindowSignals
from edge_chat.table import REGISTRY
from edge_chat.widgets.text import ControlFilter

if TYPE_CHECKING:
    from textual.driver import Driver
    from textual.theme import Theme

    from edge.assistant import Assistant
    from edge.config import Settings
    from edge.conversation import ConversationStore
    from edge.types import Tool
    from edge_chat.editor import Editor
    from edge_mcp.toolbox import Toolbox

__all__ = ["BaseApp", "private_opener"]


class BaseApp(App[int], inherit_bindings=False):
    """See the module.

    Args:
        settings: merged settings.
        loader: loads models, instead of `edge.load`.
        store: the conversations, instead of those in the data directory; the caller closes it.
        cwd: base of relative attachment paths, instead of the current directory.
        clock: the time, instead of time.time.
        toolbox: finds the tools that the model may call, and what the user should know about them; blocks meanwhile.
        voice: turn voice on at the start.

    Attributes:
        breakdown: the error that ended the app, if one did.
        editor: the user's editor while it is open; left_by_editor: folder with text that one could not save, or "".
        bugs: bugs reported in this session.
        is_still: cursors never blink, as pictures of the screen need it.
        keymap: the keys in force.
        has_begun: the first frame was shown and the model is loading.
        known_models: models that the picker has listed.
        own_files: files that `/save` wrote in this session -> (id of the conversation, text).
        own_themes: the user's themes.
        signals: the window's title, and notices.
        tools: that the model may call.
        wants_voice: voice is turned on at the start.
        ran: names of the commands run in this session, the newest first.

    Raises:
        ConfigError: `chat.keys` cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        loader: Loader | None = None,
        store: ConversationStore | None = None,
        cwd: Path | None = None,
        clock: Callable[[], float] = time.time,
        toolbox: Toolbox | None = None,
        voice: bool = False,
    ) -> None:
        super().__init__()
        for known in self.available_themes.values():
            self.register_theme(known)
        self.settings = settings
        self.clock = clock
        self.cwd = cwd or _current_folder()
        self.is_plain = settings.chat.plain
        self.is_still = self.has_begun = False
        self.keymap = Keymap(REGISTRY, settings.chat.keys)
        self.known_models: list[Completion] = []
        self.own_files: dict[Path, tuple[str, str]] = {}
        self.tools: list[Tool] = []
        self.toolbox = toolbox
        self.wants_voice = voice
        self.ran: list[str] = []
        self.own_themes = OwnThemes()
        chat = settings.chat
        self.signals = WindowSignals(
            self.write_sequence, os.environ, has_title=chat.window_title, has_notice=chat.notify, is_plain=chat.plain
        )
        self.library = Library(lambda: store if store is not None else _open_store(settings), owns=store is None)
        is_saved = store is None and settings.chat.history
        self.history = PromptHistory(settings.paths.data_dir / HISTORY_FILE if is_saved else None)
        self.host = ModelHost(loader or _default_loader(settings), self.library.store)
        self.breakdown: EdgeError | None = None
        self.bugs: list[BaseException] = []
        self.editor: Editor | None = None
        self.left_by_editor = ""

    def register_theme(self, theme: Theme) -> None:
        """Register a theme, as the terminal can show it."""
        console = self.__dict__.get("console")  # none yet while textual registers its own, which __init__ does again
        super().register_theme(for_terminal(theme, console.color_system) if console is not None else theme)

    @property
    def blinks(self) -> bool:
        """Return whether cursors blink."""
        return not (self.is_plain or self.is_still)

    def set_plain(self, on: bool) -> None:
        """Switch plain mode: no box drawing, no colour, no animation."""
        self.is_plain = on
        self.set_class(on, "-plain")
        self.animation_level = "none" if on else "full"
        kept = [line_filter for line_filter in self._filters if not isinstance(line_filter, (ControlFilter, NoColor))]
        self._filters[:] = [*kept, ControlFilter(), *([NoColor()] if on else [])]

    def is_own_file(self, path: Path, conversation_id: str) -> bool:
        """Return whether `/save` wrote this file from this conversation, and nobody has changed it since. Blocks."""
        owner, text = self.own_files.get(path, ("", ""))
        try:
            return owner == conversation_id and path.read_text("utf-8") == text
        except (OSError, UnicodeDecodeError):
            return False

    def write_sequence(self, sequence: str) -> None:
        """Send a control sequence that changes nothing on the screen to the terminal."""
        if self._driver is not None:
            self._driver.write(sequence)

    def load_model(self, reference: str) -> None:
        """Load a model in the background; the current one stays in use until then."""
        self.host.start(reference)

    async def on_unmount(self) -> None:
        """Release the model and the store, however the app ended."""
        import asyncio

        self.signals.restore()
        await self.host.close()
        await asyncio.to_thread(self.library.close)

    def get_driver_class(self) -> type[Driver]:
        """Return our own driver, whatever TEXTUAL_DRIVER names."""
        if sys.platform == "win32":
            return super().get_driver_class()
        from edge_chat.terminal import TerminalDriver

        return TerminalDriver

    def _handle_exception(self, error: Exception) -> None:
        # Textual would print a traceback with the values of all variables, including conversations.
        self._return_code = 1
        if self._exception is None:
            self._exception = error
            self._exception_event.set()
        self.panic(error)

    def panic(self, *renderables: Any) -> None:
        """End the app; `breakdown` says why."""
        if self.breakdown is None:
            first = renderables[0] if renderables else "unknown"
            self.breakdown = self.report_bug(first if isinstance(first, BaseException) else RuntimeError(str(first)))
        self._close_messages_no_wait()

    def quit_at_signal(self, number: int) -> None:
        """Quit as Ctrl+Q does, with the exit code of the signal. The terminal's end counts as SIGHUP."""
        raise NotImplementedError

    def report_bug(self, bug: BaseException) -> EdgeError:
        """Write a traceback to a file, since it must not go to the screen, and return an error that names the file."""
        self.bugs.append(bug)
        path = self.settings.paths.data_dir / "chat-errors.log"
        text = "".join(traceback.format_exception(bug))
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(path, "a", encoding="utf-8", opener=private_opener) as log:  # Path.open takes no opener
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}\n")
            where = f"Details are in {path}; please report them."
        except OSError as error:
            where = f"Please report it. ({path} could not be written: {error}.)"
        return EdgeError(f"That failed because of a bug in edge chat: {bug!r}.", where)


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path()  # it was deleted: only absolute paths work


def private_opener(name: str, flags: int) -> int:
    """Open a file that only its owner may read."""
    return os.open(name, flags, 0o600)


def _open_store(settings: Settings) -> ConversationStore:
    from edge.conversation import ConversationStore
    from edge.kv.open import forget_conversations

    return ConversationStore(settings.paths.conversations_file, on_delete=partial(forget_conversations, settings))


def _default_loader(settings: Settings) -> Loader:
    def load(model: str, *, store: ConversationStore, on_progress: Callable[[str, float], bool]) -> Assistant:
        import edge

        assistant: Assistant = edge.load(model, settings=settings, store=store, on_progress=on_progress)
        return assistant

    return load
