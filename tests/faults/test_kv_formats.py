"""Two versions of edge, with other formats of blocks and index, use one directory: neither harms the other."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edge.kv.blocks import fingerprint
from edge.kv.formats import format_suffix
from edge.kv.store import BlockStore, StoreOptions

MODEL = fingerprint({"weights": "a"})
KIB4 = 4096


def become(patch: pytest.MonkeyPatch, version: int) -> None:
    patch.setattr("edge.kv.blocks.FORMAT_VERSION", version)
    patch.setattr("edge.kv.index.SCHEMA_VERSION", version)


def open_store(directory: Path, budget_bytes: int = 1 << 24) -> BlockStore:
    store = BlockStore(directory, StoreOptions(budget_bytes=budget_bytes, min_free_bytes=0, sync=False, retry_s=0.0))
    assert store.flush(60.0) and store.problem is None
    return store


def put(store: BlockStore, *numbers: int, owner: str | None = None) -> None:
    for number in numbers:
        assert store.put(None, [number], b"%d" % number, fingerprint=MODEL, namespace="", start=0, owner=owner)
    assert store.flush(60.0) and store.problem is None


def found(store: BlockStore, *numbers: int) -> list[int]:
    refs = {number: store.match(MODEL, "", [number]).blocks for number in numbers}
    read = {number: store.read(ref[0]) for number, ref in refs.items() if ref}
    assert all(payload == b"%d" % number for number, payload in read.items())
    return list(read)


def n_files(directory: Path) -> int:
    return sum(path.is_file() for path in directory.glob("blocks*/*/*"))


def test_the_first_format_has_plain_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert format_suffix() == ""
    become(monkeypatch, 2)
    assert format_suffix() == "-2.2"


def test_each_finds_its_own_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for turn in range(3):
        for version in (1, 2, 3):
            become(monkeypatch, version)
            with open_store(tmp_path) as store:
                assert found(store, *range(10)) == list(range(10)) if turn else not found(store, *range(10))
                put(store, *range(10), owner="a")
                store.gc()
                assert store.stats().n_blocks == 10
    assert n_files(tmp_path) == 30 and len(list(tmp_path.glob("index-*.sqlite"))) == 3


def test_both_at_once(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import pytest
        from tests.faults.test_kv_formats import become, found, open_store, put
        version = int(sys.argv[2])
        become(pytest.MonkeyPatch(), version)
        with open_store(Path(sys.argv[1])) as store:
            for number in range(60):
                put(store, number, owner=str(number % 7))
                assert found(store, *range(number + 1)) == list(range(number + 1))
                if number % 20 == 19:
                    store.gc()
            assert not store.verify().damaged and store.stats().n_blocks == 60
        """
    )
    here = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(n)], env=env) for n in (1, 2)]
    assert [process.wait(300) for process in running] == [0, 0]
    assert len(list(tmp_path.glob("index-*.sqlite"))) == 2 and n_files(tmp_path) == 120


def test_they_share_the_budget_and_the_other_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path) as store:
        put(store, *range(20))
    become(monkeypatch, 2)
    with open_store(tmp_path, 25 * KIB4) as store:
        put(store, *range(5))
        assert n_files(tmp_path) == 25, "there is room for both"
        put(store, *range(5, 20))
        assert found(store, *range(20)) == list(range(20)) and n_files(tmp_path) <= 25
        put(store, *range(20, 40))
        assert n_files(tmp_path) <= 25 and found(store, *range(30, 40)) == list(range(30, 40))
    assert not list(tmp_path.glob("index-0*")), "the index of a format without blocks goes, too"
    become(monkeypatch, 1)
    with open_store(tmp_path, 25 * KIB4) as store:
        assert not found(store, *range(20))
        put(store, *range(10))
        assert n_files(tmp_path) <= 25 and found(store, *range(10)) == list(range(10))


def test_nobody_can_tell_whose_blocks_those_of_another_format_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path) as first:
        put(first, *range(5), owner="gone")
        become(monkeypatch, 2)
        with open_store(tmp_path) as second:
            put(second, *range(5), owner="gone")
            second.forget("gone")
            assert n_files(tmp_path) == 5, "they are in use"
        become(monkeypatch, 1)
        assert found(first, *range(5)) == list(range(5))
    become(monkeypatch, 2)
    with open_store(tmp_path) as second:
        second.forget("gone")
        assert n_files(tmp_path) == 0


def test_clear_deletes_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path) as store:
        put(store, *range(5))
    become(monkeypatch, 2)
    with open_store(tmp_path) as store:
        put(store, *range(3))
        assert store.clear() == 8 and n_files(tmp_path) == 0


def test_only_block_files_of_other_formats_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = tmp_path / "documents"
    (documents / "ab").mkdir(parents=True)
    precious = [documents / "ab" / ("c" * 62), tmp_path / "kv" / "blocks-9.9" / "ab" / "notes.txt"]
    with open_store(tmp_path / "kv") as store:
        put(store, *range(5))
    (tmp_path / "kv" / "blocks-9.9" / "ab").mkdir(parents=True)
    for path in precious:
        path.write_text("precious")
    (tmp_path / "kv" / "blocks-7.7").symlink_to(documents)
    (tmp_path / "kv" / "blocks-9.9" / "cd").symlink_to(documents / "ab")
    become(monkeypatch, 2)
    with open_store(tmp_path / "kv", 3 * KIB4) as store:
        put(store, *range(10))
        store.clear()
    assert all(path.read_text() == "precious" for path in precious)
