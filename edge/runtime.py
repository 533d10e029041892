"""Several models under one memory budget: loaded when they are asked for, the least recently used unloaded.

    with edge.Runtime(memory_gb=3) as runtime, runtime.use("smollm2-135m") as ai:
        print(ai.generate("hi").wait())

The KV cache stays on the disk where the settings turn that on, so a model that comes back has its prompts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from edge.embedding.loading import EmbedderCache, LoadedEmbedder, load_embedder
from edge.errors import BackendError, BusyError, ModelTooLargeError, UsageError
from edge.loading import load, plan_model
from edge.units import size_text

if TYPE_CHECKING:
    from pathlib import Path

    from edge.assistant import Assistant
    from edge.config.schema import Settings
    from edge.embedding.base import Embeddings
    from edge.embedding.embedder import Embedder, Input, OnEmbedded
    from edge.plan.receipt import Plan

__all__ = ["LoadedModel", "ModelEvent", "Runtime"]

_log = logging.getLogger("edge.runtime")

EventKind: TypeAlias = Literal["loading", "loaded", "failed", "unloaded"]


@dataclass(frozen=True, slots=True)
class ModelEvent:
    """What happened to a model of a runtime.

    Attributes:
        kind: what happened.
        name: by which the model was asked for.
        why: why it was unloaded: "asked", "idle", "room" for another model, "closed"; or why it could not be loaded.
        memory_bytes: that it takes, or took.
    """

    kind: EventKind
    name: str
    why: str = ""
    memory_bytes: int = 0


@dataclass(slots=True, eq=False)
class LoadedModel:
    """A model in memory.

    Attributes:
        name: by which it was asked for.
        assistant: the model.
        memory_bytes: that it was planned to take.
        path: of its file or folder; None where nothing was planned.
        n_users: that hold it by `Runtime.use` now.
        used_at: when it was last used, of `time.monotonic`.
    """

    name: str
    assistant: Assistant
    memory_bytes: int
    path: Path | None = None
    n_users: int = 0
    used_at: float = field(default_factory=time.monotonic)

    @property
    def is_idle(self) -> bool:
        """True if nobody holds it and no reply runs."""
        return self.n_users == 0 and self.assistant.n_running == 0 and self.assistant.n_waiting == 0


class Runtime:
    """Loads models on request and unloads the least recently used. May be used from any thread.

    Args:
        settings: of all models, as in `edge.load`.
        memory_gb: memory that all of them may take together, in GB (10^9 bytes); None is what is available when one is loaded.
        idle_s: unload a model that was not used for so long, in seconds; None keeps it until another one needs its memory.
        on_event: called with what happens to models that generate, from the thread in which it does; it should be quick.
        load, plan, load_embedder: instead of `edge.load`, `edge.plan_model` and `edge.embedding.load_embedder`, for tests.

    Raises:
        UsageError: a number is not above 0.
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        memory_gb: float | None = None,
        idle_s: float | None = None,
        on_event: Callable[[ModelEvent], None] | None = None,
        load: Callable[..., Assistant] = load,
        plan: Callable[..., Plan | None] = plan_model,
        load_embedder: Callable[..., Embedder] = load_embedder,
    ) -> None:
        for name, value in (("memory_gb", memory_gb), ("idle_s", idle_s)):
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}, which is out of range.", "Use a number above 0, or None.")
        self._settings, self._load, self._plan = settings, load, plan
        self._budget = None if memory_gb is None else int(memory_gb * 1e9)
        self._idle_s, self._on_event = idle_s, on_event
        self._embedders = EmbedderCache(settings, load=load_embedder)
        self._models: dict[str, LoadedModel] = {}
        self._other_names: dict[str, str] = {}  # of loaded models: a path, or an alias
        self._alone: set[str] = set()  # models that are loaded without a second engine, for want of memory
        self._loading: dict[str, Future[None]] = {}
        self._changed = threading.Condition()
        self._one_load = threading.Lock()
        self._n_closing = 0
        self._is_closed = False
        if idle_s is not None:
            threading.Thread(target=self._unload_idle, name="edge-runtime-idle", daemon=True).start()

    @property
    def loaded(self) -> list[LoadedModel]:
        """The models in memory, the most recently used first."""
        with self._changed:
            return sorted(self._models.values(), key=lambda model: -model.used_at)

    @property
    def loaded_embedders(self) -> list[LoadedEmbedder]:
        """The embedding models in memory, the most recently used first."""
        return self._embedders.loaded

    @property
    def loading(self) -> list[str]:
        """Names of the models that are being loaded."""
        with self._changed:
            return list(self._loading)

    @contextlib.contextmanager
    def use(self, name: str | None = None) -> Iterator[Assistant]:
        """Hold a model, which is loaded if it is not yet, and not unloaded before the block ends.

        Args:
            name: catalogue name, path, or reference, as in `edge.load`; None is the setting `model`.

        Raises:
            BusyError: its memory is taken by models that are in use.
            ModelTooLargeError: it does not fit the budget, or the device.
            EdgeError: as `edge.load`.
        """
        model = self._take(name)
        try:
            yield model.assistant
        finally:
            self._give_back(model)

    @contextlib.asynccontextmanager
    async def ause(self, name: str | None = None) -> AsyncIterator[Assistant]:
        """Hold a model as `use` does, without blocking the event loop while it is loaded."""
        while (model := self._find(name)) is None:
            await asyncio.shield(asyncio.wrap_future(self._start_loading(self._name(name))))
        try:
            yield model.assistant
        finally:
            self._give_back(model)

    def embed(
        self,
        texts: Input | Sequence[Input],
        model: str | None = None,
        *,
        dimensions: int | None = None,
        truncate: bool = False,
        download: bool = True,
        on_progress: OnEmbedded | None = None,
    ) -> Embeddings:
        """Return a vector for each text; the model stays loaded as those do that generate, two at most.

        Args and errors: see `edge.embed`; `download` fetches the model if it is not here.
        """
        if self._is_closed:
            raise BackendError("This runtime is closed.", "Make another one.")
        with self._embedders.use(model, download=download) as embedder:
            found = embedder.embed(texts, dimensions=dimensions, truncate=truncate, on_progress=on_progress)
        with self._changed:
            self._changed.notify_all()  # so that it is unloaded in time
        return found

    def unload(self, name: str, *, only_idle: bool = False) -> bool:
        """Unload a model, whose running replies are stopped. Blocks until its memory is free.

        Args:
            name: by which it was asked for.
            only_idle: leave a model that somebody holds, or that answers.

        Returns:
            Whether it was unloaded.
        """
        with self._changed:
            model = self._models.get(self._other_names.get(name, name))
            if model is None or (only_idle and not model.is_idle):
                return False
            self._forget(model)
        self._free(model, "asked")
        return True

    def _forget(self, model: LoadedModel) -> None:
        """Let nobody find a model, which `_free` frees. Called with the lock."""
        del self._models[model.name]
        self._other_names = {other: name for other, name in self._other_names.items() if name != model.name}
        self._n_closing += 1

    def _free(self, model: LoadedModel, why: str) -> None:
        """Free a forgotten model. Loads wait for that: its memory is theirs, and so is its KV cache on the disk."""
        try:
            model.assistant.close()
        finally:
            with self._changed:
                self._n_closing -= 1
                self._changed.notify_all()
        self._tell("unloaded", model.name, why, model.memory_bytes)

    def _tell(self, kind: EventKind, name: str, why: str = "", n_bytes: int = 0) -> None:
        """Tell of an event. What its listener raises is logged: it must not keep a model from being loaded or unloaded."""
        if self._on_event is None:
            return
        try:
            self._on_event(ModelEvent(kind, name, why, n_bytes))
        except Exception:  # noqa: BLE001 (whatever a listener raises)
            _log.exception("on_event of a runtime failed")

    def close(self) -> None:
        """Unload all models; running replies end as cancelled. May be called twice."""
        with self._changed:
            self._is_closed = True
            models, self._models = list(self._models.values()), {}
            self._changed.notify_all()
        for model in models:
            model.assistant.close()
            self._tell("unloaded", model.name, "closed", model.memory_bytes)
        self._embedders.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Runtime:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.close)

    def _name(self, name: str | None) -> str:
        if name is not None:
            return name
        if self._settings is not None:
            return self._settings.model
        from edge.config.schema import Settings

        return Settings().model

    def _find(self, name: str | None) -> LoadedModel | None:
        """Take a model that is loaded."""
        with self._changed:
            if self._is_closed:
                raise BackendError("This runtime is closed.", "Make another one.")
            name = self._name(name)
            model = self._models.get(self._other_names.get(name, name))
            if model is not None:
                model.n_users += 1
                model.used_at = time.monotonic()
            return model

    def _take(self, name: str | None) -> LoadedModel:
        """Take a model, which is loaded first if it is not yet."""
        while (model := self._find(name)) is None:
            self._start_loading(self._name(name)).result()
        return model

    def _start_loading(self, name: str) -> Future[None]:
        """Load a model in a thread of its own, unless that is being done or is done; all who want it wait for the same."""
        with self._changed:
            future = self._loading.get(name)
            if future is not None:
                return future
            future = Future()
            if name in self._models or name in self._other_names:
                future.set_result(None)
                return future
            self._loading[name] = future
        threading.Thread(target=self._load_into, args=(name, future), name="edge-runtime-load", daemon=True).start()
        return future

    def _load_into(self, name: str, future: Future[None]) -> None:
        try:
            with self._one_load:
                needed, path = self._make_room(name)
                while not (is_known := self._is_known_as(name, path)) and path is not None and not needed:
                    needed, path = self._make_room(name)  # what needed no room was unloaded just now
                if not is_known:
                    self._tell("loading", name, n_bytes=needed)
                    options = self._tiers() | ({"prefill_with": "off"} if name in self._alone else {})
                    assistant = self._load(name, settings=self._settings, on_progress=self._goes_on, **options)
                    with self._changed:
                        if not self._is_closed:
                            self._models[name] = LoadedModel(name, assistant, needed, path)
                    if self._is_closed:
                        assistant.close()
                    else:
                        self._tell("loaded", name, n_bytes=needed)
            with self._changed:
                del self._loading[name]
                self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 (raised again by all who wait)
            with self._changed:
                self._loading.pop(name, None)
            self._tell("failed", name, str(error))
            future.set_exception(error)
        else:
            future.set_result(None)

    def _tiers(self) -> dict[str, Any]:
        """Return the options by which a model's next tier is one of this runtime's models, if the settings name one."""
        has_tier = self._settings is not None and self._settings.escalation.to is not None
        return {"larger": self.use} if has_tier else {}

    def _is_known_as(self, name: str, path: Path | None) -> bool:
        """Tell if a model of this file is loaded under another name, which then has this one, too."""
        with self._changed:
            known = next((model for model in self._models.values() if path is not None and model.path == path), None)
            if known is not None:
                self._other_names[name] = known.name
            return known is not None

    def _goes_on(self, stage: str, share: float) -> bool:
        """Stop what is downloaded or loaded once the runtime is closed."""
        return not self._is_closed

    def _give_back(self, model: LoadedModel) -> None:
        with self._changed:
            model.n_users -= 1
            model.used_at = time.monotonic()
            self._changed.notify_all()

    def _make_room(self, name: str) -> tuple[int, Path | None]:
        """Unload idle models until one fits beside the rest, and return the bytes that it was planned to take, and its path.

        One that is loaded already, under another name, needs no room.

        Raises:
            BusyError: too many of the others are in use.
            ModelTooLargeError: it does not fit alone.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._n_closing)
        while True:
            try:
                plan = self._plan(name, settings=self._settings, on_progress=self._goes_on)
            except ModelTooLargeError:
                if not self._unload_oldest():
                    raise
                continue
            if plan is None:
                return 0, None
            path = plan.artifact.path.resolve()
            with self._changed:
                if any(model.path == path for model in self._models.values()):
                    return 0, path
                held = sum(model.memory_bytes for model in self._models.values())
            held += sum(one.memory_bytes for one in self._embedders.loaded)
            needed = self._needed_bytes(name, plan, held)
            if self._budget is not None and needed > self._budget:
                raise ModelTooLargeError(
                    f"{name} needs {size_text(needed)}; all models together may take {size_text(self._budget)}.",
                    "Allow more memory, a smaller context, or choose a smaller model.",
                )
            room = plan.memory.available_bytes if self._budget is None else self._budget - held
            if needed <= room or (self._budget is None and not held):
                return needed, path
            if not self._unload_oldest():
                raise BusyError(f"The memory for {name} is taken by models that are in use.", "Try again later.")

    def _needed_bytes(self, name: str, plan: Plan, held: int) -> int:
        """Return the bytes that a plan takes: without a second engine that nobody asked for, where that takes too much."""
        needed, more = plan.memory.total_bytes, plan.memory.prefill_bytes
        is_asked = self._settings is not None and self._settings.engine.prefill_with is not None
        room = plan.memory.available_bytes if self._budget is None else self._budget - held
        self._alone.discard(name)
        if more and not is_asked and needed > room:
            self._alone.add(name)
            return needed - more
        return needed

    def _unload_oldest(self) -> bool:
        """Unload the model that was not used for the longest time. Returns False if all are in use."""
        with self._changed:
            oldest = min((one for one in self._models.values() if one.is_idle), key=lambda one: one.used_at, default=None)
        if self._embedders.close_unused(oldest.used_at if oldest is not None else time.monotonic()):
            return True
        with self._changed:
            if oldest is None:
                return False
            if self._models.get(oldest.name) is not oldest or not oldest.is_idle:
                return True  # taken, or unloaded, meanwhile: look again
            self._forget(oldest)
        self._free(oldest, "room")
        return True

    def _unload_idle(self) -> None:
        """Unload what was not used for too long; the work of a thread of its own."""
        assert self._idle_s is not None
        while True:
            while self._embedders.close_unused(time.monotonic() - self._idle_s):
                pass
            with self._changed:
                if self._is_closed:
                    return
                now = time.monotonic()
                due = [one for one in self._models.values() if one.is_idle and now - one.used_at >= self._idle_s]
                for model in due:
                    self._forget(model)
                if not due:
                    used = [one.used_at for one in self._models.values() if not one.n_users]
                    used += [one.used_at for one in self._embedders.loaded if not one.n_users]
                    left = self._idle_s - (now - min(used)) if used else None
                    self._changed.wait(None if left is None else max(left, 0.05 * self._idle_s))
            for model in due:
                self._free(model, "idle")
