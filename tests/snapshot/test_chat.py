"""Every screen and state of the chat as a picture. `pytest tests/snapshot --snapshot-update` accepts what it looks like now.

Nothing in a picture depends on a clock: replies that are shown with numbers are saved ones, or their numbers are replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.config.schema import GovernorSettings
from edge.conversation import Attachment, ConversationStore
from edge.device.sensors import Readings, Sensors
from edge.engine.governor import Governor, Workload
from edge.errors import BackendError, DownloadError
from edge.types import Message
from edge_chat.app import ChatApp
from tests.chat_app import enter, eventually, fake_app, say, settle
from tests.unit.bench.fakes import device as captured

Compare = Callable[..., bool]
Steps = Callable[[Pilot[Any]], Awaitable[None]]

CODE_ANSWER = """\
A generator is enough; it never holds more than **two** numbers:

```python
from collections.abc import Iterator


def fibonacci() -> Iterator[int]:
    a, b = 0, 1
    while True:
        yield a
        a, b = b, a + b
```

1. `yield` hands out one number at a time.
2. The caller decides when to stop:

```shell
python -c "from fib import fibonacci; print(next(fibonacci()))"
```

| n | value |
| -: | -: |
| 10 | 55 |
| 20 | 6765 |

> Python's integers never overflow. See https://docs.python.org for more.
"""

RECORD = {
    "usage": {"n_prompt": 1190, "n_reused": 1044, "n_generated": 208},
    "timing": {"first_token_ms": 312.0, "decode_ms": 6052.0},
}


def make_store() -> tuple[ConversationStore, str]:
    """Three conversations; the newest has code, attachments and branches."""
    store = ConversationStore(None)
    for title, said in (("How deep do whales dive?", "Sperm whales reach 2,000 m."), ("Rye bread", "Use sourdough.")):
        info = store.create(title=title)
        question = store.append(info.id, Message("user", title), parent=None)
        store.append(info.id, Message("assistant", said), parent=question.id, model="SmolLM2-135M-Instruct")
    info = store.create()
    question = store.append(
        info.id,
        Message("user", "Write me a Fibonacci generator in Python.\nShort, please."),
        parent=None,
        attachments=(Attachment("fib.py", "x = 1\n" * 40),),
    )
    model = "SmolLM2-135M-Instruct"
    store.append(info.id, Message("assistant", "Sure."), parent=question.id, model=model, record=RECORD)
    store.append(info.id, Message("assistant", CODE_ANSWER), parent=question.id, model=model, record=RECORD)
    return store, info.id


class GatedBackend(FakeBackend):
    """Stops in the middle of prefill or decode until the gate is opened."""

    def __init__(self, gate: threading.Event, *, n_chunks: int = 1000, n_tokens: int = 1000) -> None:
        super().__init__(script=lambda message: CODE_ANSWER, n_ctx=8192)
        self.gate, self.n_chunks, self.n_tokens = gate, n_chunks, n_tokens

    def prefill(self, seq_id: int, tokens: Sequence[int], **options: Any) -> int:
        should_stop = options.pop("should_stop", None)

        def stop() -> bool:
            self.n_chunks -= 1
            if self.n_chunks < 0:
                self.gate.wait(120)
            return should_stop is not None and should_stop()

        return super().prefill(seq_id, tokens, should_stop=stop, **options)

    def decode(self, steps: Sequence[tuple[int, int]]) -> None:
        self.n_tokens -= 1
        if self.n_tokens < 0:
            self.gate.wait(120)
        super().decode(steps)


class FailingBackend(FakeBackend):
    def __init__(self) -> None:
        super().__init__(script=lambda message: "The first words, then", n_ctx=8192)
        self.n_tokens = 20

    def decode(self, steps: Sequence[tuple[int, int]]) -> None:
        self.n_tokens -= 1
        if self.n_tokens < 0:
            raise BackendError("The engine ran out of memory for this step.", "Start with a smaller context: --context 4096")
        super().decode(steps)


def opened_at_exit(app: ChatApp, gate: threading.Event) -> ChatApp:
    """Open the gate when the app releases its model, so that it does not wait for a model that waits for the gate."""
    close = app.host.close

    async def open_and_close() -> None:
        gate.set()
        await close()

    app.host.close = open_and_close  # type: ignore[method-assign]
    return app


def fix_numbers(app: ChatApp) -> None:
    """Replace what was measured."""
    app.chat_screen.status.change(first_token_ms=312.0, tokens_per_s=34.2, activity="")


def shows_all(app: ChatApp) -> bool:
    """Return whether the status line has caught up with the reply being generated."""
    run = app.chat_screen.controller.sending.run
    return run is not None and app.chat_screen.status.values.used == run.progress[0] + run.n_generated


def title(app: ChatApp) -> str:
    return str(app.chat_screen.query_one("#title").render())


def saved_app(**options: Any) -> ChatApp:
    store, conversation_id = make_store()
    return fake_app(store=store, conversation=conversation_id, **options)


def steps(*presses: str) -> Steps:
    """Wait for the app, press keys, wait for what they did."""

    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press(*presses)
        await pilot.pause()
        await settle(pilot)  # the tokens of what is typed are counted a moment later

    return run


def dialog(*presses: str) -> Steps:
    """Press keys that open a dialog, and wait for it."""

    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        app = pilot.app
        assert isinstance(app, ChatApp)
        await pilot.press(*presses)
        await eventually(pilot, lambda: app.screen is not app.chat_screen and app.screen.is_mounted)
        await pilot.pause()
        await pilot.pause()

    return run


SIZES = {"small": (80, 24), "medium": (120, 40), "large": (160, 48)}
TINY = (40, 12)


@pytest.mark.parametrize("size", SIZES)
def test_empty(snap_compare: Compare, size: str) -> None:
    assert snap_compare(fake_app(), terminal_size=SIZES[size], run_before=settle)


@pytest.mark.parametrize("size", [*SIZES, "tiny"])
def test_recent(snap_compare: Compare, size: str) -> None:
    """The first screen offers the last conversations."""
    store, _ = make_store()
    assert snap_compare(fake_app(store=store), terminal_size=SIZES.get(size, TINY), run_before=steps("2"))


@pytest.mark.parametrize("key", ["ctrl+o", "ctrl+p", "f1", "f4"])
def test_tiny_dialogs(snap_compare: Compare, key: str) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press(key)
        await pilot.pause()
        await pilot.pause()

    assert snap_compare(saved_app(), terminal_size=TINY, run_before=run)


@pytest.mark.parametrize("size", SIZES)
def test_code_answer(snap_compare: Compare, size: str) -> None:
    assert snap_compare(saved_app(), terminal_size=SIZES[size], run_before=settle)


@pytest.mark.parametrize("size", ["small", "medium"])
def test_light_theme(snap_compare: Compare, size: str) -> None:
    assert snap_compare(saved_app(settings={"chat.theme": "light"}), terminal_size=SIZES[size], run_before=settle)


@pytest.mark.parametrize("size", ["small", "medium"])
def test_plain_mode(snap_compare: Compare, size: str) -> None:
    assert snap_compare(saved_app(settings={"chat.plain": "true"}), terminal_size=SIZES[size], run_before=steps("ctrl+up"))


def test_no_color(snap_compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(saved_app(), terminal_size=(120, 40), run_before=steps("ctrl+up"))


@pytest.mark.parametrize("theme", ["nord", "solarized-light"])
def test_other_themes(snap_compare: Compare, theme: str) -> None:
    assert snap_compare(saved_app(settings={"chat.theme": theme}), terminal_size=(120, 40), run_before=settle)


def test_very_small_terminal(snap_compare: Compare) -> None:
    assert snap_compare(saved_app(), terminal_size=(40, 12), run_before=settle)


def test_loading(snap_compare: Compare) -> None:
    gate = threading.Event()

    def load(model: str, *, store: ConversationStore, on_progress: Callable[[str, float], bool]) -> Assistant:
        on_progress("downloading", 0.42)
        gate.wait(120)
        return Assistant(FakeBackend(), store=store)

    app = opened_at_exit(fake_app(loader=load), gate)

    async def run(pilot: Pilot[Any]) -> None:
        await eventually(pilot, lambda: app.chat_screen.status.values.activity.endswith("42%"))
        await pilot.press(*"Hello, early bird")
        await app.library.run(lambda store: None)
        await pilot.pause()

    assert snap_compare(app, terminal_size=(80, 24), run_before=run)


def test_waiting_message(snap_compare: Compare) -> None:
    gate = threading.Event()

    def load(model: str, *, store: ConversationStore, on_progress: Callable[[str, float], bool]) -> Assistant:
        on_progress("loading", 0.5)
        gate.wait(120)
        return Assistant(FakeBackend(), store=store)

    app = opened_at_exit(fake_app(loader=load), gate)

    async def run(pilot: Pilot[Any]) -> None:
        await eventually(pilot, lambda: app.chat_screen.status.values.activity.endswith("50%"))
        await enter(pilot, "Hello, early bird")
        await eventually(pilot, lambda: app.chat_screen.query(".waiting-card"))
        await pilot.pause()

    assert snap_compare(app, terminal_size=(80, 24), run_before=run)


def test_load_error(snap_compare: Compare) -> None:
    def load(model: str, *, store: ConversationStore, on_progress: Callable[[str, float], bool]) -> Assistant:
        raise DownloadError("The hub did not answer (timed out after 10 s).", "Check the network, or set hub.endpoint.")

    assert snap_compare(fake_app(loader=load), terminal_size=(80, 24), run_before=settle)


def test_reading_a_long_prompt(snap_compare: Compare) -> None:
    gate = threading.Event()
    app = opened_at_exit(fake_app(lambda: GatedBackend(gate, n_chunks=16)), gate)

    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await enter(pilot, "Summarise this: " + "lorem ipsum " * 240)
        await eventually(
            pilot, lambda: any(v.state.startswith("processing prompt, 1,0") for v in app.chat_screen.transcript.views)
        )
        await eventually(pilot, lambda: title(app).startswith("Summarise") and shows_all(app))
        await pilot.pause()

    assert snap_compare(app, terminal_size=(80, 24), run_before=run)


def test_streaming(snap_compare: Compare) -> None:
    gate = threading.Event()
    app = opened_at_exit(fake_app(lambda: GatedBackend(gate, n_tokens=170)), gate)

    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await enter(pilot, "Write me a Fibonacci generator")
        await eventually(pilot, lambda: any(v.text == CODE_ANSWER[:171] for v in app.chat_screen.transcript.views))
        await eventually(pilot, lambda: app.chat_screen.transcript.views[-1].state.startswith("generating"))
        await eventually(pilot, lambda: title(app).startswith("Write me") and shows_all(app))
        fix_numbers(app)
        await pilot.pause()

    assert snap_compare(app, terminal_size=(80, 24), run_before=run)


def test_error_in_place(snap_compare: Compare) -> None:
    app = fake_app(FailingBackend)

    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await say(pilot, "Tell me something")
        fix_numbers(app)
        await pilot.press("ctrl+up")
        await pilot.pause()

    assert snap_compare(app, terminal_size=(80, 24), run_before=run)


def test_notice(snap_compare: Compare) -> None:
    store = ConversationStore(None)
    info = store.create(title="A long story")
    parent = None
    for number in range(12):
        said = Message("user" if number % 2 == 0 else "assistant", f"Part {number}. " + "And so on. " * 8)
        parent = store.append(info.id, said, parent=parent, model="Fake").id
    app = fake_app(lambda: FakeBackend(n_ctx=1000, script=lambda message: "The end."), store=store, conversation=info.id)

    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await say(pilot, "How does it end?")
        fix_numbers(app)
        await pilot.pause()

    assert snap_compare(app, terminal_size=(80, 24), run_before=run)


def test_branches(snap_compare: Compare) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("ctrl+up", "left")
        await settle(pilot)

    assert snap_compare(saved_app(), terminal_size=(120, 40), run_before=run)


def test_editing(snap_compare: Compare) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await say(pilot, "/edit")
        await settle(pilot)

    assert snap_compare(saved_app(), terminal_size=(80, 24), run_before=run)


def test_long_conversation(snap_compare: Compare) -> None:
    store = ConversationStore(None)
    info = store.create(title="A long story")
    parent = None
    for number in range(60):
        said = Message("user" if number % 2 == 0 else "assistant", f"Part {number}.")
        parent = store.append(info.id, said, parent=parent, model="Fake").id
    app = fake_app(store=store, conversation=info.id)
    assert snap_compare(app, terminal_size=(80, 24), run_before=steps("ctrl+home"))


def test_sidebar_over_a_small_screen(snap_compare: Compare) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("ctrl+o")
        await settle(pilot)

    assert snap_compare(saved_app(), terminal_size=(80, 24), run_before=run)


def test_search(snap_compare: Compare) -> None:
    app = saved_app()

    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("ctrl+f", *"whale")
        await eventually(pilot, lambda: "hit" in str(app.chat_screen.query_one("#sidebar-note").render()))
        await settle(pilot)

    assert snap_compare(app, terminal_size=(120, 40), run_before=run)


def test_slash_popup(snap_compare: Compare) -> None:
    assert snap_compare(saved_app(), terminal_size=(80, 24), run_before=steps("/", "s"))


def test_file_popup(snap_compare: Compare, tmp_path: Path) -> None:
    for name in ("notes.md", "src/main.py", "src/notes today.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")
    app = saved_app(cwd=tmp_path)

    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press(*"look at @no")
        await eventually(pilot, lambda: app.chat_screen.composer.popup.is_open and app.chat_screen.status.values.draft)
        await pilot.pause()

    assert snap_compare(app, terminal_size=(80, 24), run_before=run)


def test_attachments(snap_compare: Compare) -> None:
    app = fake_app()

    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        app.chat_screen.composer.load(
            "What do these have\nin common?",
            [Attachment("pasted text 1", "x" * 12_345), Attachment("docs/notes.md", "y" * 420)],
        )
        await eventually(pilot, lambda: len(app.chat_screen.query(".chip")) == 2)
        await settle(pilot)

    assert snap_compare(app, terminal_size=(80, 24), run_before=run)


def test_complaint(snap_compare: Compare) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await say(pilot, "/regenrate")

    assert snap_compare(saved_app(), terminal_size=(80, 24), run_before=run)


@pytest.mark.parametrize("size", ["small", "medium"])
@pytest.mark.parametrize("page", ["help", "keys", "stats", "context"])
def test_pages(snap_compare: Compare, page: str, size: str) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await enter(pilot, f"/{page}")
        await eventually(pilot, lambda: pilot.app.screen is not pilot.app.screen_stack[0])
        await eventually(pilot, lambda: pilot.app.screen.query("ReplyMarkdown"))
        await pilot.pause()

    assert snap_compare(saved_app(), terminal_size=SIZES[size], run_before=run)


@pytest.mark.parametrize("size", ["small", "medium"])
def test_parameters(snap_compare: Compare, size: str) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await dialog("f4")(pilot)
        await eventually(pilot, lambda: pilot.app.focused)
        await pilot.press("down", "end", "x", "down")
        await eventually(pilot, lambda: "top_p" in str(pilot.app.screen.query_one("#parameter-name").render()))
        await pilot.pause()

    assert snap_compare(saved_app(), terminal_size=SIZES[size], run_before=run)


class Sensed(Sensors):
    """A device that is in a bad way, or was."""

    def __init__(self, readings: Readings) -> None:
        super().__init__()
        self.period_s = 0.01
        self.readings = readings

    def read(self) -> Readings:
        return self.readings


THROTTLED = {
    "hot": (Readings(hottest_c=97.0, headroom_c=2.0), "hot: 3 of 4 threads"),
    "all": (
        Readings(battery_percent=9, is_on_battery=True, total_bytes=8 << 30, available_bytes=100 << 20),
        "low battery: 1 of 4 threads; short of memory: window 2,048",
    ),
}


@pytest.mark.parametrize(("case", "size"), [("hot", "small"), ("hot", "medium"), ("all", "small"), ("all", "medium")])
def test_throttled(snap_compare: Compare, case: str, size: str) -> None:
    """The status line of a device that is hot, or low on battery and short of memory."""
    readings, note = THROTTLED[case]
    governor = Governor(Workload(4, 4, 8192), GovernorSettings(hold_s=1e9))  # one step, however slow this machine is

    def load(model: str, *, store: ConversationStore, on_progress: Callable[[str, float], bool]) -> Assistant:
        return Assistant(FakeBackend(n_ctx=8192), store=store, governor=governor, sensors=Sensed(readings))

    async def run(pilot: Pilot[Any]) -> None:
        app = pilot.app
        assert isinstance(app, ChatApp)
        await settle(pilot)
        await eventually(pilot, lambda: app.chat_screen.status.values.throttled == note)
        await eventually(pilot, lambda: app.chat_screen.status.values.total == governor.limits.n_ctx)
        await settle(pilot)

    assert snap_compare(saved_app(loader=load), terminal_size=SIZES[size], run_before=run)


async def test_throttling_that_ended_leaves_the_status_line() -> None:
    sensors = Sensed(THROTTLED["hot"][0])
    governor = Governor(Workload(4, 4, 8192), GovernorSettings(hold_s=1))

    def load(model: str, *, store: ConversationStore, on_progress: Callable[[str, float], bool]) -> Assistant:
        return Assistant(FakeBackend(n_ctx=8192), store=store, governor=governor, sensors=sensors)

    app = saved_app(loader=load)
    async with app.run_test(size=SIZES["small"]) as pilot:
        await eventually(pilot, lambda: app.chat_screen.status.values.throttled)
        sensors.readings = Readings(hottest_c=50.0, headroom_c=49.0)
        await eventually(pilot, lambda: not app.chat_screen.status.values.throttled)
        assert "hot" not in str(app.chat_screen.status.render())


@pytest.mark.parametrize("size", ["small", "medium", "tiny"])
def test_model_picker(snap_compare: Compare, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    app = saved_app(settings={"model": "qwen3-0.6b"})
    # The real list depends on the machine.
    device = captured("raspberry-pi-5")
    monkeypatch.setattr("edge.device.probe", lambda: device)
    monkeypatch.setattr("edge.catalog.list_models", lambda settings: [])

    async def run(pilot: Pilot[Any]) -> None:
        await dialog("f3")(pilot)
        await eventually(pilot, lambda: "think" in str(app.screen.query_one(".dialog-note").render()))
        await pilot.press("down", "up")  # scroll bars draw themselves late
        await pilot.pause()

    assert snap_compare(app, terminal_size=SIZES.get(size, TINY), run_before=run)


def test_theme_picker(snap_compare: Compare) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await enter(pilot, "/theme")
        await eventually(pilot, lambda: len(pilot.app.screen_stack) == 2)
        await pilot.press(*"gruv")
        await pilot.pause()

    assert snap_compare(saved_app(), terminal_size=(80, 24), run_before=run)


def test_palette(snap_compare: Compare) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await dialog("ctrl+p", *"save")(pilot)
        await pilot.pause()

    assert snap_compare(saved_app(), terminal_size=(80, 24), run_before=run)


def test_delete_question(snap_compare: Compare) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await enter(pilot, "/delete")
        await eventually(pilot, lambda: len(pilot.app.screen_stack) == 2)
        await pilot.pause()

    assert snap_compare(saved_app(), terminal_size=(80, 24), run_before=run)


@pytest.mark.parametrize("command", ["title", "system"])
def test_text_dialogs(snap_compare: Compare, command: str) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await enter(pilot, f"/{command}")
        await eventually(pilot, lambda: len(pilot.app.screen_stack) == 2)
        await pilot.pause()

    assert snap_compare(saved_app(), terminal_size=(80, 24), run_before=run)
