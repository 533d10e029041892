"""`edge chat`: what is handed to the chat app, and what happens where it cannot run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import edge_chat
from edge.config import load_settings
from edge.conversation import ConversationStore
from edge.types import Message


def test_without_a_terminal(call: Any) -> None:
    result = call("chat", stdin=b"")
    assert (result.code, result.out) == (2, "")
    assert "needs a terminal" in result.err
    assert "edge run" in result.err


def test_without_textual(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "textual" else real(name))
    result = call("chat")
    assert (result.code, result.out) == (1, "")
    assert "pip install 'edge-assistant[chat]'" in result.err


def test_settings_reach_the_app(call: Any, terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, Any]] = []

    def run(settings: Any, *, conversation: str | None, voice: bool, say: Any) -> int:
        calls.append((settings, conversation))
        return 7

    monkeypatch.setattr(edge_chat, "run", run)
    monkeypatch.setattr(sys, "stdout", terminal())
    with ConversationStore(load_settings({}).paths.conversations_file) as store:
        kept = store.create(title="Kept").id
    arguments = ("--conversation", kept[:6], "--plain", "-m", "other", "--temperature", "0", "-s", "chat.theme=nord")
    assert call("chat", *arguments).code == 7
    ((settings, conversation),) = calls
    assert conversation == kept
    assert (settings.model, settings.sampling.temperature) == ("other", 0.0)
    assert (settings.chat.plain, settings.chat.theme) == (True, "nord")
    monkeypatch.setenv("EDGE_CHAT_PLAIN", "1")
    assert call("chat").code == 7
    assert calls[1][0].chat.plain is True
    assert calls[1][1] is None


def test_the_last_conversation_is_continued(call: Any, terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str | None] = []

    def run(settings: Any, *, conversation: str | None, voice: bool, say: Any) -> int:
        opened.append(conversation)
        say("the line for the shell")
        return 0

    monkeypatch.setattr(edge_chat, "run", run)
    monkeypatch.setattr(sys, "stdout", terminal())
    said: list[str] = []
    monkeypatch.setattr("edge_cli.output.line", said.append)
    assert "no conversation yet" in call("chat", "-c").err
    with ConversationStore(load_settings({}).paths.conversations_file) as store:
        older, newer = store.create(title="Older").id, store.create(title="Newer").id
        store.append(older, Message("user", "newest message"), parent=None)
    for flag in ("-c", "--continue"):
        assert call("chat", flag).code == 0
    assert opened == [None, older, older] and older != newer
    assert said == ["the line for the shell"] * 3
    result = call("chat", "-c", "--conversation", older)
    assert result.code == 2 and "--continue and --conversation exclude each other" in result.err


def test_a_role_or_system_prompt_of_the_command_line_is_that_of_the_conversation(
    call: Any, terminal: Any, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    (own_home / "prompts").mkdir()
    (own_home / "prompts" / "brief.md").write_text("Be brief.")
    monkeypatch.setattr(edge_chat, "run", lambda settings, **options: 0)
    monkeypatch.setattr(sys, "stdout", terminal())
    with ConversationStore(load_settings({}).paths.conversations_file) as store:
        kept = store.create(title="Kept", system="Old").id
        for arguments, system in (((), "Old"), (("--role", "brief"), "Be brief."), (("--system", "New"), "New"), ((), "New")):
            assert call("chat", "--conversation", kept, *arguments).code == 0
            assert store.get(kept).system == system
    assert "Did you mean brief?" in call("chat", "-c", "--role", "breif").err


def test_a_conversation_that_is_not_there_stops_it(call: Any, terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_chat, "run", lambda *args, **options: pytest.fail("the chat was opened"))
    monkeypatch.setattr(sys, "stdout", terminal())
    result = call("chat", "--conversation", "zz")
    assert result.code == 2
    assert "no conversation 'zz'" in result.err


def test_a_model_behind_the_command_is_an_option_here(call: Any) -> None:
    result = call("chat", "smollm2-135m")
    assert result.code == 2
    assert "edge chat -m smollm2-135m" in result.err


def test_a_wrong_setting_stops_it(call: Any) -> None:
    result = call("chat", "--context", "none")
    assert result.code == 2
    assert "a whole number" in result.err
