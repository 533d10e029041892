"""A chat with a fake model, for tests and pictures: everything is real but the weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from textual.widget import Widget

from edge_chat.app import ChatApp

if TYPE_CHECKING:
    from textual.app import App
    from textual.message_pump import MessagePump
    from textual.pilot import Pilot
    from textual.screen import Screen

    from edge.assistant import Assistant
    from edge.backends.base import Backend
    from edge.conversation import ConversationStore
    from edge_chat.widgets.message import MessageView

__all__ = ["closing_stores", "enter", "eventually", "fake_app", "patient_keys", "say", "settle", "texts"]

_TIMEOUT_S = 120.0
_KEY_TIMEOUT_S = 5.0  # the test itself may block a part of the app until after this key


def fake_app(
    backend: Callable[[], Backend] | None = None,
    *,
    store: ConversationStore | None = None,
    settings: dict[str, Any] | None = None,
    conversation: str | None = None,
    cwd: Path | None = None,
    loader: Any = None,
) -> ChatApp:
    """Return a chat with a fake model, a cursor that does not blink, and a clock that stands still.

    Args:
        backend: makes the backend; None is a FakeBackend with 8,192 cells.
        store: conversations; None keeps them in memory.
        settings: dotted key -> value. Read-ahead is off unless they turn it on: figures would depend on how fast a test types.
        conversation: id of the one to open.
        cwd: base of relative attachment paths.
        loader: instead of one that opens `backend`.
    """
    from edge.backends.fake import FakeBackend
    from edge.config import load_settings
    from edge.conversation import ConversationStore

    def load(model: str, *, store: ConversationStore, on_progress: Callable[[str, float], bool]) -> Assistant:
        from edge.assistant import Assistant

        on_progress("loading", 0.5)
        return Assistant(backend() if backend is not None else FakeBackend(n_ctx=8192), store=store)

    app = ChatApp(
        load_settings({"chat.read_ahead": False, **(settings or {})}),
        conversation=conversation,
        loader=loader or load,
        store=store if store is not None else ConversationStore(None),
        cwd=cwd,
        clock=lambda: 0.0,
    )
    app.is_still = True
    return app


@contextmanager
def closing_stores() -> Iterator[None]:
    """Close every conversation store that is opened inside the block, so that tests need not."""
    from edge.conversation import ConversationStore

    opened: list[ConversationStore] = []
    original = ConversationStore.__init__

    def remember(self: ConversationStore, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        opened.append(self)

    with patch.object(ConversationStore, "__init__", remember):
        yield
    for store in opened:
        store.close()


@contextmanager
def patient_keys() -> Iterator[None]:
    """Make `pilot.press` and `pilot.pause` wait until the app has handled its messages and drawn, and press keys one by one.

    Textual's own go by processor time: on a busy machine they take an app that gets no time for an idle one, and the next step
    of the test overtakes the key. And they wait up to two seconds a key while a model is generating.
    """
    from textual.pilot import Pilot

    press, pause = Pilot.press, Pilot.pause

    async def press_patiently(self: Pilot[Any], *keys: str) -> None:
        for key in keys:
            await _work_off(self)
            await press(self, key)
        await _work_off(self)

    async def pause_patiently(self: Pilot[Any], delay: float | None = None) -> None:
        await pause(self, delay)
        if delay is None:
            await _work_off(self)
            await pause(self, 0)  # draw what has changed meanwhile

    async def go_on(*_: float) -> None:
        await asyncio.sleep(0)

    with (
        patch.object(Pilot, "press", press_patiently),
        patch.object(Pilot, "pause", pause_patiently),
        patch("textual.app.wait_for_idle", go_on),
        patch("textual.pilot.wait_for_idle", go_on),
    ):
        yield


async def _work_off(pilot: Pilot[Any]) -> None:
    """Wait until nothing is queued in the app, no command is running and all is drawn, for five seconds at most."""
    app = pilot.app
    deadline = time.monotonic() + _KEY_TIMEOUT_S
    n_quiet = 0
    while n_quiet < 2 and app.is_running and time.monotonic() < deadline:
        await asyncio.sleep(0.001)
        # The command that opened a dialog waits for its end.
        n_running = sum(not worker.is_finished for worker in app.workers)
        is_quiet = n_running < len(app.screen_stack) and all(_waits_for_messages(pump) for pump in _pumps(app))
        n_quiet = n_quiet + 1 if is_quiet and _is_drawn(app.screen) else 0
        if is_quiet:
            app.screen._on_timer_update()


async def eventually(pilot: Pilot[Any], is_true: Callable[[], object]) -> None:
    """Wait until something holds, while the app runs.

    Raises:
        TimeoutError: it does not hold within two minutes.
    """
    deadline = time.monotonic() + _TIMEOUT_S
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError("The condition did not become true.")
        await pilot.pause(0.01)


async def settle(pilot: Pilot[Any]) -> None:
    """Wait until the app is idle: model loaded, replies finished and shown, commands done, screen drawn.

    Raises:
        TimeoutError: it is still busy after two minutes.
    """
    app = pilot.app
    assert isinstance(app, ChatApp)
    deadline = time.monotonic() + _TIMEOUT_S
    n_quiet = 0
    while n_quiet < 2:  # the end of one thing may start another
        await app.library.run(lambda store: None)
        await pilot.pause(0)
        n_quiet = n_quiet + 1 if _is_quiet(app) else 0
        if time.monotonic() > deadline:
            raise TimeoutError("The app did not become idle.")


def _is_quiet(app: ChatApp) -> bool:
    """Return whether nothing can still change the screen. `pilot.pause()` does not help: see `patient_keys`."""
    chat, controller = app.chat_screen, app.chat_screen.controller
    has_ended = (
        app.has_begun
        and app.host.state.phase in ("ready", "failed")
        and not (controller.busy_ids or controller.is_busy or controller.outbox.departures)
        and not (
            chat.is_waiting_to_save or chat.sidebar.is_waiting_to_search or chat.meter.is_waiting or chat.read_ahead.is_waiting
        )
        and all(worker.is_finished for worker in app.workers)
    )
    return has_ended and all(map(_is_drawn, app.screen_stack)) and all(_waits_for_messages(pump) for pump in _pumps(app))


def _is_drawn(screen: Screen[Any]) -> bool:
    return not (screen._layout_required or screen._repaint_required or screen._dirty_widgets or screen._callbacks)


def _pumps(app: App[Any]) -> list[MessagePump]:
    """Return all parts of the app with a message queue. Scroll bars are nobody's children, and draw themselves late."""
    widgets = [widget for screen in app.screen_stack for widget in screen.walk_children(Widget, with_self=True)]
    bars = [bar for widget in widgets for bar in (widget._vertical_scrollbar, widget._horizontal_scrollbar) if bar is not None]
    return [app, *widgets, *bars]


def _waits_for_messages(pump: MessagePump) -> bool:
    """Return whether a part of the app has handled its messages. While it handles one it does not wait at its queue."""
    queue: Any = pump._message_queue
    waiters = queue.ready_event._waiters  # asyncio.Event has no public way to see them
    return bool(queue.empty() and any(not waiter.done() for waiter in waiters) and not pump._next_callbacks)


async def enter(pilot: Pilot[Any], text: str) -> None:
    """Put a message or a command into the composer and press Enter."""
    app = pilot.app
    assert isinstance(app, ChatApp)
    app.chat_screen.composer.load(text, app.chat_screen.composer.attachments)
    app.chat_screen.composer.input.focus()
    await pilot.press("enter")
    await pilot.pause()


async def say(pilot: Pilot[Any], text: str) -> None:
    """Like `enter`, and wait for the answer."""
    await enter(pilot, text)
    await settle(pilot)


def texts(app: ChatApp) -> list[str]:
    """Return the messages on the screen, as "You: ..." or "Fake: ..."."""
    views: list[MessageView] = app.chat_screen.transcript.views
    return [f"{view.author}: {view.text}" for view in views]
