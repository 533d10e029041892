"""The installed command `edge chat`, in a real terminal (tmux), with the real model, as a person uses it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.conversation import ConversationStore

pytestmark = [pytest.mark.model, pytest.mark.terminal]

EDGE = Path(sys.executable).with_name("edge")
# A stall anywhere in here is a failure, not a wait for ever. Far more than any of this takes.
LIMIT_S = 400
QUESTION = "Write a long list of numbered tips for gardeners."


class Terminal:
    """A tmux server of its own with one window, 100 by 30."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._run("new-session", "-d", "-x", "100", "-y", "30", "sh")

    def _run(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), "-f", os.devnull, *arguments]
        # Without env= the child would get what readline put behind Python's back: COLUMNS and LINES of another terminal.
        environ = dict(os.environ)
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environ).stdout

    def type(self, text: str) -> None:
        """Letters, as fast as they come."""
        self._run("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        """Keys by tmux's names."""
        self._run("send-keys", *keys)

    def screen(self) -> str:
        """Return the text on the screen."""
        return self._run("capture-pane", "-p")

    def start_chat(self, *arguments: str) -> int:
        """Start the chat and wait for its first frame. Returns its process id."""
        # The inner shell says its number and becomes the chat; the outer one says how it ended.
        pid_file = self._socket.with_suffix(".pid")
        self.type(f"clear; sh -c 'echo $$ > {pid_file}; exec {EDGE} chat {' '.join(arguments)}'; echo ENDED=$?")
        self.press("Enter")
        self.wait(lambda: "Message" in self.screen())
        return int(pid_file.read_text())

    def wait(self, is_true: Callable[[], object]) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + LIMIT_S
        while not is_true():
            assert time.monotonic() < deadline, f"The screen stayed like this:\n{self.screen()}"
            time.sleep(0.05)

    def wait_for(self, text: str) -> None:
        """Wait until a text is on the screen."""
        self.wait(lambda: text in self.screen())

    def renew(self) -> None:
        """Put a fresh terminal in the place of one whose program died without tidying up."""
        self._run("respawn-pane", "-k", "sh")

    def close(self) -> None:
        self._run("kill-server")


@pytest.fixture
def terminal(
    tmp_path: Path, model_path: Path, shared_cache: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Terminal]:
    assert shutil.which("tmux"), "These tests need tmux. Run the tests with: make test"
    settings = {
        "EDGE_MODEL": str(model_path),
        "EDGE_CACHE_DIR": str(shared_cache),
        "EDGE_CONTEXT": "1024",
        "EDGE_ENGINE_MEASURE": "false",
        "EDGE_SAMPLING_SEED": "1",
        "EDGE_SAMPLING_TEMPERATURE": "0",
        "EDGE_SAMPLING_MAX_TOKENS": "120",
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("COLUMNS", "LINES", "NO_COLOR", "TMUX", "VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)  # of the terminal that runs the tests
    terminal = Terminal(tmp_path / "tmux")
    yield terminal
    terminal.close()


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all of these tests, so that this machine is tried once."""
    return tmp_path_factory.mktemp("chat-cache")


def answer(home: Path) -> tuple[str, str]:
    """Return the saved part of the newest answer: text and status; two times "" before there is one."""
    path = home / "data" / "conversations.db"
    if path.exists():
        with ConversationStore(path) as store:
            for info in store.list(limit=1):
                nodes = store.path(info.id)
                if nodes and nodes[-1].role == "assistant":
                    return nodes[-1].content, nodes[-1].status
    return "", ""


def test_ask_see_the_answer_stream_quit_and_find_it_again(terminal: Terminal, own_home: Path) -> None:
    terminal.start_chat()
    terminal.wait_for("is ready")
    terminal.type(QUESTION)
    terminal.press("Enter")
    screens: list[str] = []

    def is_answered() -> bool:
        screen = terminal.screen()
        if "generating ·" in screen and screen not in screens:
            screens.append(screen)
        return answer(own_home)[1] == "complete" and "tok/s" in screen and "generating ·" not in screen

    terminal.wait(is_answered)
    assert len(screens) >= 2, "the answer came in one piece"
    assert "CPU llama.cpp" in terminal.screen()
    said, _ = answer(own_home)
    assert len(said) > 200
    last_words = said.split()[-2:]
    terminal.wait(lambda: all(word.strip("*`.") in terminal.screen() for word in last_words))

    terminal.press("C-q")
    terminal.wait_for("ENDED=0")
    assert "Traceback" not in terminal.screen()

    terminal.start_chat()
    terminal.wait_for("is ready")
    terminal.wait_for("Write a long list")
    terminal.type("/search gardeners")
    terminal.press("Enter")
    terminal.wait_for("hit")
    terminal.press("Enter")
    terminal.press("Enter")
    terminal.wait(lambda: QUESTION in terminal.screen() or last_words[-1] in terminal.screen())
    terminal.press("Escape")
    terminal.press("C-c", "C-c")
    terminal.wait_for("ENDED=0")


def test_what_is_typed_survives_kill_9(terminal: Terminal, own_home: Path) -> None:
    pid = terminal.start_chat()
    terminal.type("A thought that is not finished")

    def is_saved() -> bool:
        path = own_home / "data" / "conversations.db"
        if not path.exists():
            return False
        with ConversationStore(path) as store:
            return any("not finished" in info.draft for info in store.list())

    terminal.wait(is_saved)
    os.kill(pid, signal.SIGKILL)
    terminal.wait_for("ENDED=137")
    terminal.renew()
    terminal.start_chat()
    terminal.wait_for("A thought that is not finished")


def test_stopping_keeps_what_was_said(terminal: Terminal, own_home: Path) -> None:
    # The answer would take about a minute, so that it does not end before Esc, however late that comes.
    terminal.start_chat("--context", "4096", "--max-tokens", "3500")
    terminal.wait_for("is ready")
    terminal.type(QUESTION)
    terminal.press("Enter")
    terminal.wait(lambda: bool(answer(own_home)[0]))
    terminal.press("Escape")
    terminal.wait_for("stopped")
    terminal.wait(lambda: answer(own_home)[1] == "stopped")


def test_a_model_that_is_not_there_is_explained_in_place(terminal: Terminal) -> None:
    terminal.start_chat("-m", "/nowhere/model.gguf")
    terminal.type("hello")
    terminal.press("Enter")
    terminal.wait_for("could not be loaded")
    terminal.wait_for("hello")
    assert "Traceback" not in terminal.screen()
    terminal.press("C-q")
    terminal.wait_for("ENDED=0")


def test_the_editor_gets_the_terminal_and_gives_it_back(terminal: Terminal, tmp_path: Path, own_home: Path) -> None:
    """An answer is written meanwhile; nothing of it may disturb the editor, or get lost."""
    script = tmp_path / "editor"
    script.write_text('#!/bin/sh\necho EDITING; read line; echo "from the editor: $line" >> "$1"\n')
    script.chmod(0o755)
    terminal.type(f"export VISUAL={script}")
    terminal.press("Enter")
    terminal.start_chat()
    terminal.wait_for("is ready")
    terminal.type(QUESTION)
    terminal.press("Enter")
    terminal.wait_for("Esc stops")
    terminal.type("before")
    terminal.wait_for("before")
    terminal.press("C-g")
    terminal.wait_for("EDITING")
    terminal.wait(lambda: answer(own_home)[1] == "complete")
    assert "gardeners" not in terminal.screen().partition("EDITING")[2]
    terminal.type("hello")
    terminal.press("Enter")
    terminal.wait_for("from the editor: hello")
    terminal.wait_for("before")
    last_words = answer(own_home)[0].split()[-2:]
    terminal.wait(lambda: all(word.strip("*`.") in terminal.screen() for word in last_words))
    terminal.press("C-q")
    terminal.wait_for("ENDED=0")


def test_an_editor_that_is_not_there_is_explained_and_the_chat_goes_on(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type(f"export VISUAL={tmp_path}/nothing")
    terminal.press("Enter")
    terminal.start_chat()
    terminal.press("C-g")
    terminal.wait_for("cannot be started")
    terminal.type("still here")
    terminal.wait_for("still here")
    terminal.press("C-q")
    terminal.wait_for("ENDED=0")
