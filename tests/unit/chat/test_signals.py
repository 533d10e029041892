"""Signs of life: lines below the screen, a reply whose head is out of sight, the window's title, and notices."""

from __future__ import annotations

import threading

import pytest
from textual.widgets import Static

from edge.backends.fake import FakeBackend
from edge.conversation import ConversationStore
from edge.types import Message
from edge_chat.app import ChatApp
from edge_chat.keys import Keymap
from edge_chat.signals import WindowSignals, notice
from edge_chat.table import REGISTRY
from edge_chat.widgets.below import Below
from edge_chat.wording import below
from tests.chat_app import enter, eventually, fake_app, say, settle

LONG = "".join(f"Paragraph {n}.\n\n" for n in range(60))


class Gated(FakeBackend):
    """Generates until half of the answer, then waits for the gate."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__(script=lambda message: LONG, n_ctx=8192)
        self.gate, self.n_steps = gate, len(LONG) // 2

    def decode(self, steps: object) -> None:
        self.n_steps -= 1
        if self.n_steps < 0:
            self.gate.wait(60)
        super().decode(steps)  # type: ignore[arg-type]


def shown(app: ChatApp) -> str:
    line = app.chat_screen.query_one(Below)
    return str(line.render()) if line.display else ""


async def test_lines_below_the_screen_are_counted_and_the_new_ones_named() -> None:
    gate = threading.Event()
    app = fake_app(lambda: Gated(gate))
    async with app.run_test(size=(80, 24)) as pilot:
        try:
            await settle(pilot)
            assert shown(app) == ""
            await enter(pilot, "hello")
            await eventually(pilot, lambda: shown(app) == "generating · Esc stops")
            await eventually(pilot, lambda: app.chat_screen.transcript.max_scroll_y > 30)
            await pilot.press("pageup")
            await eventually(pilot, lambda: "generating · Esc stops · ↓ " in shown(app))
            gate.set()
            await settle(pilot)
            await eventually(pilot, lambda: shown(app).startswith("↓ ") and "new lines · Ctrl+End" in shown(app))
            n_below, n_new = app.chat_screen.transcript.lines_below
            assert n_below > n_new > 20
            await pilot.press("ctrl+end")
            await eventually(pilot, lambda: shown(app) == "")
            await pilot.press("ctrl+home")
            await eventually(pilot, lambda: shown(app).endswith(" lines · Ctrl+End") and "new" not in shown(app))
            app.chat_screen.query_one(Below).post_message(Below.EndWanted())
            await eventually(pilot, lambda: shown(app) == "")
        finally:
            gate.set()


def test_the_line_in_words() -> None:
    keymap = Keymap(REGISTRY, {})
    assert below("", 0, 0, keymap, is_plain=False) == ""
    assert below("", 1, 1, keymap, is_plain=False) == "↓ 1 new line · Ctrl+End"
    assert (
        below("generating · Esc stops", 40, 34, keymap, is_plain=False) == "generating · Esc stops · ↓ 34 new lines · Ctrl+End"
    )
    assert below("", 3, 0, keymap, is_plain=True) == "3 lines below, Ctrl+End"


def signals(written: list[str], environ: dict[str, str] | None = None, **options: bool) -> WindowSignals:
    flags = {"has_title": True, "has_notice": True, "is_plain": False, **options}
    return WindowSignals(written.append, environ if environ is not None else {"TERM": "xterm-256color"}, **flags)


def test_the_title_of_the_window() -> None:
    written: list[str] = []
    window = signals(written)
    window.show("Whales\x07\x1b]0;evil", is_writing=True)
    window.show("Whales\x07\x1b]0;evil", is_writing=True)
    window.show("", is_writing=False)
    window.restore()
    window.restore()
    assert written[0].startswith("\x1b[22;2t\x1b]0;● edge – Whales") and written[0].count("\x1b") == 2
    assert written[0].count("\x07") == 1 == written[0].index("\x07") // (len(written[0]) - 1)
    assert written[1:] == ["\x1b]0;edge\x07", "\x1b]0;\x07\x1b[23;2t"]


@pytest.mark.parametrize("environ", [{"TERM": "linux"}, {"TERM": "dumb"}])
def test_terminals_that_would_show_the_sequences_get_none(environ: dict[str, str]) -> None:
    written: list[str] = []
    window = signals(written, environ)
    window.show("Whales", is_writing=True)
    window.tell_done("Whales")
    window.restore()
    assert written == []


def test_settings_turn_them_off() -> None:
    written: list[str] = []
    window = signals(written, has_title=False, has_notice=False)
    window.show("Whales", is_writing=True)
    window.tell_done("Whales")
    assert written == []


def test_a_notice_where_the_terminal_has_them_and_a_bell_elsewhere() -> None:
    assert notice({"TERM_PROGRAM": "iTerm.app"})("Rye") == "\x1b]9;edge has answered: Rye\x07"
    assert notice({"KITTY_WINDOW_ID": "1"})("Rye").startswith("\x1b]9;")
    assert notice({"TERM_PROGRAM": "iTerm.app", "TMUX": "x"})("Rye") == "\x07"
    assert notice({})("Rye") == "\x07"


@pytest.mark.parametrize(("has_focus", "long_s", "n_notices"), [(False, 0.0, 1), (True, 0.0, 0), (False, 3600.0, 0)])
async def test_a_long_reply_in_an_unfocused_window_gives_notice(
    monkeypatch: pytest.MonkeyPatch, has_focus: bool, long_s: float, n_notices: int
) -> None:
    monkeypatch.setattr("edge_chat.sending.LONG_REPLY_S", long_s)
    app = fake_app()
    written: list[str] = []
    app.signals = signals(written)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.chat_screen.composer.load("hello")
        app.app_focus = has_focus  # a key would give it the focus
        app.chat_screen.composer.send()
        await settle(pilot)
        assert written.count("\x07") == n_notices
        assert any("edge – " in text for text in written)  # without its mark, where the reply is done first


def conversation(*models: str, n_lines: int = 1) -> tuple[ConversationStore, str]:
    """A conversation with a question and an answer of each model."""
    store = ConversationStore(None)
    info, parent = store.create(title="Models"), None
    for model in models:
        question = store.append(info.id, Message("user", "And you?"), parent=parent)
        text = "\n\n".join(["Line."] * n_lines)
        parent = store.append(info.id, Message("assistant", text), parent=question.id, model=model).id
    return store, info.id


def changes(app: ChatApp) -> list[str]:
    lines = app.chat_screen.query(".model-change").results(Static)
    return [str(line.render()) if line.display else "" for line in lines]


async def test_a_thin_line_shows_where_the_model_changed() -> None:
    store, conversation_id = conversation("smollm2", "smollm2", "qwen3", "smollm2")
    app = fake_app(store=store, conversation=conversation_id)
    async with app.run_test(size=(80, 40)) as pilot:
        await settle(pilot)
        assert changes(app) == ["", "", "── smollm2 → qwen3 ──", "── qwen3 → smollm2 ──"]
        await say(pilot, "hello")
        assert changes(app)[4] == "── smollm2 → Fake ──"
        await say(pilot, "hello again")
        assert changes(app)[5] == ""
        await say(pilot, "/plain")
        assert changes(app)[2] == "From here on qwen3, before smollm2."


async def test_a_change_before_the_messages_on_the_screen_is_known() -> None:
    store, conversation_id = conversation(*["a"] * 16, "b")
    app = fake_app(store=store, conversation=conversation_id)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert changes(app)[-1] == "── a → b ──" and not any(changes(app)[:-1])
        await app.chat_screen.transcript.show_earlier()
        assert changes(app)[-1] == "── a → b ──" and not any(changes(app)[:-1])


async def test_lines_of_another_conversation_or_width_are_not_new() -> None:
    store, conversation_id = conversation(*["a"] * 20, n_lines=5)
    app = fake_app(store=store)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await app.chat_screen.controller.open(conversation_id, store.path(conversation_id)[30].id)
        await settle(pilot)
        await eventually(pilot, lambda: shown(app).endswith("lines · Ctrl+End"))
        assert "new" not in shown(app)
        await app.chat_screen.transcript.show_earlier()
        await settle(pilot)
        assert "new" not in shown(app)
        await pilot.resize_terminal(40, 24)
        await settle(pilot)
        assert "new" not in shown(app)
