"""The terminal chat: puts settings, model, conversations and screen together, and takes them down again."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import App
from textual.binding import BindingType

from edge.errors import EdgeError, UsageError
from edge_chat.actions import REGISTRY
from edge_chat.attachments import unpack_draft
from edge_chat.commands import Registry
from edge_chat.history import PromptHistory
from edge_chat.keys import bindings, composer_actions, display_key, make_keymap, teach_terminal_keys
from edge_chat.library import Library
from edge_chat.model_host import Loader, ModelHost
from edge_chat.screens.chat import ChatScreen
from edge_chat.theme import THEMES, choose_theme

if TYPE_CHECKING:
    from textual.command import Provider

    from edge.assistant import Assistant
    from edge.config import Settings
    from edge.conversation import ConversationInfo, ConversationStore
    from edge_chat.screens.dialogs import Choice

__all__ = ["ChatApp"]

_INTERRUPT_TWICE_S = 2.0


def _provider() -> type[Provider]:
    from edge_chat.palette import CommandProvider

    return CommandProvider


class ChatApp(App[int], inherit_bindings=False):
    """The app.

    Args:
        settings: merged settings.
        conversation: id of the conversation to open, or the beginning of one; None begins a new one.
        loader: loads models, instead of `edge.load`.
        store: the conversations, instead of those in the data directory; the caller closes it.
        cwd: where relative paths of attachments begin, instead of the current directory.
        clock: the time, instead of time.time.

    Attributes:
        breakdown: why the app ended on its own, if it did.
        bugs: what was reported as a bug in this session.
        is_still: the cursor never blinks, as pictures of the screen need it.
        composer_actions: key -> what it does while writing, "send" or "newline".
        has_begun: the first frame has been shown and the model is being loaded.

    Raises:
        ConfigError: `chat.theme` or `chat.keys` cannot be used.
    """

    CSS_PATH = "app.tcss"
    TITLE = "edge chat"
    BINDINGS: ClassVar[list[BindingType]] = list(bindings(REGISTRY, "everywhere"))
    COMMANDS: ClassVar[set[Any]] = {_provider}
    COMMAND_PALETTE_BINDING: ClassVar[str] = "f24"  # our own command opens it, with a key that can be changed

    def __init__(
        self,
        settings: Settings,
        *,
        conversation: str | None = None,
        loader: Loader | None = None,
        store: ConversationStore | None = None,
        cwd: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        teach_terminal_keys()
        super().__init__()
        self.settings = settings
        self.registry: Registry = REGISTRY
        self.clock = clock
        self.cwd = cwd or _current_folder()
        self.is_plain = settings.chat.plain
        self.known_models: list[Choice] = []
        self.library = Library(lambda: store if store is not None else _open_store(settings), owns=store is None)
        is_kept = store is None and settings.chat.history
        self.history = PromptHistory(settings.paths.data_dir / "chat-history.jsonl" if is_kept else None)
        self.host = ModelHost(
            loader or _default_loader(settings),
            self.library.store,
            self._model_changed,
            lambda: self.chat_screen.controller.replies,
        )
        self.breakdown: EdgeError | None = None
        self.bugs: list[BaseException] = []
        self.has_begun = False
        self.is_still = False
        self._conversation = conversation
        self._deleted: list[str] = []
        self._interrupted_at = float("-inf")
        self._keymap_wanted = make_keymap(REGISTRY, settings.chat.keys)
        for own in THEMES:
            self.register_theme(own)
        # The ANSI themes misspell a colour that highlighted code needs, and take the app down with it.
        for name in [name for name, theme in self.available_themes.items() if theme.ansi]:
            self.unregister_theme(name)
        self.theme = choose_theme(settings.chat.theme, self.available_themes, os.environ)
        self.set_keymap(self._keymap_wanted)
        self.composer_actions = composer_actions(REGISTRY, self._keymap_wanted)
        self.chat_screen = ChatScreen(self)
        self.set_plain(self.is_plain)

    async def on_event(self, event: events.Event) -> None:
        """What is typed where nothing can be typed belongs to the message box. It gets the focus before the key is handed
        on: moved later, letters that are typed fast would overtake each other."""
        if isinstance(event, (events.Key, events.Paste)) and not event.is_forwarded and self.screen is self.chat_screen:
            self.chat_screen.claim(event)
        await super().on_event(event)

    def get_default_screen(self) -> ChatScreen:
        """The only screen that is not a dialog."""
        return self.chat_screen

    @property
    def blinks(self) -> bool:
        """Whether cursors blink."""
        return not (self.is_plain or self.is_still)

    def keys_of(self, name: str) -> str:
        """The keys of a command as the user set them, comma-separated."""
        return self._keymap_wanted.get(name, self.registry[name].keys)

    def key_display(self, name: str) -> str:
        """The first key of a command, as people write it."""
        return display_key(self.keys_of(name).partition(",")[0])

    def set_plain(self, on: bool) -> None:
        """Switch plain mode: no box drawing, no moving things, nothing that only a colour says."""
        self.is_plain = on
        self.set_class(on, "-plain")
        self.animation_level = "none" if on else "full"

    def begin(self) -> None:
        """Start what takes time; the first frame is on the screen, and typing works."""
        self.chat_screen.run_guarded(self._open_first)
        self.load_model(self.settings.model)
        self.has_begun = True

    async def _open_first(self) -> None:
        """Show the conversation that was asked for, or one that was left while something was being typed, or a new one."""
        chat = self.chat_screen
        await self.library.run(lambda store: None)
        chat.run_guarded(self._load_history)
        wanted = self._conversation
        if wanted is None and not chat.composer.text:
            newest = await self.library.run(lambda store: store.list(limit=1))
            wanted = next((info.id for info in newest if info.draft), None)
        if wanted is None:
            await chat.controller.show_empty()
        else:
            info = await self.library.run(lambda store: store.get(wanted))
            await chat.controller.open(info.id)
        chat.refresh_sidebar()

    async def _load_history(self) -> None:
        import asyncio

        await asyncio.to_thread(self.history.load)
        # The first reply shall not wait for the Markdown parser and the highlighter to be imported.
        await asyncio.to_thread(_import_ahead)

    # Model

    def load_model(self, reference: str) -> None:
        """Load a model in the background; the one in use stays until then."""
        self.host.start(reference)

    async def model_choices(self) -> list[Choice]:
        """Models of the catalogue and on this device.

        Raises:
            EdgeError: they cannot be listed.
        """
        import asyncio

        from edge_chat.models import list_choices

        self.known_models = await asyncio.to_thread(list_choices, self.settings)
        return self.known_models

    def _model_changed(self) -> None:
        if self.is_running and self.chat_screen.is_mounted:
            self.chat_screen.model_view.update()

    # Deleting and bringing back

    async def delete_conversation(self, conversation_id: str) -> None:
        """Delete a conversation, keeping a copy in memory for `undelete_conversation`. What was said in it leaves the input
        history too."""

        def delete(store: ConversationStore) -> tuple[str, str]:
            copy, draft = store.export_json(conversation_id), store.get(conversation_id).draft
            store.delete(conversation_id)
            return copy, draft

        copy, draft = await self.library.run(delete)
        self._deleted.append(copy)
        said = [node["content"] for node in json.loads(copy)["nodes"] if node["role"] == "user"]
        self.chat_screen.run_guarded(self._forget_inputs, [*said, unpack_draft(draft)[0]])

    async def _forget_inputs(self, texts: list[str]) -> None:
        import asyncio

        await asyncio.to_thread(self.history.forget, texts)

    async def undelete_conversation(self) -> ConversationInfo:
        """Bring back the conversation that was deleted last.

        Raises:
            UsageError: none was deleted in this session.
        """
        if not self._deleted:
            raise UsageError("Nothing was deleted since the app began.", "")
        info = await self.library.run(lambda store: store.import_json(self._deleted[-1]))
        self._deleted.pop()
        return info

    # Leaving

    async def action_interrupt(self) -> None:
        """Ctrl+C where nothing is marked: stop the reply; pressed twice, quit."""
        if self.screen is self.chat_screen and await self.chat_screen.controller.sending.stop():
            return
        now = time.monotonic()
        if now - self._interrupted_at < _INTERRUPT_TWICE_S:
            await self.action_quit()
            return
        self._interrupted_at = now
        self.notify(f"Press {self.key_display('interrupt')} again to quit.", markup=False, timeout=_INTERRUPT_TWICE_S)

    async def action_quit_now(self) -> None:
        """Ctrl+Q."""
        await self.action_quit()

    async def action_quit(self) -> None:
        """Save what is typed and said, then leave."""
        await self.chat_screen.controller.close()
        self.exit(0)

    async def on_unmount(self) -> None:
        """Let go of model and store, however the app ended."""
        import asyncio

        await self.host.close()
        await asyncio.to_thread(self.library.close)

    def _fatal_error(self) -> None:
        """Textual would print a traceback with the values of all variables, conversations among them."""
        self.breakdown = self.report_bug(sys.exc_info()[1] or RuntimeError("unknown"))
        self._close_messages_no_wait()

    def report_bug(self, bug: BaseException) -> EdgeError:
        """Write a traceback to a file, since it must not go to the screen, and give an error that names the file."""
        self.bugs.append(bug)
        path = self.settings.paths.data_dir / "chat-errors.log"
        text = "".join(traceback.format_exception(bug))
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(path, "a", encoding="utf-8", opener=_private) as log:  # Path.open takes no opener
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}\n")
            where = f"Details are in {path}; please report them."
        except OSError as error:
            where = f"Please report it. ({path} could not be written: {error}.)"
        return EdgeError(f"That did not work because of a bug in edge chat: {bug!r}.", where)


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path()  # it was deleted: relative paths lead nowhere, and absolute ones work


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


def _import_ahead() -> None:
    import pygments.lexers  # type: ignore[import-untyped]

    import edge_chat.widgets.markdown  # noqa: F401 (imported for later)

    pygments.lexers.get_lexer_by_name("python")
