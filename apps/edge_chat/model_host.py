"""Loading models in the background; the current one stays in use while the next one loads."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from edge.errors import CancelledError, EdgeError, ModelTooLargeError

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.conversation import ConversationStore

__all__ = ["Loader", "ModelHost", "ModelState"]

T = TypeVar("T")

_NICENESS = 5


class Loader(Protocol):
    """`edge.load` as the app uses it; tests replace it with a fake."""

    def __call__(self, model: str, *, store: ConversationStore, on_progress: Callable[[str, float], bool]) -> Assistant: ...


@dataclass(frozen=True, slots=True)
class ModelState:
    """State of the host.

    Attributes:
        phase: "idle" before the first load; "loading"; "ready"; "failed", with or without an older model in use.
        wanted: the reference being loaded, or last requested.
        stage: while loading, the stage ("download", "loading").
        share: while loading, the finished share of that stage, 0 to 1.
        error: why the last load failed.
    """

    phase: Literal["idle", "loading", "ready", "failed"] = "idle"
    wanted: str = ""
    stage: str = ""
    share: float = 0.0
    error: EdgeError | None = None


async def in_background(function: Callable[[], T]) -> T:
    """Call a function in a thread with a lower priority than the one that draws the screen.

    On Linux niceness belongs to a thread, and the threads it starts inherit it. The engine starts its threads while the model
    loads, so a key pressed while they compute is drawn first. Elsewhere niceness belongs to the process and is not changed.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        if sys.platform == "linux":
            try:
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            except OSError:
                pass  # a sandbox forbids it; typing is a little less smooth
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 (raised where the future is awaited)
            loop.call_soon_threadsafe(settle, future.set_exception, error)
        else:
            loop.call_soon_threadsafe(settle, future.set_result, result)

    def settle(set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not future.done():  # the caller may have been cancelled
            set_outcome(outcome)

    threading.Thread(target=run, name="edge-load", daemon=True).start()
    return await future


class ModelHost:
    """The loaded model, if any. Call all methods on the event loop; loading runs in a thread.

    Args:
        loader: loads a model.
        get_store: returns the store of the model's conversations.
        on_change: called on the event loop whenever `state` has changed.

    Attributes:
        get_replies: returns the replies being generated; a replaced model is freed once they have ended.
    """

    def __init__(
        self,
        loader: Loader,
        get_store: Callable[[], Any],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.assistant: Assistant | None = None
        self.reference = ""
        self.state = ModelState()
        self._loader = loader
        self._get_store = get_store
        self.on_change = on_change
        self.get_replies: Callable[[], Iterable[asyncio.Task[None]]] = tuple
        self._retiring: dict[asyncio.Task[None], Assistant] = {}
        self._cancelled = threading.Event()  # of the load started last; each load has its own
        self._is_closed = threading.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, reference: str) -> asyncio.Task[None]:
        """Load a model in the background to replace the current one. A running load is cancelled."""
        self.cancel()
        before, self._cancelled = self._task, threading.Event()
        self._task = asyncio.create_task(self._load(reference, before, self._cancelled), name=f"load {reference}")
        return self._task

    def cancel(self) -> None:
        """Cancel the running load; the current model stays in use."""
        self._cancelled.set()

    async def close(self) -> None:
        """Stop loading and free the model."""
        self.cancel()
        self._is_closed.set()
        retiring = dict(self._retiring)
        for old in retiring.values():  # this ends their replies, which the tasks wait for
            await asyncio.to_thread(old.close)
        tasks = [*retiring, *([self._task] if self._task is not None else [])]
        if tasks:
            await asyncio.wait(tasks)
        if self.assistant is not None:
            assistant, self.assistant = self.assistant, None
            await asyncio.to_thread(assistant.close)

    async def _load(self, reference: str, before: asyncio.Task[None] | None, cancelled: threading.Event) -> None:
        if before is not None:
            await asyncio.wait([before])
        if cancelled.is_set():
            return  # cancelled while it waited for the load before it
        self._set(ModelState("loading", reference, "preparing"))
        try:
            assistant = await self._call_loader(reference, cancelled)
        except CancelledError as error:
            if cancelled is not self._cancelled:
                return  # a newer load is next; waiting messages wait for that one
            self._set(ModelState("ready" if self.assistant else "failed", reference, error=error))
            return
        except Exception as failure:  # noqa: BLE001 (a bug below us must not end the app)
            if not isinstance(failure, EdgeError):
                bug = EdgeError(f"Loading {reference} failed because of a bug: {failure!r}.", "Please report this.")
                bug.__cause__ = failure
                failure = bug
            self._set(ModelState("failed", reference, error=failure))
            return
        old, self.assistant, self.reference = self.assistant, assistant, reference
        self._set(ModelState("ready", reference))
        if old is not None:
            self._retire(old)

    def _retire(self, old: Assistant) -> asyncio.Task[None]:
        """Free a replaced model once the replies it may be generating have ended."""

        async def retire() -> None:
            replies = list(self.get_replies())
            if replies:
                await asyncio.wait(replies)
            await asyncio.to_thread(old.close)

        task = asyncio.create_task(retire(), name="free a model")
        self._retiring[task] = old
        task.add_done_callback(lambda done: self._retiring.pop(done, None))
        return task

    async def _call_loader(self, reference: str, cancelled: threading.Event) -> Assistant:
        """Load beside the current model; if both do not fit, free that first and reload it if the new one fails."""
        store = await self._get_store()
        try:
            return await self._call_once(reference, store, cancelled)
        except ModelTooLargeError:
            old_reference, old = self.reference, self.assistant
            if old is None and not self._retiring:
                raise
            # No new reply uses the old model: messages wait for the new one.
            self.assistant = None
            if old is not None:
                self._retire(old)
            await asyncio.wait(list(self._retiring))
            try:
                return await self._call_once(reference, store, cancelled)
            except Exception:
                if old is not None:
                    self.assistant = await self._call_once(old_reference, store, self._is_closed)
                raise

    async def _call_once(self, reference: str, store: ConversationStore, cancelled: threading.Event) -> Assistant:
        loop = asyncio.get_running_loop()
        last = ("", -1)

        def report(stage: str, share: float) -> bool:
            nonlocal last
            percent = int(share * 100)
            if (stage, percent) != last:
                last = (stage, percent)
                loop.call_soon_threadsafe(self._set, ModelState("loading", reference, stage, share))
            return not cancelled.is_set()

        return await in_background(lambda: self._loader(reference, store=store, on_progress=report))

    def _set(self, state: ModelState) -> None:
        if state.phase == "loading" and self.state.phase != "loading" and state.stage != "preparing":
            return  # a late report of a load that has ended
        self.state = state
        self.on_change()
