"""A lost or damaged index, or log of pins and users, costs neither pins nor users: each of the two heals the other."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edge.kv.blocks import fingerprint
from edge.kv.disk import Disk
from edge.kv.maintenance import scan
from edge.kv.store import BlockStore, StoreOptions
from edge.kv.uses import Uses
from tests.prove import proof_size

MODEL = fingerprint({"weights": "a"})


def open_store(directory: Path, **options: object) -> BlockStore:
    values = {"budget_bytes": 1 << 24, "min_free_bytes": 0, "sync": False, "retry_s": 0.0} | options
    store = BlockStore(directory, StoreOptions(**values))  # type: ignore[arg-type]
    assert store.flush(60.0)
    return store


def put(store: BlockStore, tokens: list[int], owner: str | None, cut: int = 4) -> list[bytes]:
    keys: list[bytes] = []
    for start in range(0, len(tokens), cut):
        key = store.put(
            keys[-1] if keys else None, tokens[start : start + cut], bytes(50), fingerprint=MODEL, namespace="", start=start,
            owner=owner,
        )  # fmt: skip
        assert key is not None
        keys.append(key)
    assert store.flush(60.0)
    return keys


def fill(store: BlockStore) -> list[bytes]:
    """Two chats with a common system prompt, a pinned block, blocks of nobody, and a chat that was deleted."""
    first = put(store, [*range(8), *range(100, 112)], "alice")
    second = put(store, [*range(8), *range(200, 208)], "bob")
    store.touch(second, owner="bob")
    nobody = put(store, [*range(50, 58)], None)
    pinned = put(store, [*range(60, 68)], "carol")
    store.pin(pinned[-1])
    assert store.flush(60.0)
    store.forget("carol")
    return [*first, *second, *nobody, *pinned]


def content(store: BlockStore) -> dict[str, tuple[tuple[str, ...], bool]]:
    assert store.flush(60.0) and store.problem is None
    return {info.key: (info.owners, info.is_pinned) for info in store.ls()}


def index_of(store: BlockStore) -> Path:
    return sorted(store.directory.glob("index-*.sqlite"))[-1]


def lose_index(store: BlockStore) -> None:
    for path in store.directory.glob("index-*"):
        path.unlink()


def tear_index(store: BlockStore) -> None:
    data = bytearray(index_of(store).read_bytes())
    data[0:300] = random.Random(1).randbytes(300)
    index_of(store).write_bytes(data)


def change_schema(store: BlockStore) -> None:
    with closing(sqlite3.connect(index_of(store))) as connection:
        connection.execute("CREATE VIEW more AS SELECT 1")


def lose_log(store: BlockStore) -> None:
    (store.directory / "uses").unlink()


def tear_log(store: BlockStore) -> None:
    path = store.directory / "uses"
    path.write_bytes(path.read_bytes()[:-30] + b"\0" * 30)


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[BlockStore]:
    store = open_store(tmp_path / "kv")
    fill(store)
    yield store
    store.close()


@pytest.mark.parametrize("hurt", [lose_index, tear_index, change_schema, lose_log, tear_log])
def test_pins_and_users_outlive_either_file(filled: BlockStore, hurt: Callable[[BlockStore], None]) -> None:
    before = content(filled)
    assert {owners for owners, _ in before.values()} == {("alice",), ("bob",), ("alice", "bob"), ()}
    assert sum(is_pinned for _, is_pinned in before.values()) == 1
    filled.close()
    hurt(filled)
    for _ in range(2):  # the file that was lost has been made again from the other, and the other may go now
        with open_store(filled.directory) as store:
            put(store, [1], None)
            store.gc()
            assert {key: value for key, value in content(store).items() if key in before} == before
        lose_index(filled)


def test_a_deleted_chat_takes_its_blocks_along_after_healing(filled: BlockStore) -> None:
    keys = put(filled, [*range(8), 300, 301], "dora")
    filled.close()
    lose_index(filled)
    with open_store(filled.directory) as store:
        assert content(store)
        assert store.forget("alice").n_blocks == 3, "the system prompt is used by bob and dora too"
        assert store.forget("bob").n_blocks == 2
        store.forget("dora")
        assert not {key.hex() for key in keys} & content(store).keys()


def test_pins_hold_while_the_index_is_made_again(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv") as store:
        pinned = put(store, [1, 2], None)
        store.pin(pinned[0])
        for number in range(3, 9):
            put(store, [number, number], None)
        store.flush()
    lose_index(store)
    with open_store(tmp_path / "kv", budget_bytes=3 * 4096) as store:
        assert len(content(store)) == 3 and store.has(pinned[0])


def test_a_log_that_lost_its_newest_lines(filled: BlockStore) -> None:
    """As after a power cut: files are on the disk before their lines are."""
    log = filled.directory / "uses"
    before = log.read_bytes()
    put(filled, [70, 71], "erin")
    filled.close()
    log.write_bytes(before)
    lose_index(filled)
    with open_store(filled.directory) as store:
        assert store.forget("erin").n_blocks == 1


def test_pins_that_only_the_index_knows_are_lies(filled: BlockStore) -> None:
    before = content(filled)
    with closing(sqlite3.connect(index_of(filled), isolation_level=None)) as connection:
        connection.execute("UPDATE block SET pinned = 1 - pinned")
    filled.close()
    with open_store(filled.directory) as store:
        put(store, [80], None)
        assert {key: value for key, value in content(store).items() if key in before} == before


@pytest.mark.parametrize("seed", range(proof_size(6, 100)))
def test_a_damaged_log_harms_nothing(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with open_store(tmp_path / "kv") as store:
        fill(store)
        before = content(store)
    log = tmp_path / "kv" / "uses"
    data = bytearray(log.read_bytes())
    for _ in range(rng.choice((1, 1, 20))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    log.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
    with open_store(tmp_path / "kv") as store:
        put(store, [1], None)
        assert {key: value for key, value in content(store).items() if key in before} == before, "the index knows"
    damaged = rng.random() < 0.5
    if damaged:
        log.write_bytes(rng.randbytes(rng.choice((0, 1, 5000))))
    lose_index(store)
    with open_store(tmp_path / "kv") as store:
        after = content(store)
        assert before.keys() <= after.keys()
        if not damaged:
            assert {key: value for key, value in after.items() if key in before} == before


def test_a_log_is_rewritten_once_it_has_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.kv.uses._SPARE_BYTES", 20_000)
    with open_store(tmp_path / "kv", budget_bytes=20 * 4096) as store:
        fill(store)
        pinned = {info.key for info in store.ls() if info.is_pinned}
        for number in range(300):
            put(store, [1000 + number], f"chat{number % 50}")
        assert (tmp_path / "kv" / "uses").stat().st_size > 20_000
        before = content(store)
    with open_store(tmp_path / "kv", budget_bytes=20 * 4096) as store:
        put(store, [1299], "chat49")
        assert (tmp_path / "kv" / "uses").stat().st_size < 20_000
        assert content(store) == before and {key for key, value in before.items() if value[1]} == pinned
    lose_index(store)
    with open_store(tmp_path / "kv", budget_bytes=20 * 4096) as store:
        assert content(store) == before


def test_what_is_appended_while_the_log_is_rewritten_is_kept(filled: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = filled._background.disk
    assert disk is not None
    rewrite = Uses.rewrite

    def slowly(log: Uses, uses: object) -> Path:
        draft = rewrite(log, uses)  # type: ignore[arg-type]
        with disk.index.write() as change:
            (key,) = change.sql.execute("SELECT key FROM block WHERE start = 0 AND n_tokens = 4 LIMIT 1").fetchone()
            change.touch([key], "late")
        return draft

    monkeypatch.setattr(Uses, "rewrite", slowly)
    disk._rewrite_uses()
    before = content(filled)
    assert any("late" in owners for owners, _ in before.values())
    filled.close()
    lose_index(filled)
    with open_store(filled.directory) as store:
        assert content(store) == before


def test_a_scan_that_was_stopped_in_the_middle_is_made_again(filled: BlockStore) -> None:
    before = content(filled)
    filled.close()
    lose_index(filled)
    store = BlockStore(filled.directory, StoreOptions(budget_bytes=1 << 24, min_free_bytes=0, sync=False))
    store.flush()
    store.close()
    lose_index(filled)
    n_stopped = 0
    for n_calls in (1, 200, *range(256, 300)):
        disk = Disk(filled.directory, store.options)
        calls = iter(range(10_000))
        scan(disk, lambda calls=calls, last=n_calls: next(calls) >= last)  # type: ignore[misc]
        is_done = not disk.needs_scan
        disk.close()
        if is_done:
            break
        n_stopped += 1
    assert n_stopped >= 4, "also between the blocks and their users"
    with open_store(filled.directory) as again:
        assert content(again) == before
