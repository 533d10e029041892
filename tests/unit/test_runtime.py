"""Several models under one budget, with fake models and plans."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.config import load_settings
from edge.errors import BackendError, BusyError, CancelledError, ModelTooLargeError, UsageError
from edge.runtime import ModelEvent, Runtime
from tests.serving import wait_until

GB = 10**9


def make(
    sizes: dict[str, float],
    loads: list[str] | None = None,
    available_gb: float = 100,
    wait: Callable[[], object] | None = None,
    **options: Any,
) -> Runtime:
    """Return a runtime of fakes.

    Args:
        sizes: GB by name; what follows "+" in a name are GB of a second engine, which prefills.
        loads: the names that are loaded, in order.
        available_gb: of the device, before any is loaded.
        wait: called while one is loaded.
        options: of the runtime.
    """

    def load(name: str, **given: Any) -> Assistant:
        if wait is not None:
            wait()
        if loads is not None:
            loads.append(name if "prefill_with" not in given else f"{name}, prefill with {given['prefill_with']}")
        return Assistant(FakeBackend(delay_s=0.001, script=lambda _: "word " * 1000, n_ctx=8192))

    def plan(name: str, **_: Any) -> Any:
        held = sum(model.memory_bytes for model in runtime.loaded)
        total, available = int(sizes[name] * GB), int(available_gb * GB) - held
        if total > available_gb * GB:
            raise ModelTooLargeError("too large")
        artifact = SimpleNamespace(path=Path("models", name.partition("@")[0]))  # what follows "@" is another name of the same
        more = int(float(name.partition("+")[2] or 0) * GB)
        memory = SimpleNamespace(total_bytes=total + more, available_bytes=available, prefill_bytes=more)
        return SimpleNamespace(memory=memory, artifact=artifact)

    runtime = Runtime(load=load, plan=plan, **options)
    return runtime


def names(runtime: Runtime) -> list[str]:
    return [model.name for model in runtime.loaded]


def use(runtime: Runtime, *models: str) -> None:
    for name in models:
        with runtime.use(name) as ai:
            ai.generate("hi", max_tokens=1).wait()


def test_a_model_is_loaded_once_and_reused() -> None:
    loads: list[str] = []
    with make({"a": 1}, loads) as runtime:
        use(runtime, "a", "a")
        assert loads == ["a"]


@pytest.mark.parametrize("options", [{"memory_gb": 2.5}, {"available_gb": 2.5}])
def test_the_least_recently_used_makes_room(options: dict[str, Any]) -> None:
    loads: list[str] = []
    with make({"a": 1, "b": 1, "c": 1}, loads, **options) as runtime:
        use(runtime, "a", "b", "a", "c")
        assert names(runtime) == ["c", "a"]
        use(runtime, "b")
        assert names(runtime) == ["b", "c"]
        assert loads == ["a", "b", "c", "b"]


def test_a_second_engine_that_nobody_asked_for_unloads_no_model() -> None:
    loads: list[str] = []
    with make({"a": 1, "b+1": 1}, loads, memory_gb=2.5) as runtime:
        use(runtime, "a", "b+1")
        assert [model.memory_bytes for model in runtime.loaded] == [GB, GB]
        runtime.unload("a")
        runtime.unload("b+1")
        use(runtime, "b+1")
        assert [model.memory_bytes for model in runtime.loaded] == [2 * GB]
    assert loads == ["a", "b+1, prefill with off", "b+1"]


def test_a_second_engine_that_was_asked_for_is_planned_like_all_else() -> None:
    loads: list[str] = []
    with make({"a": 1, "b+1": 1}, loads, memory_gb=2.5, settings=load_settings({"engine.prefill_with": "openvino"})) as runtime:
        use(runtime, "a", "b+1")
        assert names(runtime) == ["b+1"]
    assert loads == ["a", "b+1"]


def test_a_model_in_use_is_not_unloaded() -> None:
    with make({"a": 1, "b": 1}, memory_gb=1.5) as runtime:
        with runtime.use("a"), pytest.raises(BusyError), runtime.use("b"):
            pass
        with runtime.use("a") as ai:
            reply = ai.generate("hi")
        with pytest.raises(BusyError), runtime.use("b"):
            pass  # a reply runs
        reply.cancel()
        reply.wait()
        use(runtime, "b")
        assert names(runtime) == ["b"]


def test_a_model_larger_than_the_budget_is_refused_and_nothing_unloaded() -> None:
    with make({"a": 1, "b": 3}, memory_gb=2) as runtime:
        use(runtime, "a")
        with pytest.raises(ModelTooLargeError, match=r"3\.0 GB"):
            use(runtime, "b")
        assert names(runtime) == ["a"]


def test_a_model_larger_than_the_device_is_refused() -> None:
    with make({"a": 1, "b": 3}, available_gb=2) as runtime, pytest.raises(ModelTooLargeError):
        use(runtime, "a", "b")


def test_many_threads_load_a_model_once() -> None:
    loads: list[str] = []
    started = threading.Barrier(8)

    with make({"a": 1}, loads) as runtime:

        def work() -> None:
            started.wait()
            use(runtime, "a")

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert loads == ["a"]
        assert runtime.loaded[0].n_users == 0


def test_a_failure_to_load_reaches_all_who_wait_and_is_tried_again() -> None:
    calls: list[int] = []

    def fail_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise BackendError("no")

    with make({"a": 1}, wait=fail_once) as runtime:
        with pytest.raises(BackendError, match="no"):
            use(runtime, "a")
        assert runtime.loading == []
        use(runtime, "a")


async def test_the_event_loop_stays_free_and_a_task_that_goes_holds_nothing() -> None:
    may_load = threading.Event()
    async with make({"a": 1}, wait=may_load.wait) as runtime:

        async def take() -> None:
            async with runtime.ause("a"):
                pass

        task = asyncio.create_task(take())
        await asyncio.to_thread(lambda: wait_until(lambda: bool(runtime.loading)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_load.set()
        await take()
        assert runtime.loaded[0].n_users == 0


def test_what_happens_to_models_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, str, str]] = []

    def note(event: ModelEvent) -> None:
        told.append((event.kind, event.name, event.why.partition(".")[0]))
        if event.name == "b":
            raise ValueError("a listener's own bug")

    with make({"a": 2, "b": 2, "c": 9}, memory_gb=3, on_event=note) as runtime:
        use(runtime, "a")
        use(runtime, "b")
        with pytest.raises(ModelTooLargeError):
            use(runtime, "c")
        runtime.unload("b")
        use(runtime, "a")
    assert told == [
        ("loading", "a", ""),
        ("loaded", "a", ""),
        ("unloaded", "a", "room"),
        ("loading", "b", ""),
        ("loaded", "b", ""),
        ("failed", "c", "c needs 9"),
        ("unloaded", "b", "asked"),
        ("loading", "a", ""),
        ("loaded", "a", ""),
        ("unloaded", "a", "closed"),
    ]
    assert "a listener's own bug" in caplog.text


def test_what_was_not_used_for_long_is_unloaded() -> None:
    with make({"a": 1, "b": 1}, idle_s=0.05) as runtime:
        with runtime.use("a") as ai:
            use(runtime, "b")
            wait_until(lambda: names(runtime) == ["a"])
            assert ai.generate("hi", max_tokens=1).wait()
        wait_until(lambda: not runtime.loaded)
        use(runtime, "a")


def test_unload_and_close_stop_replies() -> None:
    with make({"a": 1, "b": 1}) as runtime:
        with runtime.use("a") as ai:
            reply = ai.generate("hi")
            assert runtime.unload("a")
            assert not runtime.unload("a")
        assert reply.finish_reason == "cancelled"
        with runtime.use("b") as ai:
            reply = ai.generate("hi")
            runtime.close()
        assert reply.finish_reason == "cancelled"
        with pytest.raises(BackendError, match="closed"):
            use(runtime, "a")


def test_closing_stops_what_is_being_loaded() -> None:
    told: list[bool] = []

    def load(name: str, *, on_progress: Callable[[str, float], bool], **_: Any) -> Assistant:
        runtime.close()
        told.append(on_progress("loading", 0.5))
        raise CancelledError("stopped")

    runtime = Runtime(load=load, plan=lambda *_, **__: None)
    with pytest.raises(CancelledError):
        use(runtime, "a")
    assert told == [False]


@pytest.mark.parametrize("options", [{"memory_gb": 0}, {"memory_gb": float("nan")}, {"idle_s": -1}])
def test_numbers_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Runtime(**options)


def test_a_model_in_use_is_left_where_only_an_idle_one_shall_go() -> None:
    with make({"a": 1}) as runtime:
        with runtime.use("a"):
            assert not runtime.unload("a", only_idle=True)
        assert runtime.unload("a", only_idle=True) and not names(runtime)


def test_a_load_waits_for_the_memory_of_what_is_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    may_close, is_closing, order = threading.Event(), threading.Event(), list[str]()
    original = Assistant.close

    def close(self: Assistant) -> None:
        is_closing.set()
        assert may_close.wait(60)
        order.append("closed")
        original(self)

    with make({"a": 1}, wait=lambda: order.append("loaded")) as runtime:
        with runtime.use("a"):
            pass
        monkeypatch.setattr(Assistant, "close", close)
        unloading = threading.Thread(target=runtime.unload, args=("a",))
        unloading.start()
        assert is_closing.wait(60)
        again = threading.Thread(target=lambda: runtime.use("a").__enter__())
        again.start()
        wait_until(lambda: runtime.loading == ["a"])
        assert order == ["loaded"]
        may_close.set()
        unloading.join()
        again.join()
        assert order[:3] == ["loaded", "closed", "loaded"]


def test_a_model_that_goes_while_another_name_of_it_is_asked_for_has_its_memory_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with make({"a": 2, "a@path": 2}, memory_gb=3) as runtime:
        use(runtime, "a")
        is_known_as = Runtime._is_known_as

        def unload_before(self: Runtime, name: str, path: Path | None) -> bool:
            self.unload("a")
            return is_known_as(self, name, path)

        monkeypatch.setattr(Runtime, "_is_known_as", unload_before)
        use(runtime, "a@path")
        assert [(model.name, model.memory_bytes) for model in runtime.loaded] == [("a@path", 2 * 10**9)]


def test_two_names_of_a_file_are_one_model() -> None:
    loads: list[str] = []
    with make({"a": 2, "a@path": 2, "b": 2}, loads, memory_gb=3) as runtime:
        with runtime.use("a") as first, runtime.use("a@path") as second:
            assert first is second
        assert (loads, names(runtime)) == (["a"], ["a"])
        with runtime.use("b"):
            assert names(runtime) == ["b"]
        with runtime.use("a@path") as third, runtime.use("a") as fourth:
            assert third is fourth and third is not first
        assert loads == ["a", "b", "a@path"]
        assert runtime.unload("a") and runtime.loaded == []
