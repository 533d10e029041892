from __future__ import annotations

import stat
from pathlib import Path

import pytest

from edge.errors import StorageError
from edge_chat.history import MAX_ENTRIES, PromptHistory


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
