"""An index that is whole but wrong: rows changed, lost or from an older copy. The budget holds, and new blocks are stored."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from edge.kv.blocks import fingerprint
from edge.kv.store import BlockStore, StoreOptions

MODEL = fingerprint({"weights": "a"})
KIB4 = 4096
N_BLOCKS = 24


def open_store(directory: Path, n_blocks: int = N_BLOCKS) -> BlockStore:
    store = BlockStore(directory, StoreOptions(n_blocks * KIB4, 0, sync=False, retry_s=0.0))
    assert store.flush(30.0)
    return store


def payload_of(tokens: list[int]) -> bytes:
    return hashlib.sha256(repr(tokens).encode()).digest() * 40


def put(store: BlockStore, number: int) -> None:
    parent, tokens = None, [7, number, 8, number]
    for start in (0, 2):
        parent = store.put(
            parent, tokens[start : start + 2], payload_of(tokens[: start + 2]), fingerprint=MODEL, namespace="", start=start,
            owner=f"chat{number % 3}",
        )  # fmt: skip
    assert store.flush(30.0)


def n_found(store: BlockStore, number: int) -> int:
    tokens = [7, number, 8, number]
    for ref in store.match(MODEL, "", tokens).blocks:
        payload = store.read(ref)
        if payload is None:
            return 0
        end = ref.start + ref.n_tokens
        assert ref.n_used < ref.n_tokens or payload == payload_of(tokens[:end]), "a wrong block"
    return store.match(MODEL, "", tokens).n_tokens


def disk_of(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.glob("blocks/*/*") if path.is_file())


def fill(directory: Path) -> None:
    with open_store(directory) as store:
        for number in range(N_BLOCKS // 2):
            put(store, number)
        assert store.stats().n_blocks == N_BLOCKS


def use(directory: Path) -> int:
    """Use a store whose index lies; returns how many of the blocks that were there before were still found at first."""
    began = time.monotonic()
    with open_store(directory) as store:
        before = sum(n_found(store, number) == 4 for number in range(N_BLOCKS // 2))
        for number in range(100, 116):
            put(store, number)
            put(store, number)  # the first may have been dropped with a bad index
            assert n_found(store, number) == 4, number
            assert disk_of(directory) <= N_BLOCKS * KIB4
        store.forget("chat0")
        store.gc()
        store.verify()
        assert not store.verify().damaged
        stats = store.stats()
        assert stats.n_blocks == len(list(directory.glob("blocks/*/*"))) > 0
        assert disk_of(directory) == stats.size_bytes <= N_BLOCKS * KIB4 and store.problem is None
    assert time.monotonic() - began < 60.0
    return before


def rows_of(directory: Path) -> set[tuple[str, str]]:
    """Who uses which block, as the index says."""
    with open_store(directory) as store:
        put(store, 0)  # what is there already: no check for one who only reads
        return {(owner, block.key) for block in store.ls() for owner in block.owners}


@pytest.mark.parametrize(
    "lie",
    [
        "UPDATE owner SET name = 'bob' WHERE name = 'chat1'", "DELETE FROM owner", "DELETE FROM owner WHERE block % 2",
        "INSERT OR IGNORE INTO owner SELECT 'bob', id FROM block", "INSERT OR IGNORE INTO owner SELECT 'chat0', id FROM block",
        "UPDATE OR IGNORE owner SET block = block + 1", "INSERT INTO owner SELECT x'00', id FROM block",
        "INSERT OR IGNORE INTO owner SELECT 'chat2', id + 1000 FROM block",
    ],
)  # fmt: skip
def test_users_of_blocks_are_those_of_the_log(tmp_path: Path, lie: str) -> None:
    store_here, copy = tmp_path / "kv", tmp_path / "copy"
    fill(store_here)
    before = rows_of(store_here)
    assert {owner for owner, _ in before} == {"chat0", "chat1", "chat2"}
    (index,) = store_here.glob("index-*.sqlite")
    with closing(sqlite3.connect(index, isolation_level=None)) as connection:
        connection.executescript(lie)
    shutil.copytree(store_here, copy)
    assert rows_of(store_here) == before
    with open_store(copy) as store:  # which checks nothing, since nothing is written
        assert [store.forget(f"chat{number}").n_blocks for number in range(3)] == [8, 8, 8]


def test_users_are_believed_where_the_log_cannot_tell(tmp_path: Path) -> None:
    fill(tmp_path)
    with open_store(tmp_path) as store:
        for number in range(200, 206):  # what they name last is evicted, so that their lines say nothing any more
            put(store, number)
        store.touch([bytes.fromhex(block.key) for block in store.ls() if block.start == 0], owner="bob")
        assert store.flush(30.0)
    before = rows_of(tmp_path)
    assert rows_of(tmp_path) == before
    with open_store(tmp_path) as store:
        assert store.gc().n_removed == 0
    assert rows_of(tmp_path) == before


LIES = {
    "totals": "UPDATE state SET disk = 0, n_blocks = 0, n_tokens = 0",
    "totals, negative": "UPDATE state SET disk = -1000000000",
    "totals, huge": "UPDATE state SET disk = 4000000000000",
    "no totals": "DELETE FROM state",
    "two totals": "INSERT INTO state SELECT * FROM state",
    "work": "UPDATE state SET work = 9223372036854775807",
    "work, text": "UPDATE state SET work = 'much'",
    "sizes": "UPDATE block SET size = 1, disk = 0",
    "sizes and disk": "UPDATE block SET size = 10, disk = 4096; UPDATE state SET disk = (SELECT total(disk) FROM block)",
    "sizes, all halved": "UPDATE block SET size = size / 2, disk = 4096",
    "one size": "UPDATE block SET size = 5 WHERE id = 3",
    "one size, negative": "UPDATE block SET size = -5, disk = -4096 WHERE id = 3",
    "sizes, text": "UPDATE block SET size = 'large'",
    "all have children": "UPDATE block SET children = 1",
    "none has children": "UPDATE block SET children = 0",
    "one has a child": "UPDATE block SET children = children + 1 WHERE id = 4",
    "children, swapped": "UPDATE block SET children = 1 - children",
    "children, huge": "UPDATE block SET children = 1000000 WHERE start = 2",
    "all pinned": "UPDATE block SET pinned = 1",
    "one pinned": "UPDATE block SET pinned = 1 WHERE id = 2",
    "pinned and have children": "UPDATE block SET pinned = 1, children = children + 1",
    "ranks": "UPDATE block SET rank = 1e308",
    "ranks, negative": "UPDATE block SET rank = -1e308 WHERE id % 2",
    "ranks, text": "UPDATE block SET rank = 'first'",
    "times": "UPDATE block SET last_used = 1e300, prefill_ms = 1e308",
    "rows lost": "DELETE FROM block WHERE id % 2",
    "leaves lost": "DELETE FROM block WHERE start = 2",
    "parents lost": "DELETE FROM block WHERE start = 0",
    "all rows lost": "DELETE FROM block",
    "namespaces": "UPDATE space SET namespace = 'other'",
    "models": "UPDATE space SET model = x'00'",
    "encryption": "UPDATE space SET encrypted = 1",
    "no spaces": "DELETE FROM space",
    "a ring": "UPDATE OR IGNORE block SET parent = key",
    "parents": "UPDATE OR IGNORE block SET parent = (SELECT key FROM block WHERE id = 1) WHERE start = 2",
    "starts": "UPDATE block SET start = start + 1",
    "numbers of tokens": "UPDATE block SET n_tokens = 2000",
    "paths": "UPDATE OR IGNORE block SET path = x'00000007000000ff'",
    "origins": "UPDATE block SET origin = 'nowhere'",
    "leases of the dead": "INSERT INTO lease SELECT '0123456789abcdef', key, 5 FROM block",
    "leases of nobody": "INSERT INTO lease SELECT '../key', key, 5 FROM block",
    "owners": "UPDATE OR IGNORE owner SET name = 'nobody'",
    "owners of nothing": "INSERT INTO owner SELECT name, block + 1000 FROM owner",
    "a trigger": "CREATE TRIGGER z BEFORE DELETE ON block BEGIN SELECT RAISE(IGNORE); END",
    "an endless trigger": """CREATE TRIGGER z AFTER UPDATE ON block BEGIN INSERT INTO owner
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 'x', i FROM n WHERE i < 0; END""",
    "an endless view": """DROP VIEW row; CREATE VIEW row AS
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS key FROM n WHERE i < 0""",
    "an index that is gone": "DROP INDEX block_evictable",
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies(tmp_path: Path, lie: str) -> None:
    fill(tmp_path)
    index = sorted(tmp_path.glob("index-*.sqlite"))[-1]
    with closing(sqlite3.connect(index)) as connection:
        connection.executescript(LIES[lie])
    before = use(tmp_path)
    if lie in ("one size", "one pinned", "ranks", "times", "leases of the dead", "origins"):
        assert before == N_BLOCKS // 2, "whole blocks are not given up for it"


def test_an_older_index_is_restored(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        put(store, 0)
    index = sorted(tmp_path.glob("index-*.sqlite"))[-1]
    shutil.copy(index, tmp_path / "backup")
    fill(tmp_path)
    shutil.copy(tmp_path / "backup", index)
    (tmp_path / "backup").unlink()
    use(tmp_path)


def test_the_index_of_another_time_with_the_same_number_of_rows(tmp_path: Path) -> None:
    """As many rows as files, but others."""
    with open_store(tmp_path) as store:
        for number in range(N_BLOCKS // 2):
            put(store, number)
    index = sorted(tmp_path.glob("index-*.sqlite"))[-1]
    shutil.copy(index, tmp_path / "backup")
    with open_store(tmp_path) as store:
        for number in range(50, 50 + N_BLOCKS // 2):
            put(store, number)
    shutil.copy(tmp_path / "backup", index)
    (tmp_path / "backup").unlink()
    use(tmp_path)


@pytest.mark.parametrize("hurt", [lambda data: data + b"\0" * 5000, lambda data: data[:-10], lambda data: data * 2])
def test_a_file_of_another_size_is_damaged_and_not_the_index(tmp_path: Path, hurt: Callable[[bytes], bytes]) -> None:
    fill(tmp_path)
    path = next(tmp_path.glob("blocks/*/*"))
    path.write_bytes(hurt(path.read_bytes()))
    with open_store(tmp_path) as store:
        sum(n_found(store, number) for number in range(N_BLOCKS // 2))
        store.gc()
        assert store.flush(30.0) and N_BLOCKS - 2 <= store.stats().n_blocks < N_BLOCKS
        assert store.stats().size_bytes == disk_of(tmp_path)
    use(tmp_path)
