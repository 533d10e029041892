from __future__ import annotations

import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge.config import load_settings
from edge.conversation import ConversationStore
from edge.errors import StorageError
from edge_chat.app import ChatApp
from edge_chat.history import MAX_ENTRIES, PromptHistory
from tests.chat_app import fake_app, say, settle


def filled(*entries: str) -> PromptHistory:
    history = PromptHistory(None)
    for entry in entries:
        history.add(entry)
    return history


def test_walking_back_and_forth_keeps_what_was_being_typed() -> None:
    history = filled("one", "two")
    assert history.previous("typing") == "two"
    assert history.previous("two") == "one"
    assert history.previous("one") is None
    assert history.next() == "two"
    assert history.next() == "typing"
    assert history.next() is None


def test_entries_equal_to_the_text_are_passed_over() -> None:
    assert filled("one", "two").previous("two") == "one"
    assert filled("one").previous("one") is None


def test_repeats_and_blanks_are_not_kept() -> None:
    history = filled("a", "a", "  ", " a ")
    assert history.previous("") == "a"
    assert history.previous("a") is None


def test_it_lasts_across_sessions_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.jsonl"
    first = PromptHistory(path)
    first.add("zwei\nZeilen „ü“")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = PromptHistory(path)
    second.add("typed before the file was read")
    second.load()
    assert second.previous("") == "typed before the file was read"


def test_two_sessions_at_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    one, other = PromptHistory(path), PromptHistory(path)
    one.add("a")
    other.add("b")
    one.add("c")
    third = PromptHistory(path)
    third.load()
    assert [third.previous(""), third.previous("c"), third.previous("b")] == ["c", "b", "a"]


def test_lines_of_others_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'"good"\n{"not": "ours"}\n\xff\xfe\nnull\n"\n""\n"better"\n')
    history = PromptHistory(path)
    history.load()
    assert history.previous("") == "better"
    assert history.previous("better") == "good"
    assert history.previous("good") is None


def test_a_long_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("".join(f'"{i}"\n' for i in range(3 * MAX_ENTRIES)))
    history = PromptHistory(path)
    history.load()
    assert len(path.read_text().splitlines()) == MAX_ENTRIES
    assert history.previous("") == str(3 * MAX_ENTRIES - 1)


def test_trimming_keeps_what_another_chat_appends_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("".join(f'"{i}"\n' for i in range(3 * MAX_ENTRIES)))
    other = PromptHistory(path)

    class Overtaken(PromptHistory):
        def _rewrite(self, change: Callable[[list[str]], list[str]]) -> None:
            other.add("said elsewhere")
            super()._rewrite(change)

    Overtaken(path).load()
    lines = path.read_text().splitlines()
    assert lines[-2:] == [f'"{3 * MAX_ENTRIES - 1}"', '"said elsewhere"'] and len(lines) == MAX_ENTRIES


def test_many_chats_write_and_forget_at_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('"secret"\n')

    def chat(number: int) -> None:
        history = PromptHistory(path)
        for i in range(20):
            history.add(f"{number} {i}")
            history.forget([f"{number} {i - 1}", "secret"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(chat, range(4)))
    assert sorted(path.read_text().splitlines()) == [f'"{number} 19"' for number in range(4)]


def test_what_is_forgotten_is_gone_from_memory_and_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = PromptHistory(path)
    for text in ("a", "secret", "//cmd", "secret", "b"):
        history.add(text)
    history.forget([" secret\n", "/cmd"])
    assert [history.previous(""), history.previous("b"), history.previous("a")] == ["b", "a", None]
    assert path.read_text() == '"a"\n"b"\n' and stat.S_IMODE(path.stat().st_mode) == 0o600
    absent = PromptHistory(tmp_path / "none")
    absent.forget(["x"])
    assert not (tmp_path / "none").exists()


async def test_deleting_a_conversation_drops_what_was_said_in_it(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    store = ConversationStore(None)
    app = fake_app(store=store)
    app.history = PromptHistory(path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "keep this")
        await app.chat_screen.controller.new()
        await say(pilot, "first secret")
        await say(pilot, "/edit")
        await say(pilot, "second secret")
        assert "first secret" in path.read_text() and "second secret" in path.read_text()
        await app.chat_screen.controller.delete(store.list()[0].id)
        await settle(pilot)
    assert path.read_text() == '"keep this"\n"/edit"\n'


@pytest.mark.parametrize("keep", [True, False])
def test_it_can_be_switched_off(keep: bool, tmp_path: Path) -> None:
    settings = load_settings({"chat.history": keep, "paths.data_dir": str(tmp_path)})
    ChatApp(settings).history.add("x")
    assert (tmp_path / "chat-history.jsonl").exists() is keep


def test_no_file_is_an_empty_history(tmp_path: Path) -> None:
    history = PromptHistory(tmp_path / "none")
    history.load()
    assert history.previous("") is None


def test_a_file_that_cannot_be_written_is_an_error_and_the_entry_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = PromptHistory(tmp_path / "file" / "history.jsonl")
    with pytest.raises(StorageError, match="history"):
        history.add("kept")
    assert history.previous("") == "kept"
