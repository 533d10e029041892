"""Encryption that is turned on while other processes use the store: nothing readable is left, whoever wrote it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path

from edge.kv.blocks import fingerprint
from edge.kv.store import BlockStore, StoreOptions

MODEL = fingerprint({"weights": "a"})
TOKENS = [0x41424344, 0x45464748, 0x494A4B4C]
SECRET = b"ABCDEFGHIJKL"  # the tokens as they are stored


def open_store(directory: Path, *, encrypt: bool) -> BlockStore:
    return BlockStore(directory, StoreOptions(1 << 24, 0, encrypt=encrypt, sync=False, retry_s=0.0))


def put(store: BlockStore, number: int) -> None:
    store.put(None, [*TOKENS, number], SECRET * 10, fingerprint=MODEL, namespace="", start=0)
    assert store.flush(60.0)


def n_leaks(directory: Path) -> int:
    return sum(SECRET in path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_a_process_that_was_started_before_encrypts_too(tmp_path: Path) -> None:
    old = open_store(tmp_path, encrypt=False)
    put(old, 1)
    assert n_leaks(tmp_path)
    new = open_store(tmp_path, encrypt=True)
    assert new.flush(60.0)
    for number in range(2, 6):
        put(old, number)
        put(old, number)
        put(new, number + 100)
        assert old.match(MODEL, "", [*TOKENS, number]).n_tokens == 4, "it finds what it stores"
        assert new.match(MODEL, "", [*TOKENS, number]).n_tokens == 4, "and so do others"
        assert all(info.is_encrypted for info in new.ls())
    old.close()
    new.close()
    assert n_leaks(tmp_path) == 0


def test_encryption_may_be_turned_off_again(tmp_path: Path) -> None:
    with open_store(tmp_path, encrypt=True) as store:
        put(store, 1)
    with open_store(tmp_path, encrypt=False) as store:
        put(store, 2)
        assert {info.is_encrypted for info in store.ls()} == {True, False}
    with open_store(tmp_path, encrypt=True) as store:
        assert store.flush(60.0)
        assert [info.is_encrypted for info in store.ls()] == [True]
    assert n_leaks(tmp_path) == 0


def test_while_several_processes_write(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from tests.faults.test_kv_encryption import open_store, put
        store = open_store(Path(sys.argv[1]), encrypt=False)
        put(store, 10_000)
        print("ready", flush=True)
        end, number = time.monotonic() + 3.0, 0
        while time.monotonic() < end:
            put(store, int(sys.argv[2]) * 1000 + number % 300)
            number += 1
        store.close()
        """
    )
    here = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    stack = ExitStack()
    writers = [
        stack.enter_context(
            subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(n)], env=env, stdout=subprocess.PIPE)
        )
        for n in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    with stack, open_store(tmp_path, encrypt=True) as store:
        assert store.flush(60.0)
        assert [writer.wait(120) for writer in writers] == [0, 0]
        assert store.flush(60.0) and all(info.is_encrypted for info in store.ls()) and store.stats().n_blocks > 10
    assert n_leaks(tmp_path) == 0
