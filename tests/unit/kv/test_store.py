"""The block store as its callers see it."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import edge.kv.disk as disk_module
from edge.errors import StorageError, UsageError
from edge.files import lock_file
from edge.kv.blocks import fingerprint, pack_tokens
from edge.kv.disk import Disk
from edge.kv.files import StoreFiles
from edge.kv.maintenance import scan
from edge.kv.store import BlockRef, BlockStore, Match, StoreOptions

MODEL = fingerprint({"weights": "a"})
OTHER = fingerprint({"weights": "b"})
KIB4 = 4096
MakeStore = Callable[..., BlockStore]


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    opened: list[BlockStore] = []

    def make(name: str = "kv", **options: object) -> BlockStore:
        values = {"budget_bytes": 1 << 24, "min_free_bytes": 0, "sync": False, "retry_s": 0.0} | options
        opened.append(BlockStore(tmp_path / name, StoreOptions(**values)))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for store in opened:
        store.close()


class Timer:
    """A timer that tests move on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def put_row(
    store: BlockStore,
    tokens: list[int],
    *,
    cut: int = 4,
    namespace: str = "ns",
    model: bytes = MODEL,
    owner: str | None = None,
    prefill_ms: float = 0.0,
    payload: bytes = b"",
) -> list[bytes]:
    """Store a token sequence, split into blocks, and wait for it."""
    keys: list[bytes] = []
    for start in range(0, len(tokens), cut):
        key = store.put(
            keys[-1] if keys else None,
            tokens[start : start + cut],
            payload or b"kv of %r" % tokens[: start + cut],
            fingerprint=model,
            namespace=namespace,
            start=start,
            owner=owner,
            prefill_ms=prefill_ms,
        )
        assert key is not None
        keys.append(key)
    assert store.flush(60.0)
    return keys


def restored(store: BlockStore, tokens: list[int], namespace: str = "ns", model: bytes = MODEL) -> list[bytes | None]:
    payloads = [store.read(ref) for ref in store.match(model, namespace, tokens).blocks]
    return [None if payload is None else bytes(payload) for payload in payloads]


def path_of(store: BlockStore, key: bytes) -> Path:
    return store.directory / "blocks" / key.hex()[:2] / key.hex()[2:]


def index_of(store: BlockStore) -> Path:
    return sorted(store.directory.glob("index-*.sqlite"))[-1]


def change_index(store: BlockStore, sql: str, *values: object) -> None:
    """Change the index from outside, behind the store's back."""
    with closing(sqlite3.connect(index_of(store), isolation_level=None)) as connection:
        connection.execute(sql, values)


def is_stored(store: BlockStore, key: bytes) -> bool:
    return key.hex() in {info.key for info in store.ls()}


def test_what_is_put_is_found_by_its_tokens_and_read_back(make_store: MakeStore) -> None:
    store = make_store()
    keys = put_row(store, list(range(10)), prefill_ms=8.0)
    match = store.match(MODEL, "ns", [*range(9), 77])
    assert (match.n_tokens, [ref.key for ref in match.blocks]) == (9, keys)
    assert [(ref.start, ref.n_tokens, ref.n_used) for ref in match.blocks] == [(0, 4, 4), (4, 4, 4), (8, 2, 1)]
    assert match.prefill_ms == pytest.approx(8.0 + 8.0 + 4.0)
    assert restored(store, list(range(10))) == [b"kv of %r" % list(range(end)) for end in (4, 8, 10)]


def test_models_and_namespaces_do_not_see_each_other(make_store: MakeStore) -> None:
    store = make_store()
    put_row(store, [1, 2, 3])
    assert store.match(MODEL, "ns", [1, 2, 3]).n_tokens == 3
    assert store.match(OTHER, "ns", [1, 2, 3]) == Match()
    assert store.match(MODEL, "other", [1, 2, 3]) == Match()
    put_row(store, [1, 2, 3], namespace="other", payload=b"theirs")
    assert restored(store, [1, 2, 3], "other") == [b"theirs"]
    assert restored(store, [1, 2, 3]) == [b"kv of [1, 2, 3]"]


def test_whole_blocks_only_for_engines_that_cannot_cut(make_store: MakeStore) -> None:
    store = make_store()
    put_row(store, list(range(8)))
    assert store.match(MODEL, "ns", [*range(6)], partial=False).n_tokens == 4
    assert store.match(MODEL, "ns", [*range(3)], partial=False) == Match()


def test_another_process_and_a_later_one_find_it(make_store: MakeStore) -> None:
    first, second = make_store(), make_store()
    put_row(first, [1, 2, 3])
    assert restored(second, [1, 2, 3]) == [b"kv of [1, 2, 3]"]
    first.close()
    second.close()
    assert restored(make_store(), [1, 2, 3]) == [b"kv of [1, 2, 3]"]


def test_the_same_block_is_written_once(make_store: MakeStore) -> None:
    store = make_store()
    (key,) = put_row(store, [1, 2], owner="ann")
    before = path_of(store, key).stat()
    assert put_row(store, [1, 2], owner="bob") == [key]
    assert path_of(store, key).stat().st_ino == before.st_ino
    assert (store.stats().n_written, store.stats().n_known) == (1, 1)
    assert store.ls()[0].owners == ("ann", "bob")


def test_a_block_without_its_parent_is_not_stored(make_store: MakeStore) -> None:
    store = make_store()
    assert store.put(None, [1], b"x", fingerprint=MODEL, namespace="ns", start=5) is None
    key = store.put(b"k" * 32, [1], b"x", fingerprint=MODEL, namespace="ns", start=5)
    assert key is not None and store.flush(60.0)
    (parent,) = put_row(store, [1, 2, 3])
    store.put(parent, [4], b"x", fingerprint=MODEL, namespace="ns", start=2)  # the parent ends at 3
    assert store.flush(60.0)
    assert [info.key for info in store.ls()] == [parent.hex()]
    assert store.stats().n_dropped == 3


def test_a_full_queue_drops_and_does_not_wait(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(queue_bytes=10_000)
    put_row(store, [0])
    may_go_on, has_begun = threading.Event(), threading.Event()
    write = StoreFiles.write

    def slow_write(files: StoreFiles, pieces: list[bytes]) -> Path:
        has_begun.set()
        assert may_go_on.wait(30)
        return write(files, pieces)

    monkeypatch.setattr(StoreFiles, "write", slow_write)
    keys = []
    for token in range(1, 6):
        keys.append(store.put(None, [token], bytes(4000), fingerprint=MODEL, namespace="ns", start=0))
        if token == 1:
            assert has_begun.wait(30)
    assert [key is not None for key in keys] == [True, True, False, False, False] or keys[3:] == [None, None]
    assert store.stats().n_queued == 1
    may_go_on.set()
    assert store.flush(60.0)
    assert store.stats().n_blocks == 1 + sum(key is not None for key in keys)


def test_the_payload_may_be_changed_after_put_unless_it_cannot(make_store: MakeStore) -> None:
    store = make_store()
    buffer = bytearray(b"before")
    store.put(None, [1], buffer, fingerprint=MODEL, namespace="ns", start=0)  # type: ignore[arg-type]
    buffer[:] = b"AFTER!"
    assert store.flush(60.0)
    assert restored(store, [1]) == [b"before"]


def test_bad_arguments_are_refused(make_store: MakeStore) -> None:
    store = make_store()
    good = {"parent": None, "tokens": [1], "payload": b"", "fingerprint": MODEL, "namespace": "ns", "start": 0}
    bad: list[dict[str, object]] = [
        {"tokens": []}, {"start": -1}, {"fingerprint": b"short"}, {"namespace": "n" * 256}, {"owner": "o" * 256},
        {"origin": "guess"}, {"prefill_ms": float("nan")}, {"prefill_ms": -1.0}, {"prefill_ms": float("inf")},
        {"tokens": [-1]}, {"start": 2**32 - 1},
    ]  # fmt: skip
    for change in bad:
        with pytest.raises(UsageError):
            store.put(**(good | change))  # type: ignore[arg-type]
    assert store.flush(60.0) and store.ls() == []


# Room


def test_the_budget_is_kept_and_what_was_used_longest_ago_goes_first(make_store: MakeStore) -> None:
    store = make_store(budget_bytes=4 * KIB4)
    keys = [put_row(store, [token])[0] for token in range(4)]
    store.touch([keys[0]])
    assert store.flush(60.0)
    put_row(store, [10])
    assert [is_stored(store, key) for key in keys] == [True, False, True, True]
    assert store.stats().size_bytes == 4 * KIB4
    assert not path_of(store, keys[1]).exists()


def test_what_saves_more_per_byte_is_kept_longer(make_store: MakeStore) -> None:
    store = make_store(budget_bytes=8 * KIB4)
    dear = put_row(store, [0], prefill_ms=400.0)[0]
    cheap = [put_row(store, [token], prefill_ms=50.0)[0] for token in range(1, 8)]
    put_row(store, [20], prefill_ms=50.0)
    put_row(store, [21], prefill_ms=50.0)
    assert is_stored(store, dear) and [is_stored(store, key) for key in cheap[:2]] == [False, False]
    for token in range(30, 45):  # cost does not keep what nobody uses for ever
        put_row(store, [token], prefill_ms=50.0)
    assert not is_stored(store, dear)


def test_a_parent_stays_as_long_as_something_follows_it(make_store: MakeStore) -> None:
    store = make_store(budget_bytes=4 * KIB4)
    chain = put_row(store, list(range(12)))
    store.touch(chain[:1])
    for token in range(100, 103):
        put_row(store, [token])
    assert [is_stored(store, key) for key in chain] == [True, False, False]


def test_a_sequence_longer_than_the_budget_keeps_its_prefix(make_store: MakeStore) -> None:
    store = make_store(budget_bytes=4 * KIB4)
    keys = put_row(store, list(range(40)))
    assert [is_stored(store, key) for key in keys] == [True] * 4 + [False] * 6
    assert store.problem is None


def test_a_block_larger_than_the_budget_evicts_nothing(make_store: MakeStore) -> None:
    store = make_store(budget_bytes=4 * KIB4)
    keys = put_row(store, list(range(8)))
    put_row(store, [99], payload=bytes(5 * KIB4))
    assert [is_stored(store, key) for key in keys] == [True, True] and store.stats().n_blocks == 2


def test_pinned_blocks_and_what_they_hang_on_are_not_evicted(make_store: MakeStore) -> None:
    store = make_store(budget_bytes=4 * KIB4)
    system = put_row(store, list(range(8)))
    store.pin(system[-1])
    for token in range(100, 110):
        put_row(store, [token])
    assert [is_stored(store, key) for key in system] == [True, True]
    store.unpin(system[-1])
    for token in range(110, 114):
        put_row(store, [token])
    assert [is_stored(store, key) for key in system] == [False, False]


def test_a_pin_may_be_asked_for_before_the_block_is_written(make_store: MakeStore) -> None:
    store = make_store(budget_bytes=2 * KIB4)
    key = store.put(None, [1], b"x", fingerprint=MODEL, namespace="ns", start=0)
    assert key is not None
    store.pin(key)
    for token in range(2, 9):
        put_row(store, [token])
    assert is_stored(store, key)


def test_blocks_in_use_are_not_evicted_here_or_elsewhere(make_store: MakeStore) -> None:
    store, other = make_store(budget_bytes=4 * KIB4), make_store(budget_bytes=4 * KIB4)
    keys = put_row(store, list(range(8)))
    with store.lease(store.match(MODEL, "ns", list(range(8)))):
        for token in range(100, 106):
            put_row(other, [token])
        assert restored(store, list(range(8))) == [b"kv of [0, 1, 2, 3]", b"kv of [0, 1, 2, 3, 4, 5, 6, 7]"]
    assert store.flush(60.0)
    for token in range(106, 110):
        put_row(other, [token])
    assert not any(is_stored(store, key) for key in keys)


def test_leases_of_a_store_that_was_closed_hold_nothing(make_store: MakeStore) -> None:
    store, other = make_store(budget_bytes=4 * KIB4), make_store(budget_bytes=4 * KIB4)
    keys = put_row(store, list(range(8)))
    lease = store.lease(store.match(MODEL, "ns", list(range(8))))
    lease.__enter__()
    store.close()
    for token in range(100, 104):
        put_row(other, [token])
    assert not any(is_stored(other, key) for key in keys)
    lease.__exit__(None, None, None)


def test_a_turn_does_not_begin_the_log_of_the_index(make_store: MakeStore) -> None:
    """The first write to an empty log waits for the disk; then it has a new header."""

    def header_of_log() -> bytes:
        return index.with_name(index.name + "-wal").read_bytes()[:32]

    make_store().close()
    store = make_store(log_bytes=8000)  # what `warm_up` writes stays below it, a block does not
    (index,) = store.directory.glob("index-*.sqlite")
    assert header_of_log() == b""
    store.warm_up()
    assert store.flush()
    headers = [header_of_log()]
    keys = put_row(store, [1, 2, 3])  # the log is moved into the file, and begins again
    assert store.flush()
    headers.append(header_of_log())
    with store.lease(store.match(MODEL, "ns", [1, 2, 3])):
        headers.append(header_of_log())
    assert keys and len(headers[0]) == 32 and headers[1] != headers[0] and headers[2] == headers[1]


@pytest.mark.parametrize("what", ["missing", "directory", "fifo", "link"])
def test_what_cannot_be_fetched_early_is_found_out_when_it_is_read(make_store: MakeStore, what: str) -> None:
    store = make_store()
    (key,) = put_row(store, [1, 2, 3])
    path = path_of(store, key)
    match = store.match(MODEL, "ns", [1, 2, 3])
    path.unlink()
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)  # opening one waits for a writer, if it is let
    elif what == "link":
        path.symlink_to(store.directory / "nowhere")
    store.prefetch(match.blocks)
    assert store.read(match.blocks[0]) is None


def test_free_space_is_left_and_given_back(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [1000 * KIB4]
    monkeypatch.setattr(StoreFiles, "free_bytes", lambda files: free[0])
    store = make_store(min_free_bytes=100 * KIB4, retry_s=3600.0)
    keys = put_row(store, [0]) + put_row(store, [1]) + put_row(store, [2])
    free[0] = 99 * KIB4
    put_row(store, [3])  # two short: one for the floor, one for itself
    assert [is_stored(store, key) for key in keys] == [False, False, True] and store.problem is None
    free[0] = 10 * KIB4
    put_row(store, [4])
    assert store.ls() == []
    assert store.problem is not None and "of the disk are free" in store.problem
    assert store.put(None, [5], b"", fingerprint=MODEL, namespace="ns", start=0) is None


# Forgetting


def test_forgetting_deletes_what_only_that_owner_used(make_store: MakeStore) -> None:
    store = make_store()
    system = put_row(store, [1, 2, 3, 4], owner="ann")
    anns = put_row(store, [1, 2, 3, 4, 5, 6], owner="ann")[1:]
    bobs = put_row(store, [1, 2, 3, 4, 7, 8], owner="bob")[1:]
    nobodys = put_row(store, [1, 2, 3, 4, 5, 6, 9], cut=2)
    report = store.forget("ann")
    assert not is_stored(store, anns[0]) and is_stored(store, bobs[0]) and is_stored(store, nobodys[-1])
    assert is_stored(store, system[0])  # bob claimed it by putting it again
    assert (report.n_blocks, report.size_bytes) == (1, KIB4)
    store.forget("bob")
    assert {info.key for info in store.ls()} == {key.hex() for key in nobodys}


def test_a_block_that_others_follow_is_not_forgotten(make_store: MakeStore) -> None:
    store = make_store()
    (system,) = put_row(store, [1, 2, 3, 4], owner="ann")
    key = store.put(system, [5], b"x", fingerprint=MODEL, namespace="ns", start=4, owner="bob")
    assert key is not None and store.flush(60.0)
    assert store.forget("ann").n_blocks == 0
    assert store.forget("bob").n_blocks == 1
    assert is_stored(store, system)  # nobody owns it now: it goes when room is needed


def test_a_touch_can_claim(make_store: MakeStore) -> None:
    store = make_store()
    keys = put_row(store, list(range(8)), owner="ann")
    store.touch(keys, owner="bob")
    assert store.forget("ann").n_blocks == 0
    assert store.forget("bob").n_blocks == 2


def test_what_waits_to_be_written_is_forgotten_too(make_store: MakeStore) -> None:
    store = make_store()
    for token in range(50):
        store.put(None, [token], bytes(1000), fingerprint=MODEL, namespace="ns", start=0, owner="ann")
    store.forget("ann")
    assert store.flush(60.0) and store.ls() == []
    assert not list(store.directory.glob("blocks/*/*")) and not list(store.directory.glob("tmp/*"))


@pytest.mark.parametrize("encrypt", [False, True])
def test_nothing_of_a_forgotten_chat_is_left_in_the_directory(make_store: MakeStore, encrypt: bool) -> None:
    store = make_store(encrypt=encrypt)
    tokens = [0x41424344, 0x45464748]
    put_row(store, tokens, namespace="namespace-of-ann", owner="owner-ann", payload=b"payload-of-ann")
    store.forget("owner-ann")
    for path in store.directory.rglob("*"):
        if path.is_file() and not path.name.endswith("-shm"):
            content = path.read_bytes()
            for trace in (b"ABCDEFGH", b"owner-ann", b"namespace-of-ann", b"payload-of-ann"):
                assert trace not in content, (path, trace)


def test_clear_removes_everything(make_store: MakeStore) -> None:
    store = make_store()
    keys = put_row(store, list(range(12)), owner="ann")
    store.pin(keys[-1])
    assert store.clear() == 3
    assert store.ls() == [] and store.stats().size_bytes == 0 and not list(store.directory.glob("blocks/*/*"))
    put_row(store, [1])
    assert store.stats().n_blocks == 1


def test_clear_removes_children_before_their_parents(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a scan by another process in between would find blocks without a parent, and report them as missing."""
    store = make_store()
    for token in range(100, 130):
        keys = put_row(store, [token, *range(7)], cut=2)
    store.pin(keys[1])
    assert store.flush(60.0)
    parents = {bytes.fromhex(info.key): bytes.fromhex(info.parent) for info in store.ls()}
    remove, removed = StoreFiles.remove, list[bytes]()

    def note(files: StoreFiles, key: bytes) -> None:
        assert parents[key] not in removed
        removed.append(key)
        remove(files, key)

    monkeypatch.setattr(StoreFiles, "remove", note)
    assert store.clear() == len(removed) == 120 and store.ls() == []


# Privacy


@pytest.mark.parametrize("encrypt", [False, True])
def test_everything_is_private(make_store: MakeStore, encrypt: bool) -> None:
    old = os.umask(0)
    try:
        store = make_store(encrypt=encrypt)
        put_row(store, list(range(12)), owner="ann")
        with store.lease(store.match(MODEL, "ns", [1])):
            for path in [store.directory, *store.directory.rglob("*")]:
                assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    finally:
        os.umask(old)


def test_encrypted_blocks_show_nothing(make_store: MakeStore) -> None:
    store = make_store(encrypt=True)
    put_row(store, [0x41424344, 0x45464748, 0x494A4B4C], payload=b"values that are secret")
    assert restored(store, [0x41424344, 0x45464748, 0x494A4B4C]) == [b"values that are secret"]
    for path in store.directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for trace in (b"ABCD", b"DCBA", b"EFGH", b"HGFE", b"secret"):
                assert trace not in content, (path, trace)


def test_turning_encryption_on_removes_what_is_plain(make_store: MakeStore) -> None:
    store = make_store()
    put_row(store, list(range(8)))
    store.close()
    store = make_store(encrypt=True)
    assert store.flush(60.0) and store.ls() == [] and not list(store.directory.glob("blocks/*/*"))
    put_row(store, list(range(8)))
    store.close()
    store = make_store()
    assert store.flush(60.0) and store.match(MODEL, "ns", list(range(8))) == Match()
    assert [info.is_encrypted for info in store.ls()] == [True, True]


def test_a_secret_kept_elsewhere_is_not_in_the_directory(make_store: MakeStore) -> None:
    secret = bytes(range(100, 132))
    store = make_store(encrypt=True, secret=secret)
    put_row(store, [1, 2])
    store.close()
    assert not any(secret in path.read_bytes() for path in store.directory.rglob("*") if path.is_file())
    assert restored(make_store(encrypt=True, secret=secret), [1, 2]) == [b"kv of [1, 2]"]


@pytest.mark.parametrize("secret", [None, b"x" * 32])
def test_the_wrong_secret_turns_the_store_off_and_destroys_nothing(make_store: MakeStore, secret: bytes | None) -> None:
    store = make_store(secret=b"s" * 32)
    put_row(store, [1, 2])
    store.close()
    wrong = make_store(secret=secret, retry_s=3600.0)
    assert wrong.problem is not None and "another key" in wrong.problem
    assert wrong.match(MODEL, "ns", [1, 2]) == Match()
    with pytest.raises(StorageError, match="another key"):
        wrong.ls()
    wrong.close()
    assert restored(make_store(secret=b"s" * 32), [1, 2]) == [b"kv of [1, 2]"]


def test_a_lost_key_file_makes_a_new_store(make_store: MakeStore, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store()
    put_row(store, list(range(8)))
    store.close()
    for content in (None, b"", b"edgekv key own\r\n" + b"short"):
        key_file = store.directory / "key"
        if content is None:
            key_file.unlink()
        else:
            key_file.write_bytes(content)
        again = make_store()
        assert again.flush(60.0) and again.match(MODEL, "ns", list(range(8))) == Match()
        assert not list(store.directory.glob("blocks/*/*"))
        put_row(again, [1, 2, 3])
        assert restored(again, [1, 2, 3]) == [b"kv of [1, 2, 3]"]
        again.close()


# Damage


def test_damage_is_logged_once_and_what_hangs_below_goes_too(make_store: MakeStore, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store()
    keys = put_row(store, list(range(12)))
    beside = put_row(store, [0, 1, 2, 3, 50])
    match = store.match(MODEL, "ns", list(range(12)))
    damaged = path_of(store, keys[1])
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "edge.kv"):
        assert store.read(match.blocks[0]) is not None
        assert store.read(match.blocks[1]) is None
        assert store.read(match.blocks[1]) is None
        assert store.read(match.blocks[2]) is None
    assert len(caplog.records) == 1 and keys[1].hex()[:12] in caplog.text
    assert {info.key for info in store.ls()} == {keys[0].hex(), beside[1].hex()}
    assert store.match(MODEL, "ns", list(range(12))).n_tokens == 4
    assert not damaged.exists() and store.stats().n_lost == 1
    put_row(store, list(range(12)))
    assert store.match(MODEL, "ns", list(range(12))).n_tokens == 12


def test_an_evicted_block_is_no_damage(make_store: MakeStore, caplog: pytest.LogCaptureFixture) -> None:
    store, other = make_store(), make_store()
    put_row(store, [1, 2], owner="ann")
    match = store.match(MODEL, "ns", [1, 2])
    other.forget("ann")
    with caplog.at_level(logging.WARNING, "edge.kv"):
        assert store.read(match.blocks[0]) is None
    assert caplog.records == [] and store.stats().n_lost == 0


def test_what_the_index_says_is_checked_against_the_file(make_store: MakeStore) -> None:
    store = make_store()
    (key,) = put_row(store, [1, 2, 3])
    change_index(store, "UPDATE block SET path = ? WHERE key = ?", pack_tokens([1, 2, 9]), key)
    match = store.match(MODEL, "ns", [1, 2, 9])
    assert match.n_tokens == 3  # so the index says
    assert store.read(match.blocks[0]) is None
    assert not is_stored(store, key)


def test_verify_reads_every_block(make_store: MakeStore) -> None:
    store = make_store()
    keys = put_row(store, list(range(40))) + put_row(store, [100, 101])
    swapped = [path_of(store, key) for key in (keys[8], keys[10])]
    contents = [path.read_bytes() for path in swapped]
    for path, content in zip(swapped, reversed(contents), strict=True):
        path.write_bytes(content)
    seen: list[tuple[int, int]] = []
    report = store.verify(lambda done, total: seen.append((done, total)))
    assert {key for key, _ in report.damaged} == {keys[8].hex(), keys[10].hex()}
    assert report.n_checked == 11 and seen[-1] == (11, 11)
    assert {info.key for info in store.ls()} == {key.hex() for key in keys[:8]}
    assert store.verify().damaged == ()


def test_verify_passes_over_what_others_evict_meanwhile(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every point: before a block is read, after it, and so on."""
    load = StoreFiles.load
    for moment in ("before", "after"):
        store = make_store()
        keys = put_row(store, list(range(8)), owner="ann")
        other = make_store()

        def load_and_lose(files: StoreFiles, key: bytes, moment: str = moment, other: BlockStore = other) -> bytes:
            if moment == "before":
                other.clear()
            data = load(files, key)
            other.clear()
            return data

        with monkeypatch.context() as patch:
            patch.setattr(StoreFiles, "load", load_and_lose)
            report = store.verify()
        assert report.damaged == () and report.n_checked == len(keys)
        assert store.problem is None and store.stats().n_lost == 0


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM])
def test_running_out_of_files_or_memory_loses_no_block(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = make_store()
    put_row(store, list(range(8)))
    for path in store.directory.glob("index-*"):
        path.unlink()  # so that gc has to read headers

    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(StoreFiles, "load", fail)
        patch.setattr(StoreFiles, "head", fail)
        match = store.match(MODEL, "ns", list(range(8)))
        assert store.read(match.blocks[0]) is None and store.problem is None
        with pytest.raises(StorageError):
            store.verify()
        again = make_store()
        assert again.flush(60.0) and again.problem is not None
    again = make_store()
    assert again.flush(60.0)
    assert len(restored(again, list(range(8)))) == 2


def test_a_crash_is_known_until_the_store_was_put_in_order(make_store: MakeStore) -> None:
    """Also when whoever found it was closed, or killed, before that."""
    make_store().close()
    directory = make_store().directory
    for store in (make_store(), make_store()):
        assert store.flush(60.0)
        store.close()
    (directory / "live" / "of a killed process").touch()
    for _ in range(2):
        disk = open_disk(directory)
        assert disk.needs_scan
        disk.close()
    disk = open_disk(directory)
    scan(disk, lambda: True)  # ended early
    disk.close()
    disk = open_disk(directory)
    assert disk.needs_scan
    scan(disk)
    assert not disk.needs_scan
    disk.close()
    disk = open_disk(directory)
    assert not disk.needs_scan and [path.name for path in directory.glob("live/of*")] == []
    disk.close()


def open_disk(directory: Path) -> Disk:
    return Disk(directory, StoreOptions(budget_bytes=1 << 24, min_free_bytes=0, sync=False))


# Others are busy


@contextmanager
def hold_index(store: BlockStore) -> Iterator[None]:
    """Change the index of a store from outside, for as long as the block lasts."""
    with closing(sqlite3.connect(index_of(store), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_while_others_are_busy_nothing_is_lost_and_the_store_stays_on(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(retry_s=3600.0, busy_timeout_s=0.1)
    (key,) = put_row(store, [1, 2])
    with caplog.at_level(logging.WARNING, "edge.kv"):
        with hold_index(store):
            match = store.match(MODEL, "ns", [1, 2])
            with store.lease(match):
                assert restored(store, [1, 2]) == [b"kv of [1, 2]"]
            assert store.put(None, [3], b"three", fingerprint=MODEL, namespace="ns", start=0, owner="ann") is not None
            store.touch([key], owner="bob")
            store.pin(key)
            assert not store.flush(0.3) and store.problem is None
            for call in (store.gc, lambda: store.forget("nobody")):
                with pytest.raises(StorageError, match="did not finish its queue") as caught:
                    call()
                assert "Nothing is lost" in caught.value.hint and "permissions" not in str(caught.value)
        assert store.flush(60.0)
    assert store.problem is None and not caplog.records
    infos = {info.key: info for info in store.ls()}
    assert infos[key.hex()].is_pinned and infos[key.hex()].owners == ("bob",)
    assert restored(store, [3]) == [b"three"] and store.stats().n_dropped == 0
    with hold_index(store):
        for call in (store.verify, store.stats, store.ls):
            call()  # those who read wait for nobody


def test_a_damaged_block_is_removed_once_others_release_the_index(make_store: MakeStore) -> None:
    store = make_store(retry_s=3600.0, busy_timeout_s=0.05, drop_timeout_s=0.05)
    (key,) = put_row(store, [1, 2])
    match = store.match(MODEL, "ns", [1, 2])
    path_of(store, key).write_bytes(b"damage")
    with hold_index(store):
        assert store.read(match.blocks[0]) is None and store.match(MODEL, "ns", [1, 2]) == Match()
        assert path_of(store, key).exists() and store.problem is None
    assert store.flush(60.0) and not path_of(store, key).exists()
    assert store.ls() == [] and store.stats().n_lost == 1
    put_row(store, [1, 2])
    assert restored(store, [1, 2]) == [b"kv of [1, 2]"]


def test_a_store_that_others_keep_opening_is_opened_soon_after(make_store: MakeStore) -> None:
    first, timer = make_store(), Timer()
    put_row(first, [1, 2])
    with lock_file(first.directory / "opening.lock"):
        store = make_store(retry_s=3600.0, open_timeout_s=0.05, timer=timer)
        assert store.problem is not None and "has been opening it" in store.problem
        with pytest.raises(StorageError, match="has been opening it"):
            store.stats()
    timer.now += 1.0  # it tries again after a second, not after an hour
    assert store.match(MODEL, "ns", [1, 2]) == Match() and store.flush(60.0)
    assert store.problem is None and restored(store, [1, 2]) == [b"kv of [1, 2]"]


def test_a_smaller_budget_is_kept_from_the_start(make_store: MakeStore) -> None:
    store = make_store()
    put_row(store, list(range(40)))
    assert store.stats().n_blocks == 10
    store.close()
    store = make_store(budget_bytes=3 * KIB4)
    assert store.flush(60.0)
    assert store.stats().n_blocks == 3 and len(restored(store, list(range(40)))) == 3


def test_the_index_is_rebuilt_when_it_is_gone_or_damaged(make_store: MakeStore) -> None:
    for content in (None, b"", b"SQLite format 3\0 but then nonsense" * 500):
        store = make_store()
        keys = put_row(store, list(range(12)), owner="ann", prefill_ms=3.0)
        before = store.ls()
        store.close()
        for path in store.directory.glob("index-*"):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
        again = make_store()
        assert again.flush(60.0)
        assert restored(again, list(range(12)))[2] == b"kv of %r" % list(range(12))
        assert [(i.key, i.owners, i.n_children, i.prefill_ms) for i in again.ls()] == [
            (i.key, i.owners, i.n_children, i.prefill_ms) for i in before
        ]
        assert len(keys) == again.stats().n_blocks
        again.clear()
        again.close()


def test_blocks_that_nothing_leads_to_are_removed(make_store: MakeStore) -> None:
    store = make_store()
    keys = put_row(store, list(range(16)))
    store.close()
    for path in (*store.directory.glob("index-*"), path_of(store, keys[1])):
        path.unlink()
    again = make_store()
    assert again.flush(60.0)
    assert [info.key for info in again.ls()] == [keys[0].hex()]
    assert [path.name for path in again.directory.glob("blocks/*/*")] == [keys[0].hex()[2:]]


def test_an_index_that_goes_bad_while_it_is_open_is_replaced(make_store: MakeStore) -> None:
    store, other = make_store(), make_store()
    put_row(store, list(range(12)))
    old = index_of(store)
    change_index(store, "DROP TABLE state")  # what bad bytes in a page do: SQLite finds no such table
    put_row(store, [50, 51])
    assert store.flush(60.0)
    assert store.match(MODEL, "ns", [50, 51]) == Match() or store.problem is None
    assert store.flush(60.0) and store.problem is None
    assert restored(store, list(range(12)))[2] == b"kv of %r" % list(range(12))
    assert not old.exists()
    put_row(store, [60, 61])
    put_row(other, [70, 71])  # still had the old one open
    assert other.flush(60.0)
    put_row(other, [72, 73])
    for query in ([60, 61], [72, 73], list(range(12))):
        assert other.match(MODEL, "ns", query).n_tokens == store.match(MODEL, "ns", query).n_tokens == len(query)


def test_files_that_are_none_of_ours_are_left_alone(make_store: MakeStore) -> None:
    store = make_store()
    keys = put_row(store, list(range(8)))
    notes = path_of(store, keys[0]).with_name("notes.txt")
    notes.write_text("mine")
    stray = path_of(store, keys[0]).with_name("f" * 62)
    stray.write_text("named like a block")
    report = store.gc()
    assert (report.n_foreign, report.n_removed, report.n_missing) == (1, 1, 0)
    assert notes.read_text() == "mine" and not stray.exists()


# The disk fails


def test_a_failing_disk_turns_the_store_off_until_it_works_again(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    timer = Timer()
    store = make_store(retry_s=3600.0, timer=timer)
    put_row(store, [1, 2])

    def full(files: StoreFiles, pieces: list[bytes]) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StoreFiles, "write", full)
    with caplog.at_level(logging.WARNING, "edge.kv"):
        assert store.put(None, [3], b"", fingerprint=MODEL, namespace="ns", start=0) is not None
        assert store.flush(60.0)
        assert store.put(None, [4], b"", fingerprint=MODEL, namespace="ns", start=0) is None
    assert store.problem == "the disk is full" and len(caplog.records) == 1
    assert restored(store, [1, 2]) == [b"kv of [1, 2]"]  # what is there can still be read
    monkeypatch.undo()
    assert store.is_paused
    timer.now += 3600.0
    assert not store.is_paused and store.problem == "the disk is full", "until something works again"
    put_row(store, [5])
    assert store.problem is None and store.match(MODEL, "ns", [5]).n_tokens == 1


def test_failures_during_the_pause_do_not_prolong_it(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer()
    store = make_store(retry_s=3600.0, timer=timer)
    put_row(store, [1])
    (ref,) = store.match(MODEL, "ns", [1]).blocks

    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        for name in ("write", "load", "remove"):
            patch.setattr(StoreFiles, name, fail)
        store.put(None, [2], b"", fingerprint=MODEL, namespace="ns", start=0)
        assert store.flush(60.0) and store.is_paused
        timer.now += 2000.0
        assert store.read(ref) is None and store.is_paused
    assert store.put(None, [2], b"", fingerprint=MODEL, namespace="ns", start=0) is None
    timer.now += 1600.0
    put_row(store, [2])
    assert store.problem is None


def test_damage_that_cannot_be_removed_is_logged_once_and_not_given_again(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    timer = Timer()
    store = make_store(retry_s=3600.0, timer=timer)
    keys = put_row(store, list(range(8)))
    match = store.match(MODEL, "ns", list(range(8)))
    path_of(store, keys[1]).write_bytes(b"damage")

    def refuse(files: StoreFiles, key: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(StoreFiles, "remove", refuse)
    with caplog.at_level(logging.WARNING, "edge.kv"):
        for _ in range(3):
            assert store.read(match.blocks[1]) is None
            assert store.match(MODEL, "ns", list(range(8))).n_tokens == 4
    assert sum("computed again" in record.message for record in caplog.records) == 1
    assert store.problem == "the disk is read-only" and is_stored(store, keys[1])
    monkeypatch.undo()
    timer.now += 3600.0
    put_row(store, [50])
    assert store.problem is None and not is_stored(store, keys[1])
    put_row(store, list(range(8)))
    assert restored(store, list(range(8)))[1] == b"kv of %r" % list(range(8))


def test_a_store_that_cannot_be_opened_is_off_and_comes_back(make_store: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "kv").write_text("a file where the directory should be")
    timer = Timer()
    store = make_store(retry_s=3600.0, timer=timer)
    assert store.problem is not None
    assert store.put(None, [1], b"", fingerprint=MODEL, namespace="ns", start=0) is None
    store.touch([b"k" * 32])
    store.pin(b"k" * 32)
    with store.lease(store.match(MODEL, "ns", [1])):
        pass
    assert store.flush(60.0)
    for call in (store.stats, store.ls, store.verify, store.gc, store.clear, lambda: store.forget("ann")):
        with pytest.raises(StorageError, match="cannot be used"):
            call()
    (tmp_path / "kv").unlink()
    timer.now += 3600.0
    assert store.match(MODEL, "ns", [1]) == Match() and store.flush(60.0)
    assert store.problem is None
    put_row(store, [1])
    assert store.match(MODEL, "ns", [1]).n_tokens == 1


def test_a_directory_of_another_user_is_refused(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    store = make_store(retry_s=3600.0)
    assert store.problem is not None and "another user" in store.problem


def test_too_open_permissions_are_put_right(make_store: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir(mode=0o755)
    store = make_store()
    put_row(store, [1])
    store.close()
    for path in (store.directory, store.directory / "blocks", store.directory / "key"):
        path.chmod(0o777)
    store = make_store()
    assert restored(store, [1]) == [b"kv of [1]"]
    for path in (store.directory, store.directory / "blocks", store.directory / "key"):
        assert not path.stat().st_mode & 0o077


def test_a_closed_store_finds_nothing_and_says_so(make_store: MakeStore) -> None:
    store = make_store()
    put_row(store, [1])
    match = store.match(MODEL, "ns", [1])
    store.close()
    store.close()
    assert store.match(MODEL, "ns", [1]) == Match() and store.read(match.blocks[0]) is None
    assert store.put(None, [2], b"", fingerprint=MODEL, namespace="ns", start=0) is None
    with pytest.raises(StorageError, match="closed"):
        store.stats()
    assert not list(store.directory.glob("live/*"))


def test_a_forked_child_keeps_its_hands_off(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store()
    put_row(store, [1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)  # what the child of a fork sees
        assert store.match(MODEL, "ns", [1]) == Match()
        assert store.problem is not None and "forked" in store.problem
        store.close()
    assert store.match(MODEL, "ns", [1]).n_tokens == 1


@pytest.mark.parametrize("name", ["index-backup.sqlite", "index-000001 (copy).sqlite", "index-99.sqlite", "index-.sqlite"])
def test_only_numbered_files_are_indexes(make_store: MakeStore, name: str) -> None:
    store = make_store()
    put_row(store, list(range(8)))
    store.close()
    copy = store.directory / name
    for content in (b"x", index_of(store).read_bytes()):
        copy.write_bytes(content)
        again = make_store()
        assert again.problem is None and len(restored(again, list(range(8)))) == 2
        again.close()
        assert copy.read_bytes() == content


@pytest.mark.parametrize("what", ["directory", "link", "link to itself", "FIFO"])
@pytest.mark.parametrize(
    "name", ["index-000009.sqlite", "index-000001.sqlite", "-wal", "-shm", "index-000002.new", "key", "opening.lock"]
)
def test_strange_entries_are_set_aside(make_store: MakeStore, tmp_path: Path, name: str, what: str) -> None:
    make_store().close()
    store = make_store()
    store.close()
    path = store.directory / (index_of(store).name + name if name.startswith("-") else name)
    path.unlink(missing_ok=True)
    outside = tmp_path / "thesis.txt"
    outside.write_text("thesis")
    if what == "directory":
        (path / "below").mkdir(parents=True)
    elif what == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(outside if what == "link" else path)
    again = make_store()
    assert again.problem is None
    put_row(again, list(range(8)))
    assert len(restored(again, list(range(8)))) == 2
    assert again.clear() == 2
    again.close()
    assert outside.read_text() == "thesis"
    assert len(list(store.directory.glob("*.aside-*"))) == 1


@pytest.mark.parametrize("end", ["", "-journal", "-wal", "-shm"])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path)], ids=["FIFO", "directory", "link"])
def test_strange_entries_beside_the_file_of_limits_are_set_aside(
    make_store: MakeStore, make: Callable[[Path], None], end: str
) -> None:
    store = make_store(max_written_bytes=1 << 20)
    put_row(store, list(range(8)))
    store.close()
    path = store.directory / f"limits.sqlite{end}"
    path.unlink(missing_ok=True)
    make(path)
    again = make_store(max_written_bytes=1 << 20)  # SQLite waits for the other end of a FIFO, if it is let
    put_row(again, list(range(50, 58)))
    assert again.problem is None and len(restored(again, list(range(8)))) == 2
    assert len(list(store.directory.glob("limits*.aside-*"))) == 1


def test_a_file_in_the_place_of_a_shard_costs_its_blocks_only(make_store: MakeStore) -> None:
    store = make_store()
    key = put_row(store, [1, 2])[0]
    put_row(store, [3, 4])
    shard = path_of(store, key).parent
    shutil.rmtree(shard)
    shard.write_bytes(b"mine")
    store.verify()
    store.gc()
    assert store.problem is None and not is_stored(store, key) and len(restored(store, [3, 4])) == 1
    store.clear()
    put_row(store, [1, 2])
    assert store.problem is None and len(restored(store, [1, 2])) == 1


@pytest.mark.parametrize("what", ["file", "FIFO", "dangling link"])
def test_a_path_that_is_no_directory_is_said(make_store: MakeStore, tmp_path: Path, what: str) -> None:
    path = tmp_path / "kv"
    if what == "file":
        path.touch()
    elif what == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    store = make_store()
    assert store.problem == f"The KV cache needs the directory {path}, and there is something else at that path"
    with pytest.raises(StorageError) as caught:
        store.gc()
    assert "EDGE_CACHE_DIR" in caught.value.hint
    path.unlink()


@pytest.mark.parametrize("name", ["tmp", "live", "blocks"])
def test_links_to_directories_of_the_user_are_refused(make_store: MakeStore, tmp_path: Path, name: str) -> None:
    store = make_store()
    store.close()
    docs = tmp_path / "docs"
    (docs / "ab").mkdir(parents=True)
    docs.chmod(0o755)
    for each in ("thesis.txt", "0" * 16, f"{'0' * 16}-1", f"ab/{'c' * 62}"):
        (docs / each).write_text("thesis")
    shutil.rmtree(store.directory / name)
    (store.directory / name).symlink_to(docs)
    again = make_store()
    assert again.problem is not None and "is a link" in again.problem
    assert again.put(None, [1], b"x", fingerprint=MODEL, namespace="", start=0) is None
    with pytest.raises(StorageError, match="is a link"):
        again.clear()
    again.close()
    assert stat.S_IMODE(docs.stat().st_mode) == 0o755
    assert len(list(docs.rglob("*"))) == 5
    (store.directory / name).unlink()
    assert make_store().problem is None


def test_only_the_names_of_the_store_are_deleted(make_store: MakeStore) -> None:
    store = make_store()
    store.close()
    kept = [
        store.directory / each
        for each in ("tmp/notes.txt", "tmp/x/y", "live/thesis.txt", f"tmp/{'0' * 16}-1.txt", f"live/{'1' * 16}/x")
    ]
    gone = [store.directory / each for each in (f"tmp/{'0' * 16}-1", f"tmp/{'0' * 16}-key")]
    for path in (*kept, *gone):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    again = make_store()
    assert again.flush(60.0) and again.problem is None
    again.gc()
    assert all(path.read_text() == "mine" for path in kept) and not any(path.exists() for path in gone)


def test_a_shard_that_is_a_link_is_not_followed(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    key = put_row(store, [1, 2])[0]
    store.close()
    shard, docs = path_of(store, key).parent, tmp_path / "docs"
    shard.rename(docs)
    shard.symlink_to(docs)
    before = sorted(path.name for path in docs.iterdir())
    again = make_store()
    again.clear()
    put_row(again, [1, 2])
    assert again.problem is None and len(restored(again, [1, 2])) == 1
    assert sorted(path.name for path in docs.iterdir()) == before


def test_a_directory_with_content_in_the_place_of_a_block(make_store: MakeStore) -> None:
    store = make_store()
    keys = put_row(store, list(range(8)))
    path = path_of(store, keys[0])
    path.unlink()
    path.mkdir()
    (path / ".DS_Store").write_text("x")
    assert restored(store, list(range(8)))[0] is None and store.problem is None
    put_row(store, list(range(8)))
    assert store.problem is None and len(restored(store, list(range(8)))) == 2
    assert store.clear() == 2 and store.ls() == []


@pytest.mark.parametrize("name", ["blocks", "tmp"])
def test_a_directory_that_is_removed_while_the_store_is_open_comes_back(make_store: MakeStore, name: str) -> None:
    store = make_store()
    put_row(store, list(range(4)))
    shutil.rmtree(store.directory / name)
    for _ in range(5):
        put_row(store, list(range(100, 108)))
    assert store.problem is None and len(restored(store, list(range(100, 108)))) == 2


def test_an_index_of_wrong_types_is_replaced(make_store: MakeStore) -> None:
    store = make_store()
    put_row(store, list(range(8)))
    store.close()
    with closing(sqlite3.connect(index_of(store))) as connection, connection:
        connection.execute("UPDATE block SET key = 'text', parent = parent WHERE start = 0")
    again = make_store()
    for _ in range(3):
        restored(again, list(range(8)))
        again.flush(60.0)
    assert len(restored(again, list(range(8)))) == 2


@pytest.mark.parametrize(
    "lie",
    [
        "UPDATE state SET disk = 0, n_blocks = 0",
        "CREATE TRIGGER never BEFORE DELETE ON block BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER none BEFORE INSERT ON block BEGIN SELECT RAISE(IGNORE); END",
        "DROP TRIGGER block_added",
        "CREATE VIEW v AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
    ],
)
def test_an_index_that_lies_is_replaced_when_the_store_is_opened(make_store: MakeStore, lie: str) -> None:
    store = make_store(budget_bytes=8 * KIB4)
    put_row(store, list(range(8)))
    store.close()
    with closing(sqlite3.connect(index_of(store))) as connection, connection:
        connection.execute(lie)
    again = make_store(budget_bytes=8 * KIB4)
    for start in range(0, 2000, 100):
        put_row(again, list(range(start, start + 8)))
    assert again.flush(60.0) and again.problem is None and restored(again, list(range(1900, 1908)))
    assert sum(path.stat().st_blocks * 512 for path in again.directory.glob("blocks/*/*")) <= 8 * KIB4
    assert again.stats().n_blocks == len(list(again.directory.glob("blocks/*/*")))


def test_a_lease_of_a_damaged_index_names_no_file_elsewhere(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    disk = store._background.disk
    assert disk is not None
    victim = tmp_path / "device"
    victim.touch()
    with lock_file(victim):
        assert not disk.files.is_live(str(victim)) and not disk.files.is_live("../../device")


def test_too_little_memory_costs_only_the_blocks_being_written(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store()
    keys = put_row(store, list(range(8)))
    store.touch(keys, owner="bob")
    store.pin(keys[-1])
    assert store.flush(60.0)
    index, seal = index_of(store), disk_module.seal_block
    failures = iter([MemoryError()])

    def fail(*values: Any, **options: Any) -> Any:
        error = next(failures, None)
        if error is not None:
            raise error
        return seal(*values, **options)

    monkeypatch.setattr(disk_module, "seal_block", fail)
    put_row(store, list(range(100, 104)))
    assert store.problem is None and index_of(store) == index
    assert [(block.is_pinned, "bob" in block.owners) for block in store.ls()] == [(False, True), (True, True)]
    put_row(store, list(range(100, 104)))
    assert len(restored(store, list(range(100, 104)))) == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("odd"), AttributeError("odd"), RecursionError(), ValueError("odd")]
)
def test_no_error_of_the_store_reaches_a_turn(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*values: Any, **options: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("edge.kv.opening.Disk", fail)
        assert make_store("off").problem
    store = make_store()
    keys = put_row(store, list(range(8)))
    match = store.match(MODEL, "ns", list(range(8)))
    for name in ("match", "load", "has", "lease", "write", "drop"):
        monkeypatch.setattr(Disk, name, fail)
    store.match(MODEL, "ns", [1, 2])
    store.has(keys[0])
    store.prefetch(match.blocks)
    with store.lease(match):
        assert store.read(match.blocks[0]) is None
    put_row(store, [50, 51])
    store.touch(keys, owner="x")
    store.pin(keys[0])
    store.warm_up()
    store.flush(10.0)
    store.close()


def test_damage_is_said_though_the_thread_works_meanwhile(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(read_timeout_s=60.0)
    keys = put_row(store, list(range(8)))
    (ref, *_) = store.match(MODEL, "ns", list(range(8))).blocks
    path_of(store, keys[0]).write_bytes(b"x")
    drop = Disk.drop

    def drop_after_others(self: Disk, ref: BlockRef, timeout_s: float | None = None) -> str | None:
        if threading.current_thread().name == "edge-kv-read":
            put_row(store, [50, 51])  # the thread writes these, and flushes
        return drop(self, ref, timeout_s)

    monkeypatch.setattr(Disk, "drop", drop_after_others)
    assert store.read(ref) is None
    assert [keys[0].hex()[:12] in record.getMessage() for record in caplog.records] == [True]
    assert store.stats().n_lost == 1


def test_a_forked_child_never_waits_for_a_lock_of_its_parent(make_store: MakeStore) -> None:
    store = make_store()
    keys = put_row(store, list(range(8)))
    match = store.match(MODEL, "ns", list(range(8)))
    with store._background._wake:  # as another thread of the parent may hold it
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            store.touch(keys, owner="x")
            store.pin(keys[0])
            store.unpin(keys[0])
            store.has(keys[0])
            store.put(None, [1], b"x", fingerprint=MODEL, namespace="", start=0)
            store.warm_up()
            with store.lease(match):
                store.prefetch(match.blocks)
                store.read(match.blocks[0])
            store._background.release(keys[0], is_noted=True)
            store._background.discard(None)
            store._background.drop_later(match.blocks[0])
            store.flush(5.0)
            store.close()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.put(None, [1], b"x", fingerprint=MODEL, namespace="", start=0) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the memory of a process")
@pytest.mark.parametrize("size", [5 << 30, 1 << 40])
@pytest.mark.parametrize("what", ["read", "verify", "export", "scan"])
def test_a_block_file_that_has_grown_is_not_read(tmp_path: Path, what: str, size: int) -> None:
    """In a process of its own, which gets no more memory than it has already and a little."""
    code = f"from {__name__} import use_grown; use_grown({str(tmp_path)!r}, {what!r}, {size})"
    path = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr


def use_grown(directory: str, what: str, size: int) -> None:
    """Child: use a store in which a block file has grown."""
    options = StoreOptions(budget_bytes=1 << 24, min_free_bytes=0, sync=False, retry_s=0.0)
    with BlockStore(directory, options) as store:
        keys = put_row(store, list(range(8)), owner="ann")
        match = store.match(MODEL, "ns", list(range(8)))
        os.truncate(path_of(store, keys[0]), size)
        n_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = n_pages * resource.getpagesize() + (192 << 20)  # the stacks and arenas of a few threads
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if what == "read":
            assert store.read(match.blocks[0]) is None
        elif what == "verify":
            assert [key for key, _ in store.verify().damaged] == [keys[0].hex()]
        elif what == "export":
            assert list(store.export_blocks("ann")) == []
        else:
            store.close()
            index_of(store).unlink()
    with BlockStore(directory, options) as store:
        assert store.flush(60.0) and store.problem is None
        assert what == "export" or not is_stored(store, keys[0])


def test_forget_says_when_another_reader_keeps_the_text_in_the_log(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.kv.index._EMPTYING_TIMEOUT_S", 0.05)
    monkeypatch.setattr("edge.kv.background._EMPTY_EVERY_S", 0.05)
    store = make_store()
    put_row(store, list(range(8)), owner="ann")
    log = index_of(store).with_name(index_of(store).name + "-wal")
    with closing(sqlite3.connect(index_of(store), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM block").fetchone()
        assert store.forget("ann").is_in_log
        assert log.stat().st_size > 0
        reader.execute("ROLLBACK")
    deadline = time.monotonic() + 30
    while log.stat().st_size and time.monotonic() < deadline:
        time.sleep(0.05)
    assert log.stat().st_size == 0, "emptied once the reader has gone"
    put_row(store, list(range(8)), owner="bob")
    assert not store.forget("bob").is_in_log


def test_owners_and_keys_are_found_without_reading_all_blocks(make_store: MakeStore) -> None:
    store = make_store()
    keys = put_row(store, list(range(8)), owner="ann") + put_row(store, list(range(50, 58)), owner="bob")
    put_row(store, list(range(8)), owner="carl")
    assert store.owners() == ["ann", "bob", "carl"]
    assert {(info.key, info.owners) for info in store.ls(owner="carl")} == {(key.hex(), ("ann", "carl")) for key in keys[:2]}
    for key in keys:
        for n in (8, 9, 63, 64):
            assert store.find_keys(key.hex()[:n]) == [key.hex()]
    assert make_store("empty").owners() == [] and store.find_keys("0" * 64) == []
