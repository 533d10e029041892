"""Loading models in the background, and holding the one in use while the next is being loaded."""

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
    """`edge.load`, as far as the app needs it; tests put a fake model in its place."""

    def __call__(self, model: str, *, store: ConversationStore, on_progress: Callable[[str, float], bool]) -> Assistant: ...


@dataclass(frozen=True, slots=True)
class ModelState:
    """What the host is doing.

    Attributes:
        phase: "idle" before the first load; "loading"; "ready"; "failed", with or without an older model in use.
        wanted: the reference being loaded, or that was last asked for.
        stage: while loading: what is happening ("downloading", "loading").
        share: while loading: how much of that stage is done, 0 to 1.
        error: why the last load failed.
    """

    phase: Literal["idle", "loading", "ready", "failed"] = "idle"
    wanted: str = ""
    stage: str = ""
    share: float = 0.0
    error: EdgeError | None = None


async def in_background(function: Callable[[str], T], argument: str) -> T:
    """Call a function in a thread that steps back for the one that draws the screen.

    On Linux a thread has a niceness of its own and hands it on to threads that it starts. The engine and its workers are
    started while the model is loaded, so they inherit it: they take all that is left of the machine, but a key that is
    pressed while they compute is drawn first. Elsewhere niceness belongs to the whole process, so it is left alone.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        if sys.platform == "linux":
            try:
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            except OSError:
                pass  # a sandbox that forbids it; typing is a little less smooth then
        try:
            result = function(argument)
        except BaseException as error:  # noqa: BLE001 (handed over to whoever waits)
            loop.call_soon_threadsafe(_set_exception, future, error)
        else:
            loop.call_soon_threadsafe(_set_result, future, result)

    threading.Thread(target=run, name="edge-load", daemon=True).start()
    return await future


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


class ModelHost:
    """The loaded model, if any. All methods are for the event loop; loading happens in a thread.

    Args:
        loader: loads a model.
        get_store: the store that the model's conversations live in.
        on_change: called on the event loop whenever `state` has changed.
        get_replies: the replies that are being written; a model is freed when those that it may be writing have ended.
    """

    def __init__(
        self,
        loader: Loader,
        get_store: Callable[[], Any],
        on_change: Callable[[], None],
        get_replies: Callable[[], Iterable[asyncio.Task[None]]] = tuple,
    ) -> None:
        self.assistant: Assistant | None = None
        self.reference = ""
        self.state = ModelState()
        self._loader = loader
        self._get_store = get_store
        self._on_change = on_change
        self._get_replies = get_replies
        self._retiring: dict[asyncio.Task[None], Assistant] = {}
        self._cancelled = threading.Event()  # of the load that was started last; each has its own
        self._is_closed = threading.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_loading(self) -> bool:
        """Whether a load is under way."""
        return self.state.phase == "loading"

    def start(self, reference: str) -> asyncio.Task[None]:
        """Load a model in the background and put it in the place of the one in use. A load under way is given up."""
        self.cancel()
        before, self._cancelled = self._task, threading.Event()
        self._task = asyncio.create_task(self._load(reference, before, self._cancelled), name=f"load {reference}")
        return self._task

    def cancel(self) -> None:
        """Give up the load under way; the model in use stays."""
        self._cancelled.set()

    async def close(self) -> None:
        """Stop loading and free the model."""
        self.cancel()
        self._is_closed.set()
        retiring = dict(self._retiring)
        for old in retiring.values():  # which ends what they write, so that nothing is left to wait for
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
            return  # given up while it waited its turn
        self._set(ModelState("loading", reference, "preparing"))
        try:
            assistant = await self._call_loader(reference, cancelled)
        except CancelledError as error:
            if cancelled is not self._cancelled:
                return  # a newer choice is next; what waits to be sent waits for that
            self._set(ModelState("ready" if self.assistant else "failed", reference, error=error))
            return
        except EdgeError as error:
            self._set(ModelState("failed", reference, error=error))
            return
        except Exception as unexpected:  # noqa: BLE001 (a bug below us; the app must stay usable and say so)
            broken = EdgeError(f"Loading {reference} broke down: {unexpected!r}.", "Please report this.")
            broken.__cause__ = unexpected
            self._set(ModelState("failed", reference, error=broken))
            return
        old, self.assistant, self.reference = self.assistant, assistant, reference
        self._set(ModelState("ready", reference))
        if old is not None:
            self._retire(old)

    def _retire(self, old: Assistant) -> asyncio.Task[None]:
        """Free a model that is not used any more, once the replies have ended that it is writing."""

        async def retire() -> None:
            replies = list(self._get_replies())
            if replies:
                await asyncio.wait(replies)
            await asyncio.to_thread(old.close)

        task = asyncio.create_task(retire(), name="free a model")
        self._retiring[task] = old
        task.add_done_callback(lambda done: self._retiring.pop(done, None))
        return task

    async def _call_loader(self, reference: str, cancelled: threading.Event) -> Assistant:
        """Load beside the model in use; where both do not fit, free that one first and fall back to it on failure."""
        store = await self._get_store()
        try:
            return await self._call_once(reference, store, cancelled)
        except ModelTooLargeError:
            old_reference, old = self.reference, self.assistant
            if old is None and not self._retiring:
                raise
            # No further reply is begun with the old model: messages wait for the new one.
            self.assistant = None
            if old is not None:
                self._retire(old)
            await asyncio.wait(list(self._retiring))
            try:
                return await self._call_once(reference, store, cancelled)
            except Exception:
                if old is not None:  # giving up the new model is no wish to have none
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

        return await in_background(lambda wanted: self._loader(wanted, store=store, on_progress=report), reference)

    def _set(self, state: ModelState) -> None:
        if state.phase == "loading" and self.state.phase != "loading" and state.stage != "preparing":
            return  # a report that was still on its way when the load had ended
        self.state = state
        self._on_change()
