from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edge.assistant import Assistant, DiskCache
from edge.backends.fake import FakeBackend
from edge.config import load_settings
from edge.conversation import ConversationStore
from edge.errors import CancelledError, DownloadError, ModelNotFoundError, ModelTooLargeError
from edge.kv.options import StoreOptions
from edge.kv.store import BlockStore
from edge_chat.model_host import ModelHost
from edge_chat.offers import list_choices
from edge_chat.screens.dialogs import Confirm
from edge_chat.screens.picker import Picker
from edge_chat.widgets.cards import ErrorCard, WaitingCard
from tests.chat_app import enter, eventually, fake_app, say, settle, texts
from tests.tiny_onnx import write_onnx
from tests.unit.bench.fakes import write_gguf

Progress = Callable[[str, float], bool]


def answers(name: str) -> FakeBackend:
    return FakeBackend(script=lambda message: f"{name}: {message}", n_ctx=8192)


class Loader:
    """Loads fakes; the test decides when, and what fails."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.errors: dict[str, Exception] = {}
        self.loaded: list[str] = []
        self.opened: list[Assistant] = []

    def __call__(self, model: str, *, store: ConversationStore, on_progress: Progress) -> Assistant:
        for share in (0.0, 0.25):
            if not on_progress("downloading", share):
                raise CancelledError("Stopped.")
        self.gate.wait(120)
        if not on_progress("loading", 0.5):
            raise CancelledError("Stopped.")
        if model in self.errors:
            raise self.errors[model]
        self.loaded.append(model)
        assistant = Assistant(answers(model), store=store)
        self.opened.append(assistant)
        return assistant


async def test_one_can_write_and_send_while_the_model_is_loaded() -> None:
    loader = Loader()
    store = ConversationStore(None)
    app = fake_app(loader=loader, store=store, settings={"model": "small"})
    async with app.run_test(size=(100, 30)) as pilot:
        await eventually(pilot, lambda: app.chat_screen.status.values.activity == "downloading small, 25%")
        await pilot.press(*"hello", "enter")
        await eventually(pilot, lambda: app.chat_screen.query(WaitingCard))
        await eventually(pilot, lambda: store.list() and store.list()[0].draft == "hello")
        loader.gate.set()
        await settle(pilot)
        assert texts(app) == ["You: hello", "Fake: small: hello"]
        assert not app.chat_screen.query(WaitingCard)
        await eventually(pilot, lambda: store.list()[0].draft == "")


async def test_a_model_that_cannot_be_loaded_is_explained_and_the_message_comes_back() -> None:
    loader = Loader()
    loader.errors["small"] = DownloadError("The hub does not answer.", "Check the network.")
    app = fake_app(loader=loader, settings={"model": "small"})
    async with app.run_test(size=(100, 30)) as pilot:
        await eventually(pilot, lambda: app.has_begun)
        await pilot.press(*"hello", "enter")
        await eventually(pilot, lambda: app.chat_screen.query(WaitingCard))
        loader.gate.set()
        await settle(pilot)
        card = app.chat_screen.query_one(ErrorCard)
        assert card.error.message == "The hub does not answer."
        assert app.chat_screen.composer.text == "hello"
        loader.errors.clear()
        await pilot.press("ctrl+up", "r")
        await eventually(pilot, lambda: app.host.assistant is not None)
        await settle(pilot)
        assert not app.chat_screen.query(ErrorCard)
        await pilot.press("ctrl+down", "enter")
        await settle(pilot)
        assert texts(app) == ["You: hello", "Fake: small: hello"]


async def test_a_message_that_waits_is_deleted_with_its_conversation() -> None:
    loader = Loader()
    store = ConversationStore(None)
    app = fake_app(loader=loader, store=store, settings={"model": "small"})
    async with app.run_test(size=(100, 30)) as pilot:
        await eventually(pilot, lambda: app.has_begun)
        await pilot.press(*"hello", "enter")
        await eventually(pilot, lambda: app.chat_screen.query(WaitingCard))
        await enter(pilot, "/delete")
        await eventually(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await eventually(pilot, lambda: not store.list())
        loader.gate.set()
        await settle(pilot)
        assert store.list() == [] and texts(app) == []
        assert app.chat_screen.controller.sending.failures == {}, "nothing was sent to where it cannot be saved"
        assert not app.chat_screen.query_one("#complaint").display


async def test_switching_goes_on_with_the_conversation() -> None:
    loader = Loader()
    loader.gate.set()
    app = fake_app(loader=loader, settings={"model": "small"})
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "a")
        loader.gate.clear()
        await enter(pilot, "/model large")
        await eventually(pilot, lambda: app.host.state.phase == "loading")
        await pilot.press(*"b", "enter")
        # The old model answers until the new one is there.
        await eventually(pilot, lambda: texts(app)[2:] == ["You: b", "Fake: small: b"])
        loader.gate.set()
        await eventually(pilot, lambda: app.host.reference == "large")
        await settle(pilot)
        await say(pilot, "c")
        assert texts(app)[5] == "Fake: large: c"
        assert loader.loaded == ["small", "large"]


async def test_a_switch_that_fails_keeps_the_old_model() -> None:
    loader = Loader()
    loader.gate.set()
    loader.errors["large"] = DownloadError("No.", "Try later.")
    app = fake_app(loader=loader, settings={"model": "small"})
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/model large")
        await eventually(pilot, lambda: app.chat_screen.query(ErrorCard))
        assert app.chat_screen.query_one(ErrorCard).title_text == "large could not be loaded; Fake is still in use"
        await say(pilot, "a")
        assert texts(app)[1] == "Fake: small: a"
        app.chat_screen.set_focus(app.chat_screen.query_one(ErrorCard))
        await pilot.press("x")
        await eventually(pilot, lambda: not app.chat_screen.query(ErrorCard))
        assert app.focused is app.chat_screen.composer.input
        await say(pilot, "/new")
        assert not app.chat_screen.query(ErrorCard)
        loader.errors["smal"] = ModelNotFoundError("No model 'smal'.", "Did you mean small? See names: edge models ls.")
        await say(pilot, "/model smal")
        await eventually(pilot, lambda: app.chat_screen.query(ErrorCard))
        assert app.chat_screen.query_one(ErrorCard).hint == "Did you mean small? See names: /model."


async def test_where_two_models_do_not_fit_the_old_one_makes_room() -> None:
    loader = Loader()
    loader.gate.set()
    seen: list[str] = []

    class Tight(Loader):
        def __call__(self, model: str, *, store: ConversationStore, on_progress: Progress) -> Assistant:
            seen.append(model)
            if model == "large" and seen.count("large") == 1:
                raise ModelTooLargeError("Too large.", "Free memory.")
            return loader(model, store=store, on_progress=on_progress)

    app = fake_app(loader=Tight(), settings={"model": "small"})
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/model large")
        await eventually(pilot, lambda: app.host.reference == "large")
        await settle(pilot)
        await say(pilot, "a")
        assert texts(app)[1] == "Fake: large: a"
    assert seen == ["small", "large", "large"]


class SlowBackend(FakeBackend):
    """Stops after some tokens until the gate is opened."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__(script=lambda message: "word " * 40, n_ctx=8192)
        self.gate, self.n_free = gate, 5

    def decode(self, steps: Sequence[tuple[int, int]]) -> None:
        self.n_free -= 1
        if self.n_free < 0:
            self.gate.wait(120)
        super().decode(steps)


@pytest.mark.parametrize("fits", [True, False])
async def test_a_switch_lets_the_reply_that_is_being_written_end(fits: bool) -> None:
    gate = threading.Event()
    asked: list[str] = []

    def load(model: str, *, store: ConversationStore, on_progress: Progress) -> Assistant:
        asked.append(model)
        if model == "large" and not fits and asked.count("large") == 1:
            raise ModelTooLargeError("Too large.", "Free memory.")
        return Assistant(SlowBackend(gate) if model == "small" else answers(model), store=store)

    store = ConversationStore(None)
    app = fake_app(loader=load, store=store, settings={"model": "small"})
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "a")
        await eventually(pilot, lambda: any(text.startswith("Fake: word") for text in texts(app)))
        small = app.host.assistant
        await enter(pilot, "/model large")
        await eventually(pilot, lambda: app.host.assistant is not small)
        await enter(pilot, "b")
        await eventually(pilot, lambda: app.chat_screen.query(WaitingCard))
        gate.set()
        await settle(pilot)
        await eventually(pilot, lambda: app.host.reference == "large")
        await settle(pilot)
        assert asked == (["small", "large"] if fits else ["small", "large", "large"])
        assert small is not None
        await eventually(pilot, lambda: not app.host._retiring)
        with pytest.raises(Exception, match="closed"):
            small.count_tokens("never asked before")
    nodes = store.path(store.list()[0].id)
    assert [(node.content, node.status) for node in nodes] == [
        ("a", "complete"),
        ("word " * 40, "complete"),
        ("b", "complete"),
        ("large: b", "complete"),
    ]


async def test_giving_up_a_model_that_needed_room_brings_the_old_one_back() -> None:
    loader = Loader()
    loader.gate.set()
    loader.errors["broken"] = DownloadError("No.", "Try later.")
    asked: list[str] = []

    def load(model: str, *, store: ConversationStore, on_progress: Progress) -> Assistant:
        asked.append(model)
        if model == "large" and asked.count("large") == 1:
            loader.gate.clear()
            raise ModelTooLargeError("Too large.", "Free memory.")
        return loader(model, store=store, on_progress=on_progress)

    app = fake_app(loader=load, settings={"model": "small"})
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        app.load_model("large")
        await eventually(pilot, lambda: asked.count("large") == 2)
        app.load_model("broken")
        loader.gate.set()
        await eventually(pilot, lambda: app.chat_screen.query(ErrorCard))
        await settle(pilot)
        await say(pilot, "a")
        assert texts(app) == ["You: a", "Fake: small: a"]
    assert asked == ["small", "large", "large", "small", "broken"]


async def test_where_the_new_model_never_fits_the_old_one_comes_back() -> None:
    loader = Loader()
    loader.gate.set()
    loader.errors["large"] = ModelTooLargeError("Too large.", "Free memory.")
    app = fake_app(loader=loader, settings={"model": "small"})
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/model large")
        await eventually(pilot, lambda: app.chat_screen.query(ErrorCard))
        await settle(pilot)
        await say(pilot, "a")
        assert texts(app)[1] == "Fake: small: a"
    assert loader.loaded == ["small", "small"]


async def test_a_newer_choice_gives_up_the_load_under_way() -> None:
    loader = Loader()
    app = fake_app(loader=loader, settings={"model": "small"})
    async with app.run_test(size=(100, 30)) as pilot:
        await eventually(pilot, lambda: app.host.state.phase == "loading")
        app.load_model("large")
        loader.gate.set()
        await eventually(pilot, lambda: app.host.reference == "large")
        assert loader.loaded == ["large"]


async def test_a_load_that_was_given_up_while_it_waited_its_turn_never_begins() -> None:
    loader, asked = Loader(), []

    def load(model: str, *, store: ConversationStore, on_progress: Progress) -> Assistant:
        asked.append(model)
        return loader(model, store=store, on_progress=on_progress)

    app = fake_app(loader=load, settings={"model": "a"})
    async with app.run_test(size=(100, 30)) as pilot:
        await eventually(pilot, lambda: asked)
        app.load_model("b")
        app.load_model("c")
        loader.gate.set()
        await eventually(pilot, lambda: app.host.reference == "c")
        assert asked == ["a", "c"]
        loader.gate.clear()
        app.load_model("d")
        await eventually(pilot, lambda: asked[-1] == "d")
        app.load_model("e")
        closing = asyncio.create_task(app.host.close())
        await asyncio.sleep(0)
        loader.gate.set()
        await closing
        assert asked == ["a", "c", "d"] and loader.loaded == ["c"]


async def test_models_are_closed_with_the_app() -> None:
    loader = Loader()
    loader.gate.set()
    app = fake_app(loader=loader, settings={"model": "small"})
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/model large")
        await eventually(pilot, lambda: app.host.reference == "large")
        await settle(pilot)
    for assistant in loader.opened:
        with pytest.raises(Exception, match="closed"):
            assistant.count_tokens("never asked before")


async def test_the_picker_lists_the_catalogue() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await pilot.press("f3")
        await eventually(pilot, lambda: isinstance(app.screen, Picker))
        picker = app.screen
        assert isinstance(picker, Picker)
        await eventually(pilot, lambda: app.known_models)
        await pilot.pause()
        await pilot.press(*"smollm2-360m", "enter")
        await eventually(pilot, lambda: app.host.state.wanted == "smollm2-360m")
        await settle(pilot)


def test_a_model_in_two_formats_is_one_choice(own_home: Path, tmp_path: Path) -> None:
    paths = [write_gguf(tmp_path / "a.gguf"), write_onnx(tmp_path / "onnx-a", kind="int4")]
    rows = "".join(f"[[models.both.artifacts]]\nreference = '{path}'\n" for path in paths)
    (own_home / "catalog.toml").write_text(rows)
    named = [choice for choice in list_choices(load_settings()) if choice.value == "both"]
    assert len(named) == 1 and named[0].aside == "here"


async def test_a_failed_disk_cache_is_shown_and_replies_go_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def load(model: str, *, store: ConversationStore, on_progress: Progress) -> Assistant:
        blocks = BlockStore(tmp_path / "file" / "kv", StoreOptions(budget_bytes=1 << 30))
        return Assistant(answers(model), store=store, disk=DiskCache(blocks, b"m" * 32))

    app = fake_app(loader=load, settings={"model": "small"})
    told: list[str] = []
    app.chat_screen.tell = told.append  # type: ignore[method-assign]
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        app.chat_screen._poll()
        await say(pilot, "a")
        assert texts(app) == ["You: a", "Fake: small: a"]
        assert "disk cache off" in str(app.chat_screen.status.render())
    assert len(told) == 1 and told[0].startswith("The on-disk KV cache is off: ")


async def test_a_bug_in_loading_is_an_error_not_a_crash() -> None:
    changes: list[str] = []

    def broken(model: str, *, store: ConversationStore, on_progress: Progress) -> Assistant:
        raise RuntimeError("bug")

    async def no_store() -> None:
        return None

    host = ModelHost(broken, no_store, lambda: changes.append(host.state.phase))
    await host.start("x")
    assert host.state.phase == "failed" and "bug" in str(host.state.error)
    assert changes == ["loading", "failed"]
    await host.close()
