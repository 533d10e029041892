"""A disk that does not answer and processes that are stopped: nobody waits for long, and the store comes back."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edge.assistant import Assistant, DiskCache
from edge.backends.fake import FakeBackend
from edge.files import lock_file
from edge.kv.blocks import fingerprint
from edge.kv.disk import Disk
from edge.kv.files import StoreFiles
from edge.kv.index import Index
from edge.kv.store import BlockStore, StoreOptions
from edge.types import Sampling

MODEL = fingerprint({"weights": "a"})
LONG_S = 3.0
"""Longer than anything here may wait on a busy machine."""


class Disc:
    """Lets calls of the disk wait until it is told to answer."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.n_asked = 0

    def slow(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            self.n_asked += not self.answers.is_set()
            self.answers.wait(60.0)
            return real(*args, **options)

        return call


@pytest.fixture
def disc() -> Iterator[Disc]:
    disc = Disc()
    yield disc
    disc.answers.set()


def open_store(directory: Path, **options: object) -> BlockStore:
    values = {"budget_bytes": 1 << 24, "min_free_bytes": 0, "sync": False, "retry_s": 0.0, "read_timeout_s": 0.2} | options
    return BlockStore(directory, StoreOptions(**values))  # type: ignore[arg-type]


def put(store: BlockStore, tokens: list[int]) -> bytes | None:
    return store.put(None, tokens, bytes(100), fingerprint=MODEL, namespace="", start=0)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("where", ["load", "read", "lease", "drop"])
def test_a_turn_does_not_wait_for_a_disk_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disc: Disc, where: str
) -> None:
    with open_store(tmp_path, retry_s=0.3) as store:
        put(store, [1, 2])
        assert store.flush(60.0)
        match = store.match(MODEL, "", [1, 2])
        owner = {"load": StoreFiles, "read": Index, "lease": Disk, "drop": Disk}[where]
        if where == "drop":
            next(tmp_path.glob("blocks/*/*")).write_bytes(b"damage")
        monkeypatch.setattr(owner, where, disc.slow(getattr(owner, where)))
        disc.answers.clear()
        began = time.monotonic()
        for _ in range(50):  # after the first time nobody asks it for a while
            with store.lease(match):
                assert store.read(match.blocks[0]) is None
            if where == "read":
                assert not store.match(MODEL, "", [1, 2]).blocks and not store.has(b"x" * 32)
        assert time.monotonic() - began < LONG_S and disc.n_asked <= 2
        assert store.problem == "the disk does not answer"
        time.sleep(0.35)
        assert store.read(match.blocks[0]) is None and disc.n_asked <= 2, "it has not even answered the first time"
        disc.answers.set()
        if where == "drop":
            until(lambda: not store.match(MODEL, "", [1, 2]).blocks)
        else:
            until(lambda: store.read(match.blocks[0]) is not None)
        put(store, [3, 4])
        until(lambda: store.flush(60.0) and store.problem is None)
        if where == "lease":  # the late one holds nothing
            disk = store._background.disk
            assert disk is not None
            with disk.index.write() as change:
                assert change.leased(disk.files.is_live) == set() and not store._background.leased


def test_a_slow_disk_is_left_alone_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    with open_store(tmp_path, read_timeout_s=0.05, retry_s=60.0, timer=lambda: now[0]) as store:
        put(store, [1, 2])
        assert store.flush(60.0)
        match = store.match(MODEL, "", [1, 2])
        load, n_asked = StoreFiles.load, []

        def slowly(files: StoreFiles, key: bytes) -> bytes:
            n_asked.append(1)
            time.sleep(0.2)
            return load(files, key)

        monkeypatch.setattr(StoreFiles, "load", slowly)
        for _ in range(5):
            assert store.read(match.blocks[0]) is None
            time.sleep(0.1)
        assert len(n_asked) == 1
        monkeypatch.setattr(StoreFiles, "load", load)
        now[0] = 61.0
        assert store.read(match.blocks[0]) is not None


def test_zero_waits_as_long_as_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path, read_timeout_s=0.0) as store:
        put(store, [1, 2])
        assert store.flush(60.0)
        load = StoreFiles.load
        monkeypatch.setattr(StoreFiles, "load", lambda files, key: (time.sleep(0.5), load(files, key))[1])
        assert store.read(store.match(MODEL, "", [1, 2]).blocks[0]) is not None


def test_the_prompt_is_computed_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disc: Disc) -> None:
    """As a chat sees it: same text, a little later, and from disk again once that answers."""
    greedy = Sampling(temperature=0, max_tokens=20)
    text = "A long question about nothing in particular, which has many words. " * 5

    def ask() -> tuple[str, int]:
        with Assistant(FakeBackend(), disk=DiskCache(open_store(tmp_path), MODEL)) as ai:
            ai.flush_cache(0.1)
            reply = ai.generate(text, greedy)
            answer = reply.wait()
            if disc.answers.is_set():
                ai.flush_cache()
            return answer, reply.usage.n_restored

    first = ask()
    assert ask()[1] > 100
    monkeypatch.setattr(StoreFiles, "load", disc.slow(StoreFiles.load))
    disc.answers.clear()
    began = time.monotonic()
    assert ask() == (first[0], 0) and time.monotonic() - began < 2 * LONG_S
    disc.answers.set()
    assert ask()[1] > 100


@pytest.mark.parametrize("what", ["a stopped process", "the disk"])
def test_nobody_waits_for_the_store_to_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disc: Disc, what: str
) -> None:
    with open_store(tmp_path) as store:
        put(store, [1, 2])
    monkeypatch.setattr("edge.kv.index.Index.__init__", disc.slow(Index.__init__))
    lock = ExitStack()
    if what == "the disk":
        disc.answers.clear()
    else:
        lock.enter_context(lock_file(tmp_path / "opening.lock"))
    began = time.monotonic()
    store = open_store(tmp_path, open_wait_s=0.1)
    assert store.problem is not None and "still being opened" in store.problem
    assert not store.match(MODEL, "", [1, 2]).blocks and put(store, [3, 4]) is None
    assert time.monotonic() - began < 1.0
    impatient = open_store(tmp_path, open_wait_s=0.1)
    impatient.close()
    assert time.monotonic() - began < LONG_S, "nor for it to be closed again"
    disc.answers.set()
    lock.close()
    assert store.stats().n_blocks == 1, "those who ask for something wait for it"
    assert store.match(MODEL, "", [1, 2]).n_tokens == 2 and store.problem is None
    store.close()
    until(lambda: not list((tmp_path / "live").iterdir()))


def test_closing_does_not_wait_for_a_process_that_holds_the_lock(tmp_path: Path) -> None:
    other, store = open_store(tmp_path), open_store(tmp_path)
    disk = other._background.disk
    assert disk is not None
    with disk.index.write():
        put(store, [1, 2])
        time.sleep(0.2)
        began = time.monotonic()
        store.close()
        assert time.monotonic() - began < LONG_S
    with open_store(tmp_path) as store:
        assert store.flush(60.0) and store.verify().damaged == ()
    other.close()


def test_a_file_that_could_not_be_taken_back_is_found_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk becomes read-only between the rename and the end of the transaction."""
    with open_store(tmp_path) as store:
        put(store, [1, 2])
        assert store.flush(60.0)
        publish, unlink = StoreFiles.publish, Path.unlink

        def last(files: StoreFiles, draft: Path, key: bytes) -> None:
            publish(files, draft, key)
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        def refuse(path: Path, missing_ok: bool = False) -> None:
            if path.parent.parent.name == "blocks":
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(StoreFiles, "publish", last)
        monkeypatch.setattr(Path, "unlink", refuse)
        monkeypatch.setattr("edge.kv.opening.Disk", None)  # nor is it opened again
        monkeypatch.setattr("edge.kv.background.scan", lambda *_: None)
        put(store, [3, 4])
        assert store.flush(60.0) and store.problem == "the disk is read-only"
        assert len(list(tmp_path.glob("blocks/*/*"))) == 2
    monkeypatch.undo()
    with open_store(tmp_path) as store:
        assert store.flush(60.0) and store.stats().n_blocks == 2
        assert store.match(MODEL, "", [3, 4]).n_tokens == 2
    with open_store(tmp_path) as store:
        disk = store._background.disk
        assert disk is not None and not disk.needs_scan
