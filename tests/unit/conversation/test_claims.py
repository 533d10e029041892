"""One process answers a conversation at a time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from edge.conversation import ConversationStore
from edge.conversation.claims import claim
from edge.errors import UsageError


def test_a_claim_is_exclusive_until_it_is_released(tmp_path: Path) -> None:
    database = tmp_path / "c.db"
    first, other = claim(database, "one"), claim(database, "two")
    assert first is not None and other is not None
    assert claim(database, "one") is None
    first()
    again = claim(database, "one")
    assert again is not None and claim(database, "one") is None
    again()
    other()
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_a_process_that_dies_gives_up_its_claim(tmp_path: Path) -> None:
    with ConversationStore(tmp_path / "c.db") as store:
        id = store.create().id
        ready, write = os.pipe()
        child = os.fork()
        if child == 0:
            claim(tmp_path / "c.db", id)
            os.write(write, b"x")
            signal.pause()
        os.read(ready, 1)
        with pytest.raises(UsageError, match="answered in another window"):
            store.claim(id)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        store.claim(id)()
        os.close(ready)
        os.close(write)


def test_where_nothing_can_be_locked_everybody_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int) -> bool:
        raise OSError("no locks")

    monkeypatch.setattr("edge.conversation.claims.try_lock", no_locks)
    assert claim(tmp_path / "c.db", "one") is not None and claim(tmp_path / "c.db", "one") is not None
    (tmp_path / "file").write_text("")
    assert claim(tmp_path / "file" / "c.db", "one") is not None
    with ConversationStore(None) as store:
        store.claim("one")
        store.claim("one")
