"""Limits of a block store beside its budget: age, pins that end, budgets of models, bytes written a day."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.backends.fake import FakeBackend
from edge.kv.blocks import fingerprint
from edge.kv.cache import KVCache
from edge.kv.disk import Disk
from edge.kv.limits import Limits
from edge.kv.store import BlockStore, StoreOptions

BIG, SMALL = fingerprint({"weights": "big"}), fingerprint({"weights": "small"})
DAY = 86_400.0
KIB = 1024
BLOCK = 8 * KIB
"""Disk of a block here: 5,000 bytes of payload in a file of two disk blocks."""
Make = Callable[..., BlockStore]


class Clock:
    """A clock and a timer that tests move on."""

    def __init__(self) -> None:
        self.now = 20_000 * DAY

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Make]:
    opened: list[BlockStore] = []

    def open_one(**options: object) -> BlockStore:
        values = {"budget_bytes": 1 << 24, "min_free_bytes": 0, "sync": False, "clock": clock, "timer": clock} | options
        opened.append(BlockStore(tmp_path / "kv", StoreOptions(**values)))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


def put(
    store: BlockStore, n: int, *, seed: int = 0, parent: bytes | None = None, start: int = 0, model: bytes = BIG,
    reused: bool = True, owner: str | None = None,
) -> list[bytes]:  # fmt: skip
    """Put a chain of blocks of 4 tokens; those of another seed begin otherwise. Returns the keys of those that were taken."""
    keys: list[bytes] = []
    for number in range(n):
        tokens = [seed * 1000 + start + 4 * number + i for i in range(4)]
        key = store.put(
            keys[-1] if keys else parent, tokens, os.urandom(5000), fingerprint=model, namespace="",
            start=start + 4 * number, is_reused=reused, owner=owner,
        )  # fmt: skip
        if key is None:
            break
        keys.append(key)
    assert store.flush(60.0)
    return keys


def there(store: BlockStore) -> set[str]:
    return {block.key for block in store.ls()}


def names(keys: list[bytes]) -> set[str]:
    return {key.hex() for key in keys}


# -- age


def test_what_nobody_used_for_long_is_gone_at_the_next_opening(make: Make, clock: Clock) -> None:
    store = make(max_age_s=3 * DAY)
    old, used = put(store, 5, seed=1, owner="a"), put(store, 5, seed=2)
    clock.now += 2 * DAY
    store.touch(used[:3])
    assert store.flush(60.0)
    store.close()
    clock.now += 2 * DAY
    store = make(max_age_s=3 * DAY)
    assert store.flush(60.0)
    assert there(store) == names(used[:3])
    assert not (names(old) & there(store))
    assert len(list(store.directory.glob("blocks/*/*"))) == 3
    assert store.owners() == []


def test_it_goes_while_the_process_runs_and_does_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("disk", "background"):
        monkeypatch.setattr(f"edge.kv.{module}.EXPIRE_EVERY_S", 0.05)
    store = make(max_age_s=0.5, clock=time.time, timer=time.monotonic)
    put(store, 40)
    until = time.monotonic() + 30
    while there(store) and time.monotonic() < until:
        time.sleep(0.05)
    assert there(store) == set()
    assert put(store, 2), "it goes on"


def test_what_is_pinned_in_use_or_before_something_newer_stays(make: Make, clock: Clock) -> None:
    store = make(max_age_s=DAY)
    pinned, leased, long, free = (put(store, 4, seed=seed) for seed in range(4))
    store.pin(pinned[1])
    assert store.flush(60.0)
    with store.lease(store.match(BIG, "", list(range(1000, 1012)))):
        clock.now += 2 * DAY
        newer = put(store, 1, seed=2, parent=long[-1], start=16)
        store.gc()
        assert there(store) == names([*pinned[:2], *leased[:3], *long, *newer])
        assert not (names(free) & there(store))
    assert store.flush(60.0)
    store.gc()
    assert there(store) == names([*pinned[:2], *long, *newer])


def test_clocks_that_jump_delete_nothing_that_is_new(make: Make, clock: Clock) -> None:
    store = make(max_age_s=3 * DAY)
    clock.now += 400 * DAY
    future = put(store, 3, seed=1)
    clock.now -= 400 * DAY
    store.gc()
    assert there(store) == names(future), "they count as used now"
    clock.now += 4 * DAY
    store.gc()
    assert there(store) == set()
    put(store, 3)
    clock.now = float("nan")
    store.gc()
    assert store.problem is None


def test_an_index_that_is_built_again_does_not_make_blocks_younger(make: Make, clock: Clock) -> None:
    store = make()
    keys = put(store, 3)
    store.close()
    for path in store.directory.glob("blocks/*/*"):
        os.utime(path, (clock.now, clock.now))
    for path in store.directory.glob("index*"):
        path.unlink()
    clock.now += 2 * DAY
    store = make(max_age_s=3 * DAY)
    assert store.flush(60.0)
    assert there(store) == names(keys)
    clock.now += 2 * DAY
    store.gc()
    assert there(store) == set()


def test_thousands_of_old_blocks_go_at_once(make: Make, clock: Clock) -> None:
    store = make(max_age_s=DAY)
    for seed in range(3):
        put(store, 200, seed=seed)
    clock.now += 2 * DAY
    started = time.monotonic()
    store.gc()
    assert there(store) == set()
    assert time.monotonic() - started < 20


# -- pins that end


def test_a_pin_ends(make: Make, clock: Clock) -> None:
    store = make(max_age_s=DAY)
    ends, stays = put(store, 2, seed=1), put(store, 2, seed=2)
    for key in ends:
        store.pin(key, clock.now + 5 * DAY)
    for key in stays:
        store.pin(key, clock.now + 5 * DAY)
        store.pin(key)  # for good now
    assert store.flush(60.0)
    shown = {block.key: (block.is_pinned, block.pinned_until) for block in store.ls()}
    assert [shown[key.hex()] for key in ends] == [(True, clock.now + 5 * DAY)] * 2
    assert [shown[key.hex()] for key in stays] == [(True, None)] * 2
    store.close()
    clock.now += 4 * DAY
    store = make(max_age_s=DAY)
    assert store.flush(60.0)
    assert there(store) == names([*ends, *stays])
    clock.now += 2 * DAY
    store.gc()
    assert there(store) == names(stays)


def test_a_pin_that_is_taken_away_does_not_end_a_later_one(make: Make, clock: Clock) -> None:
    store = make()
    (key,) = put(store, 1)
    store.pin(key, clock.now + DAY)
    assert store.flush(60.0)
    store.unpin(key)
    assert store.flush(60.0)
    store.pin(key)
    assert store.flush(60.0)
    clock.now += 2 * DAY
    store.gc()
    assert [block.is_pinned for block in store.ls()] == [True]


# -- budgets of models


def test_a_small_budget_of_one_model_leaves_the_rest_to_others(make: Make) -> None:
    store = make(budget_bytes=100 * BLOCK, model_budgets={"small": 10 * BLOCK})
    store.name_model(BIG, "big")
    store.name_model(SMALL, "small")
    big = [put(store, 1, seed=seed, model=BIG)[0] for seed in range(60)]
    small = [put(store, 1, seed=seed, model=SMALL)[0] for seed in range(40)]
    assert there(store) == names([*big, *small[-10:]])
    used = {name: size for _, name, size in ((model, store.stats().names[model], n) for model, _, _, n in store.stats().spaces)}
    assert used == {"big": 60 * BLOCK, "small": 10 * BLOCK}


def test_all_variants_of_a_model_share_its_budget(make: Make) -> None:
    store = make(model_budget_bytes=10 * BLOCK)
    variants = [fingerprint({"kv": kind}) for kind in ("f16", "q8_0", "exact")]
    for variant in variants:
        store.name_model(variant, "small")
    for seed in range(24):
        put(store, 1, seed=seed, model=variants[seed % 3])
    assert sum(size for *_, size in store.stats().spaces) == 10 * BLOCK
    for seed in range(15):
        put(store, 1, seed=seed, model=BIG)
    assert sum(size for *_, size in store.stats().spaces) == 20 * BLOCK, "a model without a name has its own"


def test_a_budget_that_was_made_smaller_holds_at_the_next_opening(make: Make) -> None:
    store = make()
    store.name_model(SMALL, "small")
    pinned = put(store, 5, seed=1, model=SMALL)
    store.pin(pinned[-1])
    put(store, 20, seed=2, model=SMALL)
    put(store, 20, seed=3, model=BIG)
    store.close()
    store = make(model_budgets={"small": 10 * BLOCK})
    assert store.flush(60.0)
    assert {model: size // BLOCK for model, _, _, size in store.stats().spaces} == {BIG.hex(): 20, SMALL.hex(): 10}
    store.close()
    store = make(model_budgets={"small": 0})
    assert store.flush(60.0)
    assert there(store) >= names(pinned), "pinned blocks stay"
    assert put(store, 3, seed=9, model=SMALL) and len(there(store)) == 25
    assert store.stats().n_dropped == 3


# -- bytes a day


def test_a_days_limit_holds_across_stores_and_openings(make: Make, clock: Clock) -> None:
    limit = 20 * BLOCK
    first, second = make(max_written_bytes=limit), make(max_written_bytes=limit)
    for seed in range(6):
        put((first, second)[seed % 2], 2, seed=seed)
    assert first.stats().written_bytes == second.stats().written_bytes == 12 * BLOCK
    first.close()
    first = make(max_written_bytes=limit)
    for seed in range(6, 20):
        put((first, second)[seed % 2], 2, seed=seed)
    stats = first.stats()
    assert limit - 2 * BLOCK < stats.written_bytes <= limit
    assert stats.n_blocks * BLOCK == stats.written_bytes
    assert put(second, 1, seed=0)[0].hex() in there(first), "what is stored already costs nothing"
    assert first.problem is None
    clock.now += DAY
    assert len(put(first, 3, seed=50)) == 3
    assert first.stats().written_bytes == 3 * BLOCK


def test_put_asks_nothing_of_the_disk_at_the_limit_and_on_a_new_day(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(max_written_bytes=4 * BLOCK)
    keys = put(store, 3, seed=1)
    asking = list[str]()

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*args: Any) -> Any:
            asking.append(f"{real.__name__} by {threading.current_thread().name}")
            return real(*args)

        return ask

    for owner, name in ((Limits, "_try"), (Disk, "has"), (Disk, "match")):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    assert [len(put(store, 4, seed=seed)) for seed in (1, 2)] == [4, 4]
    clock.now += DAY
    assert len(put(store, 2, seed=3)) == 2
    assert {by for by in asking if not by.endswith("by edge-kv")} == set()
    assert there(store) >= names(keys)


def test_from_half_of_it_on_only_what_was_reused_is_written(make: Make) -> None:
    store = make(max_written_bytes=20 * BLOCK)
    for seed in range(30):
        put(store, 1, seed=seed, reused=False)
    assert 8 <= len(there(store)) <= 10
    for seed in range(30, 60):
        put(store, 1, seed=seed, reused=True)
    assert 18 <= len(there(store)) <= 20


def test_a_second_turn_stores_what_it_reuses(make: Make) -> None:
    """Through the cache: beyond half of the limit the first turn of a prompt is not stored, its second is."""
    store = make(max_written_bytes=400 * KIB)
    backend = FakeBackend(n_ctx=8192, n_seq=2, chunk_size=64)
    cache = KVCache(backend, store, model=BIG)

    def turn(prompt: list[int], hint: str = "disk") -> int:
        taken = cache.acquire(prompt, hint=hint)  # type: ignore[arg-type]
        assert taken is not None
        slot, _ = taken
        while slot.n_tokens < len(prompt):
            chunk = prompt[slot.n_tokens : slot.n_tokens + 64]
            backend.prefill(slot.seq_id, chunk)
            cache.note_prefill(slot, chunk, 1.0)
        cache.release(slot)
        assert store.flush(60.0)
        return store.match(BIG, "", prompt).n_tokens

    put(store, 26, seed=7)  # 208 KiB
    prompt = [n % 250 for n in range(600)]
    assert turn(prompt) == 0
    assert turn([*prompt, *range(100)]) == 600, "all that the first turn had, to the token"
    assert turn([n % 13 for n in range(300)], "keep") == 300, "asked for"
    backend.close()


@pytest.mark.parametrize("kind", ["garbage", "directory", "link", "another schema", "read-only"])
def test_a_file_of_counts_that_cannot_be_used_fails_nothing(make: Make, tmp_path: Path, kind: str) -> None:
    store = make()
    put(store, 2)
    store.close()
    path = store.directory / "limits.sqlite"
    if kind == "garbage":
        path.write_bytes(os.urandom(20_000))
    elif kind == "another schema":
        import sqlite3

        path.unlink()
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE written (x)")
        connection.commit()
        connection.close()
    elif kind != "read-only":
        path.unlink()
        path.mkdir() if kind == "directory" else path.symlink_to(tmp_path / "elsewhere")
    else:
        path.chmod(0o400)
    store = make(max_written_bytes=10 * BLOCK, max_age_s=DAY)
    for seed in range(10, 20):
        put(store, 2, seed=seed)
    assert store.problem is None
    assert store.stats().written_bytes <= 10 * BLOCK
    assert not (tmp_path / "elsewhere").exists()
    assert path.stat().st_mode & 0o077 == 0


def test_names_and_ends_of_foreign_types_are_ignored(tmp_path: Path) -> None:
    limits = Limits(tmp_path, StoreOptions(1 << 20))
    limits.name_model(BIG, "big")
    limits.set_ends([(b"k", 5.0)])
    assert limits._connection is not None
    limits._connection.execute("INSERT INTO model VALUES ('text', 5)")
    limits._connection.execute("INSERT INTO pin_end VALUES ('text', 'x')")
    assert limits.names() == {BIG: "big"}
    assert limits.ends() == {b"k": 5.0}
    limits.close()


_WRITER = """
import os, sys
from edge.kv.blocks import fingerprint
from edge.kv.store import BlockStore, StoreOptions
directory, seed, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with BlockStore(directory, StoreOptions(1 << 24, 0, max_written_bytes=limit, sync=False)) as store:
    print(flush=True)
    for n in range(40):
        tokens = [seed * 1000 + n, n]
        store.put(None, tokens, os.urandom(5000), fingerprint=fingerprint({"weights": "big"}), namespace="", start=0)
        store.flush(60.0)
"""


@pytest.mark.parametrize("is_killed", [False, True])
def test_processes_share_a_days_limit(tmp_path: Path, is_killed: bool) -> None:
    limit = 50 * BLOCK
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "kv")]
    writers = [
        subprocess.Popen([*command, str(seed), str(limit)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
        for seed in range(3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    if is_killed:
        time.sleep(0.2)
        writers[0].kill()
    for writer in writers:
        writer.communicate(timeout=120)
    with BlockStore(tmp_path / "kv", StoreOptions(1 << 24, 0, max_written_bytes=limit)) as store:
        store.gc()
        stats = store.stats()
    assert stats.n_blocks * BLOCK <= stats.written_bytes <= limit
    if not is_killed:
        assert stats.n_blocks == 50
