"""What is in a store, and that listing it needs neither all blocks nor all memory at once."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from benchmarks.kv_scale import BLOCKS_EACH, fill, name_of, open_store
from edge.kv.store import BlockStore
from edge.names import import_namespace
from tests.prove import proof_size

MODEL = b"m" * 32
N_BLOCKS = proof_size(1600, 200_000)


def put(store: BlockStore, tokens: list[int], owner: str | None, namespace: str = "") -> list[bytes]:
    keys: list[bytes] = []
    for start in range(0, len(tokens), 2):
        key = store.put(
            keys[-1] if keys else None, tokens[start : start + 2], bytes(50 + start), fingerprint=MODEL, namespace=namespace,
            start=start, owner=owner, prefill_ms=3.0,
        )  # fmt: skip
        assert key is not None
        keys.append(key)
    assert store.flush(60.0)
    return keys


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large")
    fill(directory, N_BLOCKS)
    return directory


def test_usages_add_up_the_blocks_of_the_same_owners(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        put(store, [1, 2, 3, 4, 5, 6], "ann")
        keys = put(store, [1, 2, 3, 4, 7, 8], "bob")
        put(store, [9, 9], None)
        put(store, [1, 2], "cleo", import_namespace("cleo"))
        store.touch(keys, owner="bob")
        store.pin(keys[0])
        store.flush()
        infos = store.ls()
        used = store.usages()
        for one in used:
            same = [info for info in infos if (info.owners, info.namespace) == (one.owners, one.namespace)]
            assert (one.n_blocks, one.n_tokens) == (len(same), sum(info.n_tokens for info in same))
            assert one.size_bytes == sum(info.size_bytes for info in same)
            assert one.prefill_ms == pytest.approx(sum(info.prefill_ms for info in same))
            assert one.last_used == max(info.last_used for info in same)
            assert one.n_pinned == sum(info.is_pinned for info in same)
        assert sorted((one.owners, one.n_blocks) for one in used) == [
            ((), 1), (("ann",), 1), (("ann", "bob"), 2), (("bob",), 1), (("cleo",), 1),
        ]  # fmt: skip


def test_each_block_comes_once_also_while_others_write(large: Path) -> None:
    with open_store(large) as store:
        listed = []
        for number, info in enumerate(store.each_block()):
            listed.append(info.key)
            if number == 700:
                disk = store._background.disk
                assert disk is not None
                with disk.index.write() as change:
                    change.sql.execute("DELETE FROM block WHERE id IN (SELECT id FROM block ORDER BY id DESC LIMIT 3)")
        assert len(listed) == len(set(listed)) >= N_BLOCKS - 20
        assert len({key for key in store.ls(owner=name_of(3)) if key.owners == (name_of(3),)}) == BLOCKS_EACH - 1


@pytest.mark.parametrize("what", ["each_block", "usages", "owners", "find_keys"])
def test_memory_is_bounded(large: Path, what: str) -> None:
    with open_store(large) as store:
        tracemalloc.start()
        try:
            if what == "each_block":
                assert sum(1 for _ in store.each_block()) >= N_BLOCKS - 20
            elif what == "find_keys":
                store.find_keys("5f3a09c2")
            else:
                assert len(getattr(store, what)()) >= N_BLOCKS // BLOCKS_EACH - 3
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < {"each_block": 4 << 20, "find_keys": 1 << 20}.get(what, (1 << 20) + 100 * N_BLOCKS)


@pytest.mark.parametrize("what", ["owners", "ls", "find_keys", "forget", "namespaces"])
def test_one_conversation_is_found_without_reading_all_blocks(large: Path, what: str) -> None:
    """Every query of these searches an index; none scans the tables that have a row for each block."""
    with open_store(large) as store:
        disk = store._background.disk
        assert disk is not None
        seen: list[str] = []
        connect = disk.index._connect
        disk.index._connect = lambda: traced(connect(), seen)  # type: ignore[method-assign]
        call = {"ls": lambda: store.ls(owner=name_of(4)), "find_keys": lambda: store.find_keys("5f3a09c2")}
        call |= {"forget": lambda: store.forget(name_of(6)), "owners": store.owners, "namespaces": store.namespaces}
        call[what]()
        plans = []
        with disk.index.read() as view:
            for sql in seen:
                if sql.lstrip().startswith(("SELECT", "WITH")):
                    plans += [row[3] for row in view.sql.execute(f"EXPLAIN QUERY PLAN {sql}")]
        assert plans and not [plan for plan in plans if plan.startswith("SCAN") and plan.split()[1] in ("block", "owner")], (
            plans
        )


def traced(connection, seen):  # type: ignore[no-untyped-def]
    connection.set_trace_callback(seen.append)
    return connection


def test_usages_of_the_newest_blocks_are_those_blocks_and_no_others(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        put(store, [1, 2, 3, 4, 5, 6], "ann")
        keys = put(store, [7, 8, 9, 10], "bob")
        store.touch(keys, owner="ann")
        store.flush()
        found = {newest: sorted((one.owners, one.n_blocks) for one in store.usages(newest)) for newest in (0, 1, 3, 5, 6, None)}
    both, ann = (("ann", "bob"), 2), ("ann",)
    assert found == {
        0: [],
        1: [(("ann", "bob"), 1)],
        3: [(ann, 1), both],
        5: [(ann, 3), both],
        6: [(ann, 3), both],
        None: [(ann, 3), both],
    }


def test_owners_are_found_by_their_beginning_and_their_keys(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        owned = {
            name: put(store, [number, 1, number, 2], name)
            for number, name in enumerate(["a", "ab", "abc", "b", "ä\U0010ffff", "äz"])
        }
        assert store.owners("ab") == ["ab", "abc"]
        assert store.owners("a") == ["a", "ab", "abc"]
        assert store.owners("ä") == sorted(["ä\U0010ffff", "äz"])
        assert (store.owners("c"), store.owners("abcd"), len(store.owners()), store.n_blocks()) == ([], [], 6, 12)
        assert {name: store.keys(name) for name in owned} == {name: [key.hex() for key in keys] for name, keys in owned.items()}
        assert store.keys("nobody") == []


def test_a_pin_does_not_wait_for_a_check_of_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path) as store:
        keys = put(store, [1, 2], "ann")
    checked = list[object]()
    monkeypatch.setattr("edge.kv.background.check_opened", checked.append)
    with open_store(tmp_path, is_checked=False) as store:
        store.pin(keys[0])
        assert store.flush(60.0) and [info.is_pinned for info in store.ls()] == [True]
        assert not checked
        put(store, [3, 4], "ann")
        assert len(checked) == 1
