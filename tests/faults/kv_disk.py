"""Disk tests of the block store, run in a process of their own. Prints one JSON object.

fill DIRECTORY        the directory is a disk of 4 MB: put until it is full and beyond, then free some space
limit DIRECTORY       the same with a limit on the size of files instead (RLIMIT_FSIZE)
readonly DIRECTORY    a store that is there, but may not be written by this user (nobody, where root runs the test)
opened-CALL DIRECTORY the directory is a disk of 48 MB that is full before the store is opened and CALL called
uncreated-CALL DIRECTORY the same with a disk that may hold no more files instead
quota-LIMIT DIRECTORY a quota of bytes or files (LIMIT), of quota.c, is used up while the store is open
unopened-LIMIT DIRECTORY the same, before it is opened
unreadable DIRECTORY  a directory that may not even be looked into
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: F401  before this process may read less

from edge.kv.blocks import fingerprint
from edge.kv.disk import Disk
from edge.kv.store import BlockStore, StoreOptions

MODEL = fingerprint({"weights": "a"})
scale = 1


def payload_of(tokens: list[int]) -> bytes:
    digest = hashlib.sha256(repr(tokens).encode()).digest()
    return digest * (500 + digest[0] * 8) * scale  # 16 to 82 kB


def put(store: BlockStore, token: int) -> bool:
    """Store a block of two tokens; whether it is there afterwards."""
    tokens = [token, 7]
    store.put(None, tokens, payload_of(tokens), fingerprint=MODEL, namespace="ns", start=0)
    assert store.flush(60.0)
    return store.match(MODEL, "ns", tokens).n_tokens == 2


def check(store: BlockStore, n_tokens: int) -> dict[str, int]:
    """Read everything that is found: how many blocks are right, wrong, gone."""
    counts = {"right": 0, "wrong": 0, "gone": 0}
    for token in range(n_tokens):
        match = store.match(MODEL, "ns", [token, 7])
        payload = store.read(match.blocks[0]) if match.blocks else None
        kind = "gone" if payload is None else "right" if bytes(payload) == payload_of([token, 7]) else "wrong"
        counts[kind] += 1
    return counts


def fill(directory: Path, ballast: Path | None) -> dict[str, object]:
    store = BlockStore(directory, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, retry_s=0.0))
    result: dict[str, object] = {"opened": store.problem}
    problems: list[str | None] = []
    n_put = 0
    while len(problems) < 20 and n_put < 500:
        if not put(store, n_put):
            problems.append(store.problem)
        n_put += 1
    result |= {"n_put": n_put, "problems": sorted({str(problem) for problem in problems}), "while_full": check(store, n_put)}
    other = BlockStore(directory, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, retry_s=0.0))
    result |= {"other": other.problem, "other_reads": check(other, n_put)["right"]}
    other.close()
    if ballast is not None:
        ballast.unlink()
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.match(MODEL, "ns", [0])  # a store that could not be opened tries again when it is asked something
    assert store.flush(60.0)
    result |= {"after": put(store, 1000), "after_problem": store.problem, "at_last": check(store, n_put)}
    result["report"] = [store.gc().n_indexed, store.gc().n_removed, len(store.verify().damaged)]
    store.close()
    result["left"] = len(list(directory.glob("tmp/*")))
    return result


def become_nobody() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def forbidden(directory: Path, mode: int) -> dict[str, object]:
    with BlockStore(directory / "warm", StoreOptions(budget_bytes=1 << 24, min_free_bytes=0)) as store:
        assert put(store, 1)  # everything is imported now: nobody may not be allowed to
    here = directory / "kv"
    here.mkdir()
    if os.geteuid() == 0:
        for path in (directory, here):
            os.chown(path, 65534, 65534)
    become_nobody()
    with BlockStore(here, StoreOptions(budget_bytes=1 << 24, min_free_bytes=0)) as store:
        assert put(store, 1)
    opened = BlockStore(here, StoreOptions(budget_bytes=1 << 24, min_free_bytes=0, retry_s=0.0))
    everything = [here, *here.rglob("*")]
    for path in sorted(everything, reverse=True):
        path.chmod(mode if path.is_dir() else mode & 0o444)
    was_open = {"stored": put(opened, 2), "checked": check(opened, 2), "problem": opened.problem}
    opened.close()
    store = BlockStore(here, StoreOptions(budget_bytes=1 << 24, min_free_bytes=0, retry_s=0.0))
    result: dict[str, object] = {"problem": store.problem, "stored": put(store, 2), "checked": check(store, 3)}
    store.touch([b"k" * 32])
    store.pin(b"k" * 32)
    with store.lease(store.match(MODEL, "ns", [1, 7])):
        pass
    for name in ("stats", "verify", "gc", "clear"):
        try:
            getattr(store, name)()
            result[name] = "worked"
        except Exception as error:
            result[name] = type(error).__name__
    result |= {"was_open": was_open, "mode": here.stat().st_mode & 0o777}
    here.chmod(0o700)
    for path in sorted(everything):
        path.chmod(0o700 if path.is_dir() else 0o600)
    store.match(MODEL, "ns", [0])
    assert store.flush(60.0)
    result |= {"after": put(store, 3), "after_problem": store.problem, "at_last": check(store, 2)}
    store.close()
    return result


def fill_up(directory: Path, *, with_files: bool) -> None:
    """Fill the disk to the last byte, or with as many files as it may hold."""
    with suppress(OSError), (directory / "ballast").open("wb", buffering=0) as file:
        while not with_files and file.write(bytes(4096)):
            pass
        for number in range(1_000_000):
            (directory / f"{number}").touch()


def opened_full(directory: Path, call: str, *, with_files: bool) -> dict[str, object]:
    """Fill the disk with blocks and other files, then open the store and call one of its methods."""
    options = StoreOptions(budget_bytes=24 << 20, min_free_bytes=0, retry_s=0.0)
    n_put = 500
    with BlockStore(directory / "kv", options) as store:
        for token in range(n_put):
            put(store, token)
        result: dict[str, object] = {"before": store.stats().n_blocks}
    fill_up(directory, with_files=with_files)
    try:
        Disk(directory / "kv", options).close()
        result["fails"] = False
    except (OSError, sqlite3.Error):
        result["fails"] = True
    with BlockStore(directory / "kv", options) as store:
        result["problem"] = store.problem
        getattr(store, call)(*(["somebody"] if call == "forget" else []))
        assert store.flush(60.0)
        result |= {"after": store.stats().n_blocks, "right": check(store, n_put)["right"]}
    return result | {"free": shutil.disk_usage(directory).free}


def at_quota(directory: Path, limit: str, *, opens: bool) -> dict[str, object]:
    """Use up a quota, put more blocks, and empty the store."""
    os.putenv("QUOTA_DIR", str(directory))
    options = StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, retry_s=0.0)
    store = BlockStore(directory / "kv", options)
    n_before = sum(put(store, token) for token in range(160))
    if opens:
        store.close()
    found = [path.stat() for path in directory.rglob("*") if path.is_file()]
    used = {"bytes": sum(state.st_blocks * 512 for state in found), "files": len(found)}
    os.putenv(f"QUOTA_{limit.upper()}", str(used[limit]))
    if opens:
        store = BlockStore(directory / "kv", options)
        assert store.flush(60.0)
    result: dict[str, object] = {"before": n_before, "problem": store.problem}
    result |= {"stored": sum(put(store, token) for token in range(1000, 1040)), "checked": check(store, 1040)}
    store.forget("somebody")
    result |= {"cleared": store.clear(), "after": put(store, 2000), "after_problem": store.problem}
    store.close()
    return result | {"left": len(list(directory.glob("kv/tmp/*")))}


def main() -> None:
    global scale
    what, directory = sys.argv[1], Path(sys.argv[2])
    if what == "fill":
        ballast = directory / "ballast"
        ballast.write_bytes(bytes(1 << 20))
        result = fill(directory / "kv", ballast)
    elif what.startswith(("opened-", "uncreated-")):
        kind, _, call = what.partition("-")
        result = opened_full(directory, call, with_files=kind == "uncreated")
    elif what.startswith(("quota-", "unopened-")):
        kind, _, limit = what.partition("-")
        result = at_quota(directory, limit, opens=kind == "unopened")
    elif what == "limit":
        scale = 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (800_000, resource.RLIM_INFINITY))
        result = fill(directory / "kv", None)
    else:
        result = forbidden(directory, 0o500 if what == "readonly" else 0o000)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
