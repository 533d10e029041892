"""The chat in a pseudo-terminal: what a terminal sends, signals, and the state in which the terminal is left."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual import events
from textual.widgets import TextArea

from edge.conversation import ConversationStore
from edge_chat.app import ChatApp
from edge_chat.keys import take_all_characters
from edge_chat.screens.dialogs import EditText
from edge_chat.terminal import InputBytes
from tests.chat_app import enter, eventually, fake_app, say, settle

LIMIT_S = 120
CHAT = """
import sys
import edge
from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge_cli.main import main

def load(model, *, settings, store, on_progress):
    return Assistant(FakeBackend(n_ctx=8192, script=lambda text: "word " * 400, delay_s=0.005), store=store)

edge.load = load
main()
"""
MODES = {number: re.compile(rb"\x1b\[\?%d([hl])" % number) for number in (25, 1000, 1003, 1004, 1006, 1049, 2004)}


class Terminal:
    """A pseudo-terminal in which `edge chat` runs with a fake model."""

    def __init__(self, home: Path, *arguments: str, code: str = CHAT, **variables: str) -> None:
        self.home, self.seen = home, b""
        environ = {**os.environ, "TERM": "xterm-256color", "LINES": "24", "COLUMNS": "80", **variables}
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, "-c", code, "chat", *arguments], environ)
        self.is_over = False
        self.before = termios.tcgetattr(self._fd)

    def read(self, until: Callable[[], object], limit_s: float = LIMIT_S) -> None:
        """Read until something holds, or the chat has ended."""
        deadline = time.monotonic() + limit_s
        while not until() and not self.is_over:
            assert time.monotonic() < deadline, self.seen[-2000:]
            if select.select([self._fd], [], [], 0.02)[0]:
                try:
                    part = os.read(self._fd, 65536)
                except OSError:
                    part = b""
                self.seen += part
                self.is_over = not part

    def wait_for(self, text: str) -> None:
        """Wait until a text was drawn."""
        self.read(lambda: text.encode() in self.seen)
        assert text.encode() in self.seen, self.seen[-2000:]

    def type(self, data: bytes) -> None:
        os.write(self._fd, data)

    def draft(self) -> str:
        """Return the saved draft; "" before there is one."""
        path = self.home / "data" / "conversations.db"
        if not path.exists():
            return ""
        with ConversationStore(path) as store:
            return next((info.draft for info in store.list()), "")

    def answer(self) -> tuple[str, str]:
        """Return text and status of the answer."""
        with ConversationStore(self.home / "data" / "conversations.db") as store:
            node = store.path(store.list()[0].id)[-1]
            return node.content, node.status

    def end(self) -> int:
        """Wait for the end, and return the exit code."""
        self.read(lambda: False)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> int:
        """Close the window, and return the exit code."""
        os.close(self._fd)
        self._fd = os.open(os.devnull, os.O_RDONLY)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def is_as_before(self) -> bool:
        """Return whether every mode was switched back: screen, mouse, pasting, cursor, and those of the line."""
        assert termios.tcgetattr(self._fd) == self.before
        last = {number: pattern.findall(self.seen)[-1] for number, pattern in MODES.items()}
        return last.pop(25) == b"h" and set(last.values()) == {b"l"}


@pytest.fixture
def chat(own_home: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str, **variables: str) -> Terminal:
        opened.append(Terminal(own_home, *arguments, **variables))
        return opened[-1]

    yield start
    for terminal in opened:
        try:
            os.kill(terminal.pid, signal.SIGKILL)
            os.waitpid(terminal.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it ended, as it should


def test_whatever_a_terminal_sends_the_chat_goes_on(chat: Callable[..., Terminal]) -> None:
    terminal = chat()
    terminal.wait_for("is ready")
    joined = "می\u200cخواهم क्\u200dष 👨\u200d👩\u200d👧 10\u00a0km \u2028\u202e\ufeff"
    for data in (
        b"caf\xe9 \x9b \xe2\x82 x",
        b"\x1b[M \x98\x24",  # mouse reports of terminals without the SGR mode: the bytes need not be text, or come at once
        b"\x1b[M\xc3\xa9\xff",
        b"\x1b[99999999u\x1b[55296u\x1b[1:2;3u",
        b"\x1b[48;0;0;0;0t\x1b[<0;1;1M\x1b[<0;1;1m\x1b[48;24;80;480;800t",
        joined.encode(),
        b"\x1b[200~A\x1b[31mred\x1b[0mB\xff\x1b[M\x1b[201~end",
    ):
        terminal.type(data)
    expected = "caf\ufffd \ufffd \ufffd x" + joined + "A\x1b[31mred\x1b[0mB\ufffd\x1b[Mend"
    terminal.read(lambda: terminal.draft() == expected)
    assert b"A\x1b[31mred" not in terminal.seen, "pasted text controls the terminal"
    terminal.type(b"\x11")
    assert terminal.end() == 0
    assert terminal.is_as_before()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_quits_as_ctrl_q_does(chat: Callable[..., Terminal], number: int, code: int) -> None:
    terminal = chat()
    terminal.wait_for("is ready")
    terminal.type(b"hi\r")
    terminal.wait_for("word word")
    terminal.type(b"a thought")
    terminal.wait_for("thought")
    os.kill(terminal.pid, number)
    os.kill(terminal.pid, number)  # session managers and `timeout` send more than one
    assert terminal.end() == code
    assert terminal.is_as_before()
    said, status = terminal.answer()
    assert said.startswith("word word") and status == "stopped"
    assert terminal.draft() == "a thought"
    assert b"Traceback" not in terminal.seen


def test_esc_and_a_letter_that_come_together_are_alt_as_everywhere(own_home: Path) -> None:
    """A terminal sends the same for both. Only the time between them tells: what waits for no more within it is Esc."""
    terminal = Terminal(own_home, code=CHAT.replace("0.005", "0.2"))  # a reply of more than a minute
    terminal.wait_for("is ready")
    terminal.type(b"hi\r")
    terminal.wait_for("word word")
    terminal.type(b"\x1bx")
    terminal.read(lambda: terminal.draft() == "x")
    assert terminal.answer()[1] == "partial", "Alt+X stops nothing, and its letter is typed"
    terminal.type(b"\x1b")
    terminal.wait_for("stopped")
    terminal.type(b"y")
    terminal.read(lambda: terminal.draft() == "xy")
    terminal.type(b"\x11")
    assert terminal.end() == 0


EDITOR = """
import os, signal, sys, termios, tty
path = sys.argv[1]
with open(path, "a") as file:
    file.write(" and more")
how = os.environ["HOW"]
if how != "cooked":
    tty.setraw(0)
def leave(number, frame):
    if how == "rescues":
        open(path + ".save", "w").write("not saved")
    elif how == "swaps":
        open(os.path.join(os.path.dirname(path), ".message.md.swp"), "w").write("not saved")
    sys.exit(1)
if how == "deaf":
    leave = signal.SIG_IGN
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGHUP, leave)
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("is open", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize(
    ("how", "draft"),
    [
        ("saves", "a thought and more"),
        ("rescues", "not saved"),
        ("swaps", "a thought and more"),
        ("deaf", "a thought and more"),
    ],
)
def test_a_signal_ends_the_editor_too_and_keeps_its_text(
    chat: Callable[..., Terminal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, draft: str
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    script = tmp_path / "editor.py"
    script.write_text(EDITOR)
    # The first word is a shell, as where $EDITOR is a script: the editor itself is its child.
    command = f'sh -c \'"{sys.executable}" "{script}" "$0"; exit 1\''
    terminal = chat(VISUAL=command, HOW=how, TMPDIR=str(folder))
    terminal.wait_for("is ready")
    terminal.type(b"a thought")
    terminal.wait_for("thought")
    terminal.type(b"\x07")
    terminal.wait_for("is open")
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.end() == 143
    assert terminal.is_as_before()
    assert terminal.draft() == draft
    assert b"Traceback" not in terminal.seen
    if how == "swaps":
        (left,) = folder.iterdir()
        assert f"may be in {left}".encode() in terminal.seen
    else:
        assert not list(folder.iterdir()), "the text is in no folder that others use"


def test_a_terminal_that_is_closed_ends_the_editor_and_the_chat(chat: Callable[..., Terminal], tmp_path: Path) -> None:
    script = tmp_path / "editor.py"
    script.write_text(EDITOR)
    terminal = chat(VISUAL=f"{sys.executable} {script}", HOW="saves", TMPDIR=str(tmp_path))
    terminal.wait_for("is ready")
    terminal.type(b"a thought\x07")
    terminal.wait_for("is open")
    assert terminal.close() == 129
    assert terminal.draft() == "a thought and more"


def test_ctrl_c_in_the_editor_is_the_editors(chat: Callable[..., Terminal], tmp_path: Path) -> None:
    script = tmp_path / "editor.py"
    script.write_text(EDITOR)
    terminal = chat(VISUAL=f"{sys.executable} {script}", HOW="cooked", TMPDIR=str(tmp_path))
    terminal.wait_for("is ready")
    terminal.type(b"a thought\x07")
    terminal.wait_for("is open")
    terminal.type(b"\x03")
    terminal.wait_for("^C")
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.end() == 143, "it has not quit at Ctrl+C"
    assert terminal.draft() == "a thought and more"


def test_a_terminal_that_is_closed_ends_the_chat(chat: Callable[..., Terminal]) -> None:
    terminal = chat()
    terminal.wait_for("is ready")
    terminal.type(b"hi\r")
    terminal.wait_for("word word")
    assert terminal.close() == 129
    assert terminal.answer()[1] == "stopped"


def test_a_bug_in_reading_keys_is_a_sentence_a_log_and_exit_code_1(own_home: Path) -> None:
    broken = CHAT.replace("main()", "")
    broken += "import edge_chat.terminal as t\n"
    broken += "def fail(self, data): raise ZeroDivisionError('a bug')\n"
    broken += "t.InputBytes.feed = fail\nmain()\n"
    terminal = Terminal(own_home, code=broken)
    terminal.wait_for("Message")
    terminal.type(b"x")
    assert terminal.end() == 1
    assert terminal.is_as_before()
    assert b"bug in edge chat: ZeroDivisionError" in terminal.seen and b"Traceback" not in terminal.seen
    assert "ZeroDivisionError: a bug" in (own_home / "data" / "chat-errors.log").read_text()


@pytest.mark.parametrize("name", ["COLOR_SYSTEM", "DRIVER", "LOG", "PRESS", "SCREENSHOT"])
def test_variables_of_textuals_developers_do_nothing(chat: Callable[..., Terminal], tmp_path: Path, name: str) -> None:
    terminal = chat(**{f"TEXTUAL_{name}": "0" if name == "SCREENSHOT" else f"{tmp_path}/no/such"})
    terminal.wait_for("is ready")
    terminal.type(b"\x11")
    assert terminal.end() == 0


def test_a_terminal_that_cannot_draw_is_refused(chat: Callable[..., Terminal]) -> None:
    terminal = chat(TERM="dumb")
    assert terminal.end() == 2
    assert b"edge run" in terminal.seen and b"\x1b[?1049h" not in terminal.seen


def test_without_utf8_frames_are_ascii(chat: Callable[..., Terminal]) -> None:
    terminal = chat(PYTHONIOENCODING="ascii")
    terminal.wait_for("is ready")
    terminal.type(b"\x11")
    assert terminal.end() == 0
    drawn = re.sub(rb"\x1b\[[?0-9;>$]*[a-zA-Z]", b"", terminal.seen)
    assert b"+------" in drawn and b"?" not in drawn.replace(b"Ctrl+?", b""), drawn
    assert drawn.isascii()


def test_the_chat_is_drawn_on_stdout_where_stderr_is_a_file(own_home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    terminal = Terminal(own_home, code=f"import os; os.dup2(os.open({str(log)!r}, os.O_CREAT | os.O_WRONLY), 2)\n{CHAT}")
    terminal.wait_for("is ready")
    terminal.type(b"\x11")
    assert terminal.end() == 0
    assert b"\x1b[" not in log.read_bytes()


def feed(data: list[bytes]) -> list[tuple[str, str | None]]:
    reader = InputBytes()
    return [found for part in data for found in reader.feed(part)]


@given(st.binary(max_size=30), st.lists(st.integers(0, 60), max_size=4))
def test_pasted_text_is_whole_however_it_arrives(pasted: bytes, cuts: list[int]) -> None:
    pasted = pasted.replace(b"\x1b[201~", b"").replace(b"\0", b"")
    data = b"before\x1b[200~" + pasted + b"\x1b[201~after"
    points = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    found = feed([data[start:end] for start, end in pairwise(points)])
    assert [text for _, text in found if text is not None] == [pasted.decode("utf-8", "replace")]
    assert "".join(text for text, _ in found) == "before\x1b[200~\x1b[201~after"


@given(st.binary(min_size=3, max_size=3), st.integers(0, 12))
def test_mouse_reports_in_bytes_take_no_other_keys(report: bytes, cut: int) -> None:
    data = b"a\x1b[M" + report + "é".encode()
    assert "".join(text for text, _ in feed([data[:cut], data[cut:]])) == "a\x1b[M!!!é"


@contextmanager
def original_keys() -> Iterator[None]:
    before = events.Key.is_printable
    yield
    events.Key.is_printable = before  # type: ignore[method-assign]


def test_all_characters_but_controls_are_typed() -> None:
    with original_keys():
        take_all_characters()
        typed = [chr(code) for code in (*range(0x300), 0x200C, 0x200D, 0x2028, 0xFEFF, 0xE0067, 0xD800, 0x1F600)]
        refused = [ord(text) for text in typed if not events.Key(text, text).is_printable]
    assert refused == [*range(0x20), *range(0x7F, 0xA0), 0xD800]


JOINED = "\u200d\u00a0a\u200c\u00adb"


@pytest.mark.parametrize("keys", [[], ["ctrl+o"], ["ctrl+f"]], ids=["message box", "list", "search"])
async def test_joiners_and_blanks_are_typed_everywhere(keys: list[str]) -> None:
    app = fake_app()
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await pilot.press(*keys)
        for character in JOINED:
            app.post_message(events.Key(character, character))
        await settle(pilot)
        screen = app.chat_screen
        assert (screen.sidebar.search.value if keys == ["ctrl+f"] else screen.composer.text) == JOINED


async def test_joiners_and_blanks_are_typed_in_dialogs() -> None:
    app = fake_app()
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "/system")
        await eventually(pilot, lambda: isinstance(app.screen, EditText))
        for character in JOINED:
            app.post_message(events.Key(character, character))
        await eventually(pilot, lambda: app.screen.query_one(TextArea).text == JOINED)
        await pilot.press("escape")
        await settle(pilot)


@pytest.mark.parametrize("text", ["a\u2028b", "a\x0bb\x85c\x1dd", "a\nb\n", "\n", "", "a\r\nb", "\x1b[31m"])
async def test_the_message_box_keeps_every_character(text: str) -> None:
    app = fake_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.post_message(events.Paste(text))
        await settle(pilot)
        kept = text.replace("\r\n", "\n")
        assert app.chat_screen.composer.text == kept
        app.chat_screen.composer.load(text)
        await settle(pilot)
        assert app.chat_screen.composer.text.replace("\r\n", "\n") == kept
        drawn = "".join(segment.text for strip in app.screen._compositor.render_strips() for segment in strip)
        assert drawn.isprintable()


@pytest.mark.parametrize("reason", ["a sentence", ZeroDivisionError("a bug")])
async def test_a_panic_is_reported(no_bugs: list[BaseException], reason: str | Exception) -> None:
    app = fake_app()
    with pytest.raises(ZeroDivisionError) if isinstance(reason, Exception) else contextmanager(lambda: iter([None]))():
        async with app.run_test() as pilot:
            await settle(pilot)
            if isinstance(reason, Exception):
                app._handle_exception(reason)
            else:
                app.panic(reason)
    assert app.breakdown is not None and str(reason).split()[-1] in app.breakdown.message
    no_bugs.clear()


def drawn_colours(app: ChatApp) -> set[str]:
    """Return the colours of all that is on the screen."""
    styles = [segment.style for strip in app.screen._compositor.render_strips() for segment in strip if segment.style]
    return {colour.name for style in styles for colour in (style.color, style.bgcolor) if colour is not None}


async def test_plain_mode_has_no_colour_and_the_list_takes_the_place_of_the_conversation() -> None:
    app = fake_app(settings={"chat.plain": True})
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        screen = app.chat_screen

        def shown() -> list[str]:
            return [name for name in ("sidebar", "main") if screen.query_one(f"#{name}").display]

        await say(pilot, "hello there")
        assert drawn_colours(app) == {"default"}
        assert shown() == ["main"] and screen.transcript.region.width >= 118
        await pilot.press("ctrl+o")
        await settle(pilot)
        assert shown() == ["sidebar"] and screen.sidebar.region.width == 120
        await pilot.press("enter")
        await settle(pilot)
        assert shown() == ["main"] and screen.composer.input.has_focus
        await pilot.press("ctrl+o", "x")
        await settle(pilot)
        assert shown() == ["main"] and screen.composer.text == "x"
        screen.composer.load("")
        await enter(pilot, "/plain")
        await settle(pilot)
        assert len(drawn_colours(app)) > 3 and shown() == ["sidebar", "main"]
        await enter(pilot, "/plain")
        await settle(pilot)
        assert drawn_colours(app) == {"default"} and shown() == ["main"]
