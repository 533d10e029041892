"""Time and memory of `edge kv` commands over a cache with very many blocks.

    python benchmarks/kv_scale.py --blocks 1000000

The index is filled with rows as a chat of many conversations makes them: a common system prompt, and 15 more blocks each. There
are no block files: commands that read or delete files (verify, gc, clear) are not measured here.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edge.kv.blocks import fingerprint, pack_tokens
from edge.kv.store import BlockStore, StoreOptions

MODEL = fingerprint({"weights": "a"})
BLOCKS_EACH = 16
N_TOKENS = 128
NEWEST = 20_000
"""As `edge kv ls` counts."""
COMMANDS: dict[str, Callable[[BlockStore], object]] = {
    "find 2,048 tokens": lambda store: store.match(MODEL, "", tokens_of(7)).n_tokens,
    "kv stats": lambda store: store.stats().n_blocks,
    "kv ls": lambda store: len(store.usages(NEWEST)),
    "kv ls --all": lambda store: len(store.usages()),
    "kv ls --blocks": lambda store: sum(1 for _ in store.each_block()),
    "kv ls of one": lambda store: len(store.ls(owner=name_of(3))),
    "all conversations": lambda store: len(store.owners()),
    "a conversation by its beginning": lambda store: len(store.owners("conversation0000123")),
    "a block by its key": lambda store: len(store.find_keys("5f3a09c2")),
    "kv forget": lambda store: store.forget(name_of(5)).n_blocks,
    "kv gc --gone, 100 of them": lambda store: sum(
        report.n_blocks for report in store.forget_all([name_of(number) for number in range(10, 110)]).values()
    ),
    "kv pin": lambda store: [store.pin(bytes.fromhex(key)) for key in store.keys(name_of(4))] and store.flush(),
}


def name_of(number: int) -> str:
    return f"conversation{number:08}"


def tokens_of(number: int) -> list[int]:
    system = random.Random(0).choices(range(49_152), k=N_TOKENS)
    return system + random.Random(number).choices(range(49_152), k=N_TOKENS * (BLOCKS_EACH - 1))


def fill(directory: Path, n_blocks: int) -> None:
    """Make a store whose index has so many rows."""
    with open_store(directory) as store:
        assert store.flush(60.0)
        disk = store._background.disk
        assert disk is not None
        root = disk.root(MODEL, "")
        n_done = n_conversations = 0
        while n_done < n_blocks:
            with disk.index.write() as change:
                change.sql.execute("INSERT OR IGNORE INTO space VALUES (1, ?, ?, '', 0)", (root, MODEL))
                for number in range(n_conversations, n_conversations + 500):
                    parent, packed = root, pack_tokens(tokens_of(number))
                    for place in range(BLOCKS_EACH):
                        path = packed[place * N_TOKENS * 4 : (place + 1) * N_TOKENS * 4]
                        key = disk.keys.block(MODEL, "", parent, path)
                        added = change.sql.execute(
                            "INSERT OR IGNORE INTO block (key, parent, path, space, start, n_tokens, size, disk, prefill_ms,"
                            " origin, children, rank, last_used)"
                            " VALUES (?, ?, ?, 1, ?, 128, 3000000, 3002368, 800, 'prefill', 0, ?, 1)",
                            (key, parent, path, place * N_TOKENS, float(n_done)),
                        )
                        row = change.sql.execute("SELECT id FROM block WHERE key = ?", (key,)).fetchone()
                        change.sql.execute("INSERT INTO owner VALUES (?, ?)", (name_of(number), row[0]))
                        n_done += added.rowcount
                        parent = key
                    if n_done >= n_blocks:
                        break
            n_conversations += 500
            disk.index.checkpoint()
        with disk.index.write() as change:
            change.sql.execute("UPDATE state SET scanned = ?", (time.time(),))


def open_store(directory: Path, *, is_checked: bool = True) -> BlockStore:
    store = BlockStore(directory, StoreOptions(budget_bytes=1 << 60, min_free_bytes=0, sync=False))
    disk = store._background.disk
    assert disk is not None
    if is_checked:
        disk.needs_check = disk.needs_scan = False  # which would find that there are no files
    return store


def measure(directory: Path, command: str) -> str:
    """Run one command; called in a process of its own, so that its memory is seen."""
    with open_store(directory) as store:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        result = COMMANDS[command](store)
        seconds = time.perf_counter() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        os.write(1, f"| {command} | {seconds:.3f} s | {grown:.0f} MB | {result} |\n".encode())
        disk = store._background.disk
        assert disk is not None
        disk.close()
        os._exit(0)  # closing the store would check the files, which do not exist


def lines(directory: Path) -> Iterator[str]:
    for command in COMMANDS:
        done = subprocess.run([sys.executable, __file__, "--measure", command, str(directory)], capture_output=True, text=True)
        yield done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("directory", nargs="?", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.directory, given.measure)
    with tempfile.TemporaryDirectory() as directory:
        fill(Path(directory), given.blocks)
        size = sum(path.stat().st_size for path in Path(directory).glob("index-*"))
        print(f"{given.blocks:,} blocks, index of {size / 1e6:,.0f} MB\n")
        print("| | time | more memory | result |\n|---|---:|---:|---:|")
        for line in lines(Path(directory)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
