"""The file under the store: versions, other people's databases, damage, locks, and who is still writing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import psutil  # noqa: F401 -- before a test changes sys.platform
import pytest

from edge import database
from edge.conversation import ConversationStore
from edge.conversation import db as conversation_db
from edge.conversation import tree as conversation_tree
from edge.conversation.db import MIGRATIONS, is_alive, process_mark
from edge.errors import StorageError
from edge.types import Message

VERSION_2 = """
CREATE TABLE mood (node INTEGER PRIMARY KEY REFERENCES node(id), face TEXT NOT NULL)

INSERT INTO mood SELECT id, ':-)' FROM node
"""


def make(path: Path, text: str = "hello") -> str:
    with ConversationStore(path) as store:
        info = store.create()
        store.append(info.id, Message("user", text), parent=None)
        return info.id


def raw(path: Path, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute(sql).fetchall()
        connection.commit()
        return rows
    finally:
        connection.close()


def test_the_settings_that_keep_data_safe_are_on(tmp_path: Path) -> None:
    with ConversationStore(tmp_path / "c.db") as store:
        writer, reader = store._db._writer, store._db._reader
        assert writer is not None and reader is not None
        expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1, "busy_timeout": 10_000}
        for name, value in expected.items():
            assert writer.execute(f"PRAGMA {name}").fetchone()[0] == value, name
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM node")


def test_an_older_file_is_migrated_and_keeps_its_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    id = make(tmp_path / "c.db")
    assert raw(tmp_path / "c.db", "PRAGMA user_version") == [(len(MIGRATIONS),)]
    monkeypatch.setattr(conversation_db, "MIGRATIONS", (*MIGRATIONS, VERSION_2))
    with ConversationStore(tmp_path / "c.db") as store:
        assert [node.content for node in store.path(id)] == ["hello"]
        assert store.check() == []
    assert raw(tmp_path / "c.db", "SELECT face FROM mood") == [(":-)",)]
    assert raw(tmp_path / "c.db", "PRAGMA user_version") == [(len(MIGRATIONS) + 1,)]


def test_a_migration_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    id = make(tmp_path / "c.db")
    with monkeypatch.context() as patch:
        patch.setattr(conversation_db, "MIGRATIONS", (*MIGRATIONS, VERSION_2 + "\n\nINSERT INTO nowhere VALUES (1)"))
        with pytest.raises(StorageError, match="no such table: nowhere"):
            ConversationStore(tmp_path / "c.db")
    assert raw(tmp_path / "c.db", "SELECT name FROM sqlite_master WHERE name = 'mood'") == []
    with ConversationStore(tmp_path / "c.db") as store:
        assert [node.content for node in store.path(id)] == ["hello"]


def test_a_newer_file_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    make(path)
    raw(path, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    with pytest.raises(StorageError, match="newer version of edge") as caught:
        ConversationStore(path)
    assert "pip install --upgrade" in caught.value.hint
    assert path.read_bytes() == before


def test_the_database_of_another_program_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    raw(path, "CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(StorageError, match="another program"):
        ConversationStore(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["c.db"]


def test_a_file_that_is_not_a_database_stays_and_the_error_has_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "my data" / "c.db"
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 500)
    with pytest.raises(StorageError, match="not a conversation database") as caught:
        ConversationStore(path)
    assert f"mv '{path}' '{path}.damaged'" in caught.value.hint
    assert path.read_bytes() == b"not a database" * 500


def test_damage_is_reported_when_it_is_met(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    with ConversationStore(path) as store:
        info = store.create()
        for place in range(50):
            store.append(info.id, Message("user", f"number {place} " * 200), parent=None)
    data = bytearray(path.read_bytes())
    page = 4096
    for start in range(page, len(data), page):  # all but the first page, which holds the schema
        data[start : start + page] = b"\xa5" * page
    path.write_bytes(data)
    with pytest.raises(StorageError, match="damaged") as caught, ConversationStore(path) as store:
        store.list()
    assert "edge.conversation.rescue" in caught.value.hint
    assert path.stat().st_size == len(data)


@pytest.mark.parametrize("name", ["c.db", "below/c.db", "below/further/c.db"])
def test_a_file_where_a_directory_should_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "below").write_text("in the way")
    if name == "c.db":
        (tmp_path / name).mkdir()
    with pytest.raises(StorageError) as caught:
        ConversationStore(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message
    assert caught.value.hint
    assert (tmp_path / "below").read_text() == "in the way"


def test_a_lock_that_stays_is_an_error_and_one_that_goes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    id = make(tmp_path / "c.db")
    message = Message("user", "x")
    other = sqlite3.connect(tmp_path / "c.db", isolation_level=None, check_same_thread=False)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
            impatient = ConversationStore(tmp_path / "c.db")
        with impatient, ConversationStore(tmp_path / "c.db") as patient:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError, match="locked") as caught:
                impatient.append(id, message, parent=None)
            assert "Close other" in caught.value.hint
            assert len(impatient.path(id)) == 1  # reading goes on
            timer = threading.Timer(0.2, other.execute, ["COMMIT"])
            timer.start()
            patient.append(id, message, parent=None)
            timer.join()
            impatient.append(id, message, parent=None)
            assert patient.get(id).n_messages == 3
    finally:
        other.close()


def test_opening_waits_for_a_reader_of_a_file_that_has_no_log_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself gives up at once here, whatever the timeout is."""
    path = tmp_path / "c.db"
    id = make(path)
    raw(path, "PRAGMA journal_mode = DELETE")
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        other.execute("BEGIN")
        other.execute("SELECT * FROM node").fetchall()
        with monkeypatch.context() as patch:
            patch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
            with pytest.raises(StorageError, match="locked"):
                ConversationStore(path)
        timer = threading.Timer(0.1, other.execute, ["COMMIT"])
        timer.start()
        with ConversationStore(path) as store:
            timer.join()
            assert [node.content for node in store.path(id)] == ["hello"]
            assert raw(path, "PRAGMA journal_mode") == [("wal",)]
    finally:
        other.close()


class NoCheckpoint:
    """A connection on a disk that fails when the log is to be emptied."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __getattr__(self, name: str) -> object:
        return getattr(self.connection, name)

    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
        if "wal_checkpoint" in sql:
            raise sqlite3.OperationalError("disk I/O error")
        return self.connection.execute(sql, *values)


def test_a_log_that_cannot_be_emptied_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    id = make(tmp_path / "c.db")
    with ConversationStore(tmp_path / "c.db") as store:
        writer = store._db._writer
        assert writer is not None
        with monkeypatch.context() as patch:
            patch.setattr(store._db, "_writer", NoCheckpoint(writer))
            with pytest.raises(StorageError, match=r"It was deleted, but .* still has traces"):
                store.delete(id)
        assert store.list() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_store_is_not_used_across_a_fork(tmp_path: Path) -> None:
    code = """
import os, sys
from edge.conversation import ConversationStore
from edge.errors import StorageError
store = ConversationStore(sys.argv[1])
child = os.fork()
if child == 0:
    try:
        store.list()
    except StorageError as error:
        os._exit(7 if "fork" in error.message else 8)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "c.db")], timeout=60).returncode == 7


CHILD = """
import sys
from edge.conversation import ConversationStore
from edge.types import Message
store = ConversationStore(sys.argv[1])
info = store.create(id="streaming")
store.append(info.id, Message("assistant", "half a re"), parent=None, status="partial")
print("saved", flush=True)
sys.stdin.read()
"""


def test_what_a_dead_process_left_half_written_is_shown_as_stopped(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    command = [sys.executable, "-c", CHILD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child, ConversationStore(path) as store:
        try:
            assert child.stdout is not None and child.stdout.readline() == b"saved\n"
            mine = store.append("streaming", Message("assistant", "mine"), parent=None, status="partial")
            (other,) = [node for node in store.siblings(mine.id) if node.id != mine.id]
            assert other.status == "partial"  # its process still writes
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but nobody has fetched its exit code
            assert store.node(other.id).status == "stopped"
            child.wait()
            assert store.node(other.id).status == "stopped"
            assert store.node(other.id).content == "half a re"
            assert store.node(mine.id).status == "partial"
        finally:
            child.kill()
    with ConversationStore(path) as store:
        assert {node.status for node in store.siblings(mine.id)} == {"partial", "stopped"}


@pytest.mark.parametrize("platform", [sys.platform, "darwin"])
def test_a_mark_lives_as_long_as_its_process(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)  # elsewhere than on Linux, psutil is asked
    conversation_db._own_mark.cache_clear()
    try:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            mark = conversation_db._mark(child.pid)
            assert mark is not None
            assert mark != process_mark()
            assert is_alive(mark) is True
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert is_alive(mark) is False  # a zombie writes nothing
        assert is_alive(mark) is False
    finally:
        monkeypatch.undo()
        conversation_db._own_mark.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a mark names neither boot nor container")
def test_marks_of_processes() -> None:
    own = process_mark()
    assert is_alive(own) is True
    boot, namespace, pid, start = own.split(" ")
    assert is_alive(f"{boot} {namespace} {pid} {start}0") is False  # another process that got the same number
    assert is_alive(f"other {namespace} {pid} {start}") is False  # before the machine was started again
    assert is_alive(f"{boot} other {pid} {start}") is None  # in another container
    assert is_alive("garbage") is None


def test_a_process_that_cannot_be_seen_is_believed_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ConversationStore(tmp_path / "c.db") as store:
        info = store.create()
        node = store.append(info.id, Message("assistant", "x"), parent=None, status="partial")
        monkeypatch.setattr(conversation_tree, "is_alive", lambda mark: None)
        assert store.node(node.id).status == "partial"
        monkeypatch.setattr("time.time", lambda: node.created + 25 * 3600)
        assert store.node(node.id).status == "stopped"


WRITER = """
import sys, threading
from edge.conversation import ConversationStore
from edge.types import Message
path, name = sys.argv[1:]
def write(store, thread):
    parent = None
    for place in range(25):
        parent = store.append("shared", Message("user", f"{name} {thread} {place}"), parent=parent).id
        if place % 5 == 0:
            reply = store.append("shared", Message("assistant", ""), parent=parent, status="partial")
            store.update(reply.id, content="reply", status="complete")
            store.list(); store.search(name)
with ConversationStore(path) as store:
    print("open", flush=True)
    sys.stdin.readline()
    errors = []
    def guarded(thread):
        try:
            write(store, thread)
        except BaseException as error:
            errors.append(error)
    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    if errors:
        raise errors[0]
"""


def test_two_processes_with_three_threads_each_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "c.db"  # both make it, too
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in ("one", "two")
    ]
    try:
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline() != b"open\n":
                pytest.fail(child.communicate()[1].decode())
        with ConversationStore(path) as store:
            store.create(id="shared")
            for child in children:
                assert child.stdin is not None
                child.stdin.write(b"go\n")
                child.stdin.flush()
            results = [child.communicate(timeout=120) for child in children]
            assert [child.returncode for child in children] == [0, 0], results
            assert store.get("shared").n_messages == 2 * 3 * (25 + 5)
            ends = [node for node in store.search("24") if node.node_id is not None]
            assert len(ends) == 6
            for hit in ends:
                texts = [node.content for node in store.path("shared", hit.node_id)]
                name, thread, _ = texts[0].split()
                assert texts == [f"{name} {thread} {place}" for place in range(25)]
            assert store.check() == []
    finally:
        for child in children:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    stream.close()


def test_many_threads_share_one_store(tmp_path: Path) -> None:
    with ConversationStore(tmp_path / "c.db") as store:
        info = store.create()
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for place in range(20):
                    node = store.append(info.id, Message("user", f"{number}-{place}"), parent=None)
                    assert store.node(node.id).content == f"{number}-{place}"
                    assert any(hit.node_id == node.id for hit in store.search(f'"{number}-{place}"'))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert store.get(info.id).n_messages == 120
        assert store.check() == []
