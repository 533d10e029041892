"""A forked process never waits for a thread of its parent. Real forks, while that thread is inside."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edge import database
from edge.conversation import db
from edge.forks import ProcessLock, lazy_property
from edge.formats import artifact
from edge.formats.artifact import Artifact

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


class Inside:
    """Holds up the first thread that calls it, until `end`; in a child it returns at once."""

    def __init__(self) -> None:
        self._parent, self._has_begun, self._may_end = os.getpid(), threading.Event(), threading.Event()

    def __call__(self) -> None:
        if os.getpid() == self._parent:
            self._has_begun.set()
            self._may_end.wait(60.0)

    def fork_meanwhile(self, work: Callable[[], object]) -> int:
        """Run `work` in a thread, and in a child that is forked while the thread is inside; return the child's status."""
        thread = threading.Thread(target=work)
        thread.start()
        assert self._has_begun.wait(60.0)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # ends it where it waits
            try:
                work()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        self._may_end.set()
        thread.join()
        return status


def test_a_property_is_computed_in_a_child_that_was_forked_meanwhile() -> None:
    inside = Inside()

    class Thing:
        @lazy_property
        def value(self) -> list[int]:
            """Some docs."""
            inside()
            return [1]

    assert inside.fork_meanwhile(lambda: Thing().value) == 0
    thing = Thing()
    assert thing.value == [1]
    assert thing.value is thing.value
    assert Thing.value.__doc__ == "Some docs."


def test_a_child_looks_at_a_model_while_its_parent_did(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Inside()
    facts = artifact.ModelFacts
    monkeypatch.setattr(artifact, "ModelFacts", lambda **values: (inside(), facts(**values))[1])
    assert inside.fork_meanwhile(lambda: Artifact(Path("x"), "gguf", "x", 5).facts) == 0


def test_a_lock_is_free_in_a_child() -> None:
    inside, lock = Inside(), ProcessLock()

    def work() -> None:
        with lock:
            inside()

    assert inside.fork_meanwhile(work) == 0
    with lock:
        pass


def test_a_child_opens_conversations_while_its_parent_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, close = Inside(), os.close

    def slow_close(descriptor: int) -> None:
        if database._creation_lock._lock.locked():
            inside()
        close(descriptor)

    monkeypatch.setattr(os, "close", slow_close)

    def work() -> None:
        db.Database(tmp_path / f"{os.getpid()}.db").close()

    assert inside.fork_meanwhile(work) == 0
    assert sqlite3.connect(tmp_path / f"{os.getpid()}.db").close() is None
