"""Damaged block files (10,000 in `make prove`): each is found, dropped and logged once; none gives wrong bytes."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.errors import StorageError
from edge.kv.blocks import fingerprint
from edge.kv.store import BlockRef, BlockStore, GcReport, Match, StoreOptions
from tests.prove import proof_size

pytestmark = pytest.mark.prove
MODEL = fingerprint({"weights": "a"})
N_MUTATED = proof_size(1_000, 10_000)
N_ROWS = 250
N_INDEX_ROWS = 80
N_INDEXES = proof_size(5, 25)


def payload_of(tokens: list[int]) -> bytes:
    digest = hashlib.sha256(repr(tokens).encode()).digest()
    return digest * (1 + digest[0] % 8)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Callable[..., BlockStore]]:
    opened: list[BlockStore] = []

    def make(name: str, *, encrypt: bool) -> BlockStore:
        opened.append(
            BlockStore(tmp_path / name, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, encrypt=encrypt, sync=False))
        )
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def fill(store: BlockStore, n_rows: int = N_ROWS) -> None:
    """Rows of two blocks: one to be damaged, and one above or below it."""
    for row in range(n_rows):
        parent, tokens = None, list[int]()
        for start in (0, 3):
            tokens += [row, start, 7]
            parent = store.put(
                parent, tokens[start:], payload_of(tokens), fingerprint=MODEL, namespace="ns", start=start, prefill_ms=1.0
            )
    assert store.flush(60.0)


class Mutations:
    """Ways to damage a block file. Each changes the file at `path` and returns its name."""

    def __init__(self, rng: random.Random, store: BlockStore, other: BlockStore) -> None:
        self.rng, self.store = rng, store
        self.foreign = sorted(path.read_bytes() for path in other.directory.glob("blocks/*/*"))

    def apply(self, path: Path, victim: Path) -> str:
        """`victim` is the file of another block that is still there and may lend its bytes."""
        kind = self.rng.choice(
            [self.flip_a_bit] * 6 + [self.cut_off] * 3 + [self.make_longer, self.swap, self.change_bytes, self.fill_with_zeros]
            + [self.put_foreign, self.put_noise, self.remove, self.empty, self.put_a_directory, self.put_a_link, self.forbid]
        )  # fmt: skip
        return kind(path, victim)

    def flip_a_bit(self, path: Path, victim: Path) -> str:
        data = bytearray(path.read_bytes())
        data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(data)
        return "flipped bit"

    def change_bytes(self, path: Path, victim: Path) -> str:
        data = bytearray(path.read_bytes())
        at = self.rng.randrange(len(data) - 8)
        data[at : at + 8] = bytes(byte ^ self.rng.randint(1, 255) for byte in data[at : at + 8])
        path.write_bytes(data)
        return "changed bytes"

    def cut_off(self, path: Path, victim: Path) -> str:
        os.truncate(path, self.rng.randrange(1, path.stat().st_size))
        return "cut off"

    def make_longer(self, path: Path, victim: Path) -> str:
        with path.open("ab") as file:
            file.write(self.rng.randbytes(self.rng.randint(1, 100)))
        return "longer"

    def swap(self, path: Path, victim: Path) -> str:
        path.write_bytes(victim.read_bytes())  # the other one stays right: what counts is that this one is found
        return "bytes of another block"

    def fill_with_zeros(self, path: Path, victim: Path) -> str:
        size = path.stat().st_size
        keep = self.rng.randrange(size)
        path.write_bytes(path.read_bytes()[:keep] + bytes(size - keep))
        return "zeros at the end" if path.stat().st_size == size else "?"

    def put_foreign(self, path: Path, victim: Path) -> str:
        path.write_bytes(self.rng.choice(self.foreign))
        return "block of another store"

    def put_noise(self, path: Path, victim: Path) -> str:
        path.write_bytes(self.rng.randbytes(self.rng.randrange(2000)))
        return "noise"

    def remove(self, path: Path, victim: Path) -> str:
        path.unlink()
        return "missing"

    def empty(self, path: Path, victim: Path) -> str:
        path.write_bytes(b"")
        return "empty"

    def put_a_directory(self, path: Path, victim: Path) -> str:
        path.unlink()
        path.mkdir()
        return "directory"

    def put_a_link(self, path: Path, victim: Path) -> str:
        content = path.read_bytes()
        path.unlink()
        target = self.store.directory / "target"
        target.write_bytes(content)  # the right bytes, but where anybody may have put them
        path.symlink_to(target)
        return "link"

    def forbid(self, path: Path, victim: Path) -> str:
        path.chmod(0)
        if os.access(path, os.R_OK):  # root reads it all the same
            path.unlink()
        return "forbidden"


def path_of(store: BlockStore, ref: BlockRef) -> Path:
    return store.directory / "blocks" / ref.key.hex()[:2] / ref.key.hex()[2:]


def rows_of(store: BlockStore, n_rows: int = N_ROWS) -> list[list[BlockRef]]:
    return [list(store.match(MODEL, "ns", [row, 0, 7, row, 3, 7]).blocks) for row in range(n_rows)]


@pytest.mark.parametrize(("encrypt", "seed"), [(False, 1), (True, 2)])
def test_no_mutated_file_gives_wrong_bytes(
    stores: Callable[..., BlockStore], caplog: pytest.LogCaptureFixture, encrypt: bool, seed: int
) -> None:
    rng = random.Random(seed)
    store, other = stores("kv", encrypt=encrypt), stores("other", encrypt=encrypt)
    fill(other)
    mutations = Mutations(rng, store, other)
    counts: Counter[str] = Counter()
    caplog.set_level(logging.WARNING, "edge.kv")
    while counts.total() < N_MUTATED // 2:
        fill(store)  # what was dropped is computed, and stored, again
        rows = rows_of(store)
        assert all(len(row) == 2 for row in rows)
        files = [path_of(store, ref) for row in rows for ref in row]
        for number, row in enumerate(rows):
            at = rng.randrange(2)
            ref = row[at]
            path = path_of(store, ref)
            while (victim := rng.choice(files)) == path or not victim.is_file():
                continue
            before = path.read_bytes()
            kind = mutations.apply(path, victim)
            if path.is_file() and not path.is_symlink() and path.read_bytes() == before:
                continue  # cutting off nothing, zeros over zeros
            counts[kind] += 1
            caplog.clear()
            tokens = [number, 0, 7, number, 3, 7]
            for place, each in enumerate(row):
                payload = store.read(each)
                if place < at:
                    assert payload is not None and bytes(payload) == payload_of(tokens[: place * 3 + 3])
                else:
                    assert payload is None, (kind, place)
            assert [record.levelname for record in caplog.records] == ["WARNING"], (kind, caplog.text)
            assert ref.key.hex()[:12] in caplog.text
            left = store.match(MODEL, "ns", tokens)
            assert (left.n_tokens, len(left.blocks)) == (3 * at, at), kind
            caplog.clear()
            assert store.read(ref) is None and not caplog.records
            assert store.flush(60.0)  # where others were busy, the thread removes it
            assert not os.path.lexists(path), kind
    assert len(counts) == 13 and min(counts.values()) > N_MUTATED // 200, counts
    assert store.problem is None
    assert store.match(MODEL, "other", [0, 0, 7]) == Match()


@pytest.mark.parametrize(("encrypt", "seed"), [(False, 5), (True, 6)])
def test_an_index_is_rebuilt_from_files_with_damaged_headers(tmp_path: Path, encrypt: bool, seed: int) -> None:
    """The scan believes headers: whatever they say, it comes to an end, and reading finds out."""
    rng = random.Random(seed)
    directory = tmp_path / "kv"

    def open_store() -> BlockStore:
        return BlockStore(
            directory, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, encrypt=encrypt, sync=False, retry_s=0.0)
        )

    with open_store() as store:
        fill(store)
    for _ in range(proof_size(1, 6)):
        files = sorted(directory.glob("blocks/*/*"))
        for path in rng.sample(files, 300):
            data = bytearray(path.read_bytes())
            for _ in range(rng.choice([1, 1, 2, 20])):
                data[rng.randrange(192)] = rng.randrange(256)
            path.write_bytes(data)
        for path in directory.glob("index-*"):
            path.unlink()
        with open_store() as store:
            assert store.flush(60.0) and store.problem is None
            for row in range(N_ROWS):
                tokens = [row, 0, 7, row, 3, 7]
                for ref in store.match(MODEL, "ns", tokens).blocks:
                    payload = store.read(ref)
                    assert payload is None or bytes(payload) == payload_of(tokens[: ref.start + ref.n_tokens])
            assert store.gc() == GcReport()
            store.verify()
            assert store.problem is None and store.gc() == GcReport()
            fill(store)
            assert all(len(row) == 2 for row in rows_of(store))


def damage_index(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    kind = rng.randrange(4)
    if kind == 0:  # bits that rot
        for _ in range(rng.choice([1, 3, 30, 300])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:  # a sector that was never written
        at = rng.randrange(0, len(data), 512)
        data[at : at + 512] = bytes(512)
    elif kind == 2:
        del data[rng.randrange(len(data)) :]
    else:  # two pages in each other's place
        one, two = (rng.randrange(0, len(data), 8192) for _ in range(2))
        data[one : one + 8192], data[two : two + 8192] = data[two : two + 8192], data[one : one + 8192]
    path.write_bytes(data)


@pytest.mark.parametrize(("encrypt", "seed"), [(False, 3), (True, 4)])
def test_a_damaged_index_gives_no_wrong_bytes_and_heals(tmp_path: Path, encrypt: bool, seed: int) -> None:
    rng = random.Random(seed)
    pristine = tmp_path / "pristine"
    with BlockStore(pristine, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, encrypt=encrypt, sync=False)) as store:
        fill(store, N_INDEX_ROWS)
    n_found = 0
    for number in range(N_INDEXES):
        directory = tmp_path / f"kv{number}"
        shutil.copytree(pristine, directory)
        damage_index(next(directory.glob("index-*.sqlite")), rng)
        with BlockStore(
            directory, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, encrypt=encrypt, sync=False, retry_s=0.0)
        ) as store:
            for row in rng.sample(range(N_INDEX_ROWS), 40):
                tokens = [row, 0, 7, row, 3, 7]
                match = store.match(MODEL, "ns", tokens)
                for ref in match.blocks:
                    payload = store.read(ref)
                    assert payload is None or bytes(payload) == payload_of(tokens[: ref.start + ref.n_tokens])
                    n_found += payload is not None
            fill(store, N_INDEX_ROWS)
            assert store.flush(60.0)
            for ask in (store.stats, store.ls, store.verify, store.gc, store.gc):
                try:
                    ask()
                except StorageError:
                    assert store.flush(60.0)
            assert store.flush(60.0) and store.problem is None
            fill(store, N_INDEX_ROWS)
            assert all(len(row) == 2 for row in rows_of(store, N_INDEX_ROWS))
            assert store.stats().n_blocks == 2 * N_INDEX_ROWS == len(store.ls())
            assert store.gc() == GcReport()
        shutil.rmtree(directory)
    assert n_found > 12 * N_INDEXES
