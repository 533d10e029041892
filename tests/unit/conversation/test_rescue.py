"""Damaged files: what the check sees, and what comes back."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from edge.conversation import Attachment, ConversationStore
from edge.conversation import db as conversation_db
from edge.conversation.rescue import main, rescue
from edge.errors import StorageError
from edge.types import Message

PAGE = 4096


def fill(path: Path) -> dict[str, list[str]]:
    """Thirty conversations with two branches each; gives the texts of the active path by title."""
    texts = {}
    with ConversationStore(path) as store:
        for number in range(30):
            info = store.create(title=f"talk {number}", system="S", model="m")
            root = store.append(
                info.id, Message("user", f"root {number} " * 70), parent=None, attachments=[Attachment("a", "b")]
            )
            store.append(info.id, Message("assistant", "other branch"), parent=root.id)
            last = store.append(info.id, Message("assistant", f"reply {number} " * 70), parent=root.id)
            texts[info.title] = [root.content, last.content]
    return texts


def pages_of(path: Path, name: str) -> list[int]:
    """Numbers of the pages of a table or index, as SQLite's own dbstat says, from 0."""
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT pageno - 1 FROM dbstat WHERE name = ? AND pagetype = 'leaf'", (name,)).fetchall()
    except sqlite3.OperationalError:
        pytest.skip("this SQLite has no dbstat")
    finally:
        connection.close()
    return [row[0] for row in rows]


def spoil(path: Path, pages: list[int]) -> bytes:
    rng = random.Random(3)
    data = bytearray(path.read_bytes())
    for page in pages:
        data[page * PAGE : (page + 1) * PAGE] = rng.randbytes(PAGE)
    path.write_bytes(data)
    return bytes(data)


def test_all_comes_back_when_only_the_index_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    texts = fill(path)
    damaged = spoil(path, pages_of(path, "node_tree") + pages_of(path, "node_fts_data"))
    with ConversationStore(path) as store:
        assert store.check() != []
    with ConversationStore(tmp_path / "new.db") as store:
        result = rescue(path, store)
        assert (result.n_conversations, result.n_messages, result.n_lost) == (30, 90, 0)
        infos = store.list()
        assert {info.title: [node.content for node in store.path(info.id)] for info in infos} == texts
        assert {(info.system, info.model, info.n_messages) for info in infos} == {("S", "m", 3)}
        assert store.path(infos[0].id)[0].attachments == (Attachment("a", "b"),)
        assert store.check() == []
    assert path.read_bytes() == damaged


def test_what_can_be_read_comes_back_when_messages_are_lost(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    texts = fill(path)
    leaves = pages_of(path, "node")
    assert len(leaves) > 5
    spoil(path, leaves[2:4])
    with ConversationStore(tmp_path / "new.db") as store:
        result = rescue(path, store)
        assert result.n_conversations == 30
        assert 40 < result.n_messages < 90
        assert result.n_lost >= 90 - result.n_messages
        whole = [info for info in store.list() if [node.content for node in store.path(info.id)] == texts.get(info.title)]
        assert len(whole) >= 15
        assert store.check() == []
        known = {text for pair in texts.values() for text in pair} | {"other branch"}
        for info in store.list():
            assert {node.content for node in store.path(info.id)} <= known


def test_messages_come_back_without_their_conversations(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    fill(path)
    spoil(path, pages_of(path, "conversation"))
    with ConversationStore(tmp_path / "new.db") as store:
        assert rescue(path, store).n_messages == 90
        assert {info.title for info in store.list()} == {"Rescued conversation"}
        assert {info.n_messages for info in store.list()} == {3}


def test_rows_of_nonsense_do_not_stop_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    fill(path)
    connection = sqlite3.connect(path)
    connection.executescript("""
        UPDATE node SET role = 'root' WHERE id = 1; UPDATE node SET record = '{' WHERE id = 5;
        UPDATE node SET spans = x'ff00' WHERE id = 9; UPDATE node SET conversation = 'none' WHERE id = 90;
        UPDATE conversation SET created = 'noon' WHERE key = 7; UPDATE conversation SET head = 'top' WHERE key = 8;
        DELETE FROM node WHERE id = 20""")
    connection.close()
    with ConversationStore(tmp_path / "new.db") as store:
        result = rescue(path, store)
        assert (result.n_messages, result.n_lost) == (86, 3)
        titles = sorted(info.title for info in store.list())
        assert titles == sorted([f"talk {number}" for number in range(30) if number != 6] + ["Rescued conversation"] * 2)
        first = next(info for info in store.list() if info.title == "talk 0")
        assert [node.content[:5] for node in store.path(first.id)] == ["other", "reply"]  # their parent is lost
        assert store.check() == []


def test_nothing_to_rescue_says_so(tmp_path: Path) -> None:
    (tmp_path / "junk.db").write_bytes(b"junk" * 5000)
    with ConversationStore(tmp_path / "new.db") as store:
        for name in ("junk.db", "missing.db"):
            with pytest.raises(StorageError):
                rescue(tmp_path / name, store)
        assert store.list() == []
    assert not (tmp_path / "missing.db").exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "old.db")
    assert main([str(tmp_path / "old.db"), str(tmp_path / "new.db")]) == 0
    assert "90 messages in 30 conversations came back; 0 could not be read." in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere.db"), str(tmp_path / "new.db")]) == 1
    assert "There is no file" in capsys.readouterr().err
    assert main([]) == 2
    assert "python -m edge.conversation.rescue" in capsys.readouterr().err


def test_the_check_sees_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    fill(path)
    for sql, problem in (
        ("UPDATE conversation SET head = 999999 WHERE key = 1", "refers to nothing"),
        ("UPDATE conversation SET head = 1 WHERE key = 2", "two conversations"),
        ("UPDATE node SET parent = 1 WHERE id = 80", "two conversations"),
        ("DELETE FROM node_fts_docsize WHERE id = 5", "index"),
        ("DROP TRIGGER node_changed; UPDATE node SET content = 'behind its back' WHERE id = 7", "index"),
    ):
        copy = tmp_path / "copy.db"
        copy.write_bytes(path.read_bytes())
        connection = sqlite3.connect(copy)
        connection.executescript(sql)
        connection.close()
        with ConversationStore(copy) as store:
            assert any(problem in line for line in store.check()), sql
        for file in tmp_path.glob("copy.db*"):
            file.unlink()


def test_a_file_from_before_tool_calls_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(conversation_db, "MIGRATIONS", conversation_db.MIGRATIONS[:2])
        conversation_db.Database(tmp_path / "old.db").close()
    with closing(sqlite3.connect(tmp_path / "old.db")) as db, db:
        db.execute("INSERT INTO conversation VALUES (1, 'x', 'T', '', '', '', 0, 0, 1, NULL, '')")
        db.execute("INSERT INTO node VALUES (1, 1, NULL, 'user', NULL, 'hello', '', '[]', 'complete', '', 0, '', '{}')")
    with ConversationStore(tmp_path / "new.db") as store:
        assert rescue(tmp_path / "old.db", store).n_messages == 1
    with ConversationStore(tmp_path / "old.db") as store:  # which also migrates it
        assert [(node.content, node.tool_calls, node.reasoning) for node in store.path("x", 1)] == [("hello", (), "")]
