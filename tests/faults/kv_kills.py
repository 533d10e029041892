"""Kills processes that write to a block store, many times, and looks at what is left. Prints one JSON object.

kv_kills.py DIRECTORY N_KILLS SEED BUDGET_BLOCKS ENCRYPT

Every life is a fork of this process (so that 500 of them take seconds): it opens the store, writes chains of blocks, reads,
touches, leases and forgets, says after each flush what is on the disk now, and is killed with SIGKILL at a random moment.
Another fork then opens the store and checks all of it against what the blocks must contain.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: F401  loaded once, before the forks

from edge.kv.blocks import fingerprint, unpack_tokens
from edge.kv.disk import Disk
from edge.kv.rows import DISK_BLOCK_BYTES
from edge.kv.store import BlockStore, StoreOptions

MODEL = fingerprint({"weights": "a"})
CUT = 3


def payload_of(tokens: list[int]) -> bytes:
    """Return the payload of the block that ends with these tokens (all from position 0): up to 20 kB or so."""
    digest = hashlib.sha256(repr(tokens).encode()).digest()
    return digest * (1 + digest[0] * 2)


def open_store(directory: Path, budget_blocks: int, encrypt: bool) -> BlockStore:
    return BlockStore(
        directory,
        StoreOptions(budget_bytes=budget_blocks * DISK_BLOCK_BYTES, min_free_bytes=0, encrypt=encrypt, sync=False, retry_s=0.0),
    )


def live(directory: Path, budget_blocks: int, encrypt: bool, life: int, out: int) -> None:
    """Write until killed, and report each token sequence once it is on disk."""
    rng = random.Random(life)
    store = open_store(directory, budget_blocks, encrypt)
    rows: list[list[int]] = [[]]
    while True:
        tokens = list(rng.choice(rows))
        parent: bytes | None = None
        match = store.match(MODEL, "ns", tokens, partial=False)
        tokens = tokens[: match.n_tokens]
        with store.lease(match):
            for ref in match.blocks:
                store.read(ref)
                parent = ref.key
            for _ in range(rng.randint(1, 4)):
                run = [rng.randrange(1 << 20) for _ in range(rng.randint(1, CUT))]
                start = len(tokens)
                tokens += run
                key = store.put(
                    parent, run, payload_of(tokens), fingerprint=MODEL, namespace="ns", start=start, owner=f"life {life}"
                )
                parent = key
            if rng.random() < 0.2 and match.blocks:
                store.touch([ref.key for ref in match.blocks], owner=f"life {life}")
            if rng.random() < 0.05:
                store.forget(f"life {life - 3}")
        if rng.random() < 0.5 and store.flush(60.0) and store.problem is None:
            os.write(out, json.dumps(tokens).encode() + b"\n")
            rows.append(tokens)
        if rng.random() < 0.02:
            store.gc()


def examine(directory: Path, budget_blocks: int, encrypt: bool, said: list[list[int]], out: int) -> None:
    """Open the store after a kill and check everything in it."""
    problems: list[str] = []
    store = open_store(directory, budget_blocks, encrypt)
    if not store.flush(60.0) or store.problem is not None:
        problems.append(f"the store does not work: {store.problem}")
    listed = store.ls()
    n_blocks = 0
    tokens_of: dict[str, list[int]] = {}
    disk = Disk(directory, store.options)
    for info in listed:
        block = disk.open(bytes.fromhex(info.key))
        tokens = tokens_of.get(info.parent, []) + unpack_tokens(block.tokens)
        tokens_of[info.key] = tokens
        if info.start + info.n_tokens != len(tokens):
            problems.append("a block hangs in the air")
        match = store.match(MODEL, "ns", tokens)
        if match.n_tokens != len(tokens):
            problems.append("a block cannot be found")
        payload = store.read(match.blocks[-1])
        if payload is None or bytes(payload) != payload_of(tokens):
            problems.append("a block holds something else")
        n_blocks += 1
    disk.close()
    files = [path for path in directory.glob("blocks/*/*") if path.is_file()]
    if {path.parent.name + path.name for path in files} != {info.key for info in listed}:
        problems.append("files and index disagree")
    if left := [path.name for path in directory.glob("tmp/*")]:
        problems.append(f"left behind: {left}")
    if len(list(directory.glob("live/*"))) != 1:
        problems.append("the dead are still there")
    taken = sum(-(-path.stat().st_size // DISK_BLOCK_BYTES) for path in files)
    if taken > budget_blocks or taken * DISK_BLOCK_BYTES != store.stats().size_bytes:
        problems.append(f"{taken} disk blocks are taken, {budget_blocks} allowed, {store.stats().size_bytes} bytes counted")
    missing = [row for row in said if store.match(MODEL, "ns", row).n_tokens != len(row)]
    if missing and store.stats().size_bytes < (budget_blocks - 40) * DISK_BLOCK_BYTES:  # else it may have been evicted
        problems.append(f"{len(missing)} rows that were on the disk are gone")
    n_lost = store.stats().n_lost
    store.close()
    os.write(out, json.dumps({"problems": problems, "n_blocks": n_blocks, "n_lost": n_lost}).encode())


def in_a_fork(work: object, *args: object) -> tuple[int, int]:
    """Run `work(*args, write end of a pipe)` in a child; its number and the read end."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read_end)
            work(*args, write_end)  # type: ignore[operator]
            code = 0
        except BaseException as error:  # a child that lives on would run the parent's loop
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    os.close(write_end)
    return child, read_end


def read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 1 << 16):
        chunks.append(chunk)
    os.close(fd)
    return b"".join(chunks)


def main() -> None:
    directory, n_kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    budget_blocks, encrypt = int(sys.argv[4]), sys.argv[5] == "encrypt"
    rng = random.Random(seed)
    totals: Counter[str] = Counter()
    problems: list[str] = []
    said: list[list[int]] = []
    since = 0
    for life in range(n_kills):
        child, read_end = in_a_fork(live, directory, budget_blocks, encrypt, life)
        heard = b""
        if rng.random() < 0.75:  # the others die while the store is opened and put in order
            n_lines = rng.randint(1, 6)
            while heard.count(b"\n") < n_lines and select.select([read_end], [], [], 10.0)[0]:
                if not (more := os.read(read_end, 1 << 16)):
                    break
                heard += more
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            problems.append(f"life {life} ended by itself")
        lines = (heard + read_all(read_end)).split(b"\n")[:-1]  # what follows the last line end was cut off by the kill
        totals["n_said"] += len(lines)
        # What an earlier life said may have been forgotten since; the last ones cannot.
        said = [row for row in said[-20:] if since < 2] + [json.loads(line) for line in lines]
        since += 1
        if rng.random() < 0.25 or life == n_kills - 1:
            child, read_end = in_a_fork(examine, directory, budget_blocks, encrypt, said)
            report = json.loads(read_all(read_end) or b"{}")
            os.waitpid(child, 0)
            problems += report.get("problems", ["the look around failed"])
            totals["n_looks"] += 1
            totals["n_blocks"] = max(totals["n_blocks"], report.get("n_blocks", 0))
            totals["n_lost"] += report.get("n_lost", 0)
            said, since = [], 0
    print(json.dumps({"problems": problems, **totals, "seconds": time.process_time()}))


if __name__ == "__main__":
    main()
