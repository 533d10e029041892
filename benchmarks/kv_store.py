#!/usr/bin/env python3
"""Measure the block store of the KV cache as it grows: finding, reading, handing over, and the index's memory.

    python benchmarks/kv_store.py [--blocks 1,1000,...] [--json kv_store.json] [--plot kv_index.svg] [--directory DIR]

Payloads of the growth part are tiny and only those that are read are written as files: what is measured there is the search
and the opening, not the disk. Bytes a second are measured with blocks of 3 MB, those of 128 tokens of SmolLM2-135M in f16,
next to what reading the same files and copying them once takes. The median counts; the machine does other things too.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edge.kv.blocks import NewBlock, fingerprint, open_block, pack_tokens, seal_block
from edge.kv.disk import Disk
from edge.kv.maintenance import scan
from edge.kv.rows import Change
from edge.kv.store import BlockStore, StoreOptions

MODEL = fingerprint({"weights": "benchmark"})
N_VOCAB = 49152
BLOCK_TOKENS = 128
CHAIN_BLOCKS = 16
"""2,048 tokens: the conversation that is looked for."""
PAYLOAD_BYTES = 3 << 20
TOKEN_BYTES = 23_053
"""KV of one token of SmolLM2-135M in f16."""
HISTORY_TOKENS = 2048
BLOCK_SIZES = (32, 64, 128, 256, 512)
BUDGET = 1 << 50

Figures = dict[str, float]


def timed(work: Callable[[], object], times: int) -> Figures:
    """Return the median and 95th percentile in microseconds of wall clock, and median of this thread's processor time."""
    took, cpu = [], []
    for _ in range(times):
        began, cpu_began = time.perf_counter(), time.thread_time()
        work()
        took.append((time.perf_counter() - began) * 1e6)
        cpu.append((time.thread_time() - cpu_began) * 1e6)
    took.sort()
    return {"median_us": statistics.median(took), "p95_us": took[int(len(took) * 0.95)], "cpu_us": statistics.median(cpu)}


def open_store(directory: Path, *, encrypt: bool = False) -> BlockStore:
    return BlockStore(directory, StoreOptions(budget_bytes=BUDGET, min_free_bytes=0, encrypt=encrypt, queue_bytes=1 << 34))


class Grower:
    """Puts rows into an index as if their blocks had been written; writes the files only of some.

    Half of the blocks are conversations of 16 blocks; the other half are children of one parent that share their first 100
    tokens, the worst case for a search among siblings.
    """

    def __init__(self, disk: Disk, rng: random.Random) -> None:
        self.disk, self.rng = disk, rng
        self.root = disk.root(MODEL, "ns")
        self.system = self.tokens(100)
        self.n_blocks = 0
        self.n_files = 0
        self.chains: list[list[int]] = []
        self.siblings: list[list[int]] = []

    def tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(N_VOCAB) for _ in range(count)]

    def grow_to(self, n_blocks: int) -> None:
        while self.n_blocks < n_blocks:
            with self.disk.index.write() as change:
                for _ in range(200):
                    left = n_blocks - self.n_blocks
                    if left <= 0:
                        break
                    if left >= CHAIN_BLOCKS and self.rng.random() < 1 / CHAIN_BLOCKS:
                        chain = self.tokens(CHAIN_BLOCKS * BLOCK_TOKENS)
                        self.add(change, chain, is_kept=len(self.chains) < 40, among=self.chains)
                    else:
                        sibling = self.system + self.tokens(BLOCK_TOKENS - len(self.system))
                        self.add(change, sibling, is_kept=len(self.siblings) < 40, among=self.siblings)
            self.disk.index.checkpoint()

    def add(self, change: Change, tokens: list[int], *, is_kept: bool, among: list[list[int]]) -> None:
        parent = self.root
        for start in range(0, len(tokens), BLOCK_TOKENS):
            packed = pack_tokens(tokens[start : start + BLOCK_TOKENS])
            block = NewBlock(
                parent=parent, tokens=packed, payload=b"x" * 64, model=MODEL, namespace="ns", start=start, prefill_ms=800.0
            )
            header, pieces = seal_block(self.disk.keys, block, encrypted=self.disk.options.encrypt)
            if is_kept:
                self.disk.files.publish(self.disk.files.write(pieces), header.key)
                self.n_files += 1
            change.insert(header, self.root)
            parent = header.key
            self.n_blocks += 1
        if is_kept:
            among.append(tokens)


def measure_growth(directory: Path, sizes: Iterable[int], *, encrypt: bool) -> list[dict[str, Any]]:
    results = []
    rng = random.Random(1)
    disk = Disk(directory, StoreOptions(budget_bytes=BUDGET, min_free_bytes=0, encrypt=encrypt, sync=False))
    scan(disk)  # so that nobody looks for the files that are not there
    grower = Grower(disk, rng)
    for n_blocks in sizes:
        grower.grow_to(n_blocks)
        with open_store(directory, encrypt=encrypt) as store:
            result: dict[str, Any] = {"n_blocks": n_blocks, "encrypted": encrypt}
            following = [row + grower.tokens(30) for row in grower.chains or grower.siblings]
            beside = [row[:120] + grower.tokens(60) for row in grower.siblings or grower.chains]
            for name, queries in (("conversation", following), ("sibling", beside)):
                turn = iter(queries * 1000)
                result[f"match_{name}"] = timed(lambda turn=turn: store.match(MODEL, "ns", next(turn)), 400)  # type: ignore[misc]
                result[f"tokens_{name}"] = store.match(MODEL, "ns", queries[0]).n_tokens
            turn = iter(following * 1000)

            def match_and_read(store: BlockStore = store, turn: Any = turn) -> None:
                for ref in store.match(MODEL, "ns", next(turn)).blocks:
                    assert store.read(ref) is not None

            result["match_and_read"] = timed(match_and_read, 200)
            match = store.match(MODEL, "ns", following[0])

            def lease(store: BlockStore = store, match: Any = match) -> None:
                with store.lease(match):
                    pass

            result["lease"] = timed(lease, 100)
            result["index_bytes_per_block"] = disk.index.file_bytes() / n_blocks
        result["open"] = timed(lambda: open_store(directory, encrypt=encrypt).close(), 10)
        result["process_kib"] = memory_of_a_process(directory, following[0], encrypt=encrypt)
        results.append(result)
    disk.close()
    return results


def memory_of_a_process(directory: Path, tokens: list[int], *, encrypt: bool) -> float:
    """Measure the resident memory, in KiB, that opening the store and searching it adds to a fresh process."""
    script = """
import json, os, sys
from pathlib import Path
from benchmark import MODEL, open_store
import psutil
tokens, encrypt = json.loads(sys.stdin.read())
own = psutil.Process()
before = own.memory_info().rss
store = open_store(Path(sys.argv[1]), encrypt=encrypt)
for cut in range(0, len(tokens), 16):
    store.match(MODEL, "ns", tokens[:cut] + [1, 2, 3])
print((own.memory_info().rss - before) / 1024)
store.close()
"""
    loader = (
        f"import importlib.util, sys\nspec = importlib.util.spec_from_file_location('benchmark', {str(Path(__file__))!r})\n"
    )
    loader += "sys.modules['benchmark'] = module = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(module)\n"
    done = subprocess.run(
        [sys.executable, "-c", loader + script, str(directory)],
        input=json.dumps([tokens, encrypt]), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


def forget_pages(paths: Iterable[Path]) -> bool:
    """Drop files from the page cache, so that the next read goes to the disk."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    return True


def measure_bytes(directory: Path, n_blocks: int, rounds: int, *, encrypt: bool) -> Figures:
    """Measure GB/s of restoring 3 MB blocks, against reading and copying the same files; and the time that it costs a turn."""
    rng = random.Random(2)
    tokens = [rng.randrange(N_VOCAB) for _ in range(n_blocks * BLOCK_TOKENS)]
    payloads = [rng.randbytes(PAYLOAD_BYTES) for _ in range(n_blocks)]
    result: Figures = {}
    with open_store(directory, encrypt=encrypt) as store:
        store.flush()
        handed_over = []
        parent = None
        began = time.perf_counter()
        for number, payload in enumerate(payloads):
            at = time.perf_counter()
            parent = store.put(
                parent, tokens[number * BLOCK_TOKENS : (number + 1) * BLOCK_TOKENS], payload,
                fingerprint=MODEL, namespace="ns", start=number * BLOCK_TOKENS, prefill_ms=800.0,
            )  # fmt: skip
            handed_over.append((time.perf_counter() - at) * 1e6)
        store.flush(600.0)
        result["write_mb_per_s"] = n_blocks * PAYLOAD_BYTES / (time.perf_counter() - began) / 1e6
        result["put_median_us"] = statistics.median(handed_over)
        result["put_worst_us"] = max(handed_over)
        match = store.match(MODEL, "ns", tokens)
        assert len(match.blocks) == n_blocks
        paths = [directory / "blocks" / ref.key.hex()[:2] / ref.key.hex()[2:] for ref in match.blocks]

        def restore() -> None:
            for ref in match.blocks:
                payload = store.read(ref)
                assert payload is not None and len(payload) == PAYLOAD_BYTES

        def limit() -> None:
            for path in paths:
                fd = os.open(path, os.O_RDONLY)
                bytearray(os.read(fd, PAYLOAD_BYTES + 8192))
                os.close(fd)

        size = n_blocks * PAYLOAD_BYTES
        for name, work in (("restore", restore), ("limit", limit)):
            took = []
            for _ in range(rounds):
                gc.collect()
                took.append(timed(work, 1))
            for kind in ("median_us", "cpu_us"):
                result[f"{name}_warm_gb_per_s_{kind[:3]}"] = size / statistics.median(each[kind] for each in took) / 1e3
            result[f"{name}_warm_best_gb_per_s"] = size / min(each["median_us"] for each in took) / 1e3
            cold = [timed(work, 1)["median_us"] for _ in range(max(3, rounds // 5)) if forget_pages(paths)]
            if cold:
                result[f"{name}_cold_gb_per_s"] = size / statistics.median(cold) / 1e3
        result["bytes_written_per_payload_byte"] = sum(path.stat().st_size for path in paths) / size
    return result


def measure_sealing(rounds: int) -> dict[str, Figures]:
    """Measure GB/s of proving a 3 MB block in memory, no disk: verified only, decrypted too, and a plain copy beside them."""
    from edge.kv.keys import Keys

    keys, payload, tokens = Keys(bytes(32)), random.Random(4).randbytes(PAYLOAD_BYTES), pack_tokens(range(BLOCK_TOKENS))
    result = {}
    for kind, encrypted in (("authenticated", False), ("encrypted", True)):

        def seal(encrypted: bool = encrypted) -> bytes:
            block = NewBlock(parent=bytes(32), tokens=tokens, payload=payload, model=MODEL, namespace="ns", start=0)
            _, pieces = seal_block(keys, block, encrypted=encrypted)
            return pieces[0] + pieces[1]

        data = seal()
        result[kind] = {
            "seal_gb_per_s": PAYLOAD_BYTES / timed(seal, rounds)["median_us"] / 1e3,
            "open_gb_per_s": PAYLOAD_BYTES / timed(lambda data=data: open_block(keys, data), rounds)["median_us"] / 1e3,  # type: ignore[misc]
        }
    copied = PAYLOAD_BYTES / timed(lambda: bytearray(payload), rounds)["median_us"] / 1e3
    result["copied"] = {"seal_gb_per_s": copied, "open_gb_per_s": copied}
    return result


def measure_block_sizes(directory: Path, rounds: int) -> list[Figures]:
    """Measure a history of 2,048 tokens split into blocks of each size: time to write, find and read it, and bytes on disk."""
    rng = random.Random(5)
    tokens = [rng.randrange(N_VOCAB) for _ in range(HISTORY_TOKENS)]
    results = []
    for size in BLOCK_SIZES:
        here = directory / str(size)
        with open_store(here) as store:
            store.flush()
            payload = rng.randbytes(size * TOKEN_BYTES)
            parent, began, handing = None, time.perf_counter(), 0.0
            for start in range(0, HISTORY_TOKENS, size):
                at = time.perf_counter()
                parent = store.put(
                    parent,
                    tokens[start : start + size],
                    payload,
                    fingerprint=MODEL,
                    namespace="ns",
                    start=start,
                    prefill_ms=800.0,
                )
                handing += time.perf_counter() - at
            store.flush(600.0)
            wrote = time.perf_counter() - began

            def restore(store: BlockStore = store) -> None:
                for ref in store.match(MODEL, "ns", tokens).blocks:
                    assert store.read(ref) is not None

            took = timed(restore, rounds)
            stats = store.stats()
            results.append(
                {
                    "block_tokens": size,
                    "match_us": timed(lambda store=store: store.match(MODEL, "ns", tokens), 50)["median_us"],  # type: ignore[misc]
                    "restore_ms": took["median_us"] / 1000,
                    "restore_p95_ms": took["p95_us"] / 1000,
                    "write_ms": wrote * 1000,
                    "put_us_per_block": handing * 1e6 * size / HISTORY_TOKENS,
                    "disk_overhead": stats.size_bytes / (HISTORY_TOKENS * TOKEN_BYTES) - 1,
                    "index_bytes": stats.index_bytes,
                }
            )
    return results


def measure_rebuild(directory: Path, n_blocks: int) -> Figures:
    """Measure rebuilding the index from the files."""
    disk = Disk(directory, StoreOptions(budget_bytes=BUDGET, min_free_bytes=0, sync=False))
    grower = Grower(disk, random.Random(3))
    with disk.index.write() as change:
        for _ in range(n_blocks):
            grower.add(change, grower.system + grower.tokens(28), is_kept=True, among=[])
    began = time.perf_counter()
    scan(disk)
    agreeing = time.perf_counter() - began
    disk.close()
    for path in directory.glob("index-*"):
        path.unlink()
    with open_store(directory) as store:
        began = time.perf_counter()
        store.flush(600.0)
        rebuilt = time.perf_counter() - began
        assert store.stats().n_blocks == n_blocks
    return {"n_blocks": n_blocks, "scan_s": agreeing, "rebuild_s": rebuilt}


def show(result: dict[str, Any]) -> None:
    print(f"{result['machine']}; medians, (in brackets: of processor time)\n")
    print(
        f"{'blocks':>8} {'':<10}{'match 2k':>17}{'p95':>9}{'sibling':>16}{'match and read':>18}{'lease':>9}{'open':>9}"
        f"{'RSS':>10}{'index':>10}"
    )
    for row in result["growth"]:
        kind = "encrypted" if row["encrypted"] else "plain"
        times = [row[name] for name in ("match_conversation", "match_sibling", "match_and_read")]
        both = [f"{each['median_us']:.0f} ({each['cpu_us']:.0f}) us" for each in times]
        print(
            f"{row['n_blocks']:>8} {kind:<10}{both[0]:>17}{times[0]['p95_us']:>6.0f} us{both[1]:>16}{both[2]:>18}"
            f"{row['lease']['median_us']:>6.0f} us{row['open']['median_us'] / 1000:>6.1f} ms{row['process_kib']:>6.0f} KiB"
            f"{row['index_bytes_per_block']:>8.0f} B"
        )
    print(f"\n{'3 MB blocks':<14}{'warm':>17}{'(best)':>9}{'cold':>9}{'put':>9}{'worst':>9}{'written':>11}{'overhead':>10}")
    for kind, row in result["bytes"].items():
        for name, label in (("restore", kind), ("limit", "  the limit")):
            print(
                f"{label:<14}{row[f'{name}_warm_gb_per_s_med']:>6.1f} ({row[f'{name}_warm_gb_per_s_cpu']:.1f}) GB/s"
                f"{row[f'{name}_warm_best_gb_per_s']:>9.1f}{row.get(f'{name}_cold_gb_per_s', 0):>9.1f}",
                end="\n" if name == "limit" else "",
            )
            if name == "restore":
                print(
                    f"{row['put_median_us']:>6.0f} us{row['put_worst_us']:>6.0f} us{row['write_mb_per_s']:>6.0f} MB/s"
                    f"{(row['bytes_written_per_payload_byte'] - 1) * 100:>9.2f}%"
                )
    print("\na block of 3 MB in memory, GB/s")
    for kind, row in result["sealing"].items():
        print(f"{kind:<14}seal {row['seal_gb_per_s']:5.1f}   open {row['open_gb_per_s']:5.1f}")
    print(f"\n{HISTORY_TOKENS:,} tokens in blocks of  match    restore   (p95)      write   put a block   disk on top   index")
    for row in result["block_sizes"]:
        print(
            f"{row['block_tokens']:>22} {row['match_us']:>7.0f} us{row['restore_ms']:>8.1f} ms{row['restore_p95_ms']:>8.1f}"
            f"{row['write_ms']:>8.0f} ms{row['put_us_per_block']:>11.0f} us{row['disk_overhead'] * 100:>12.2f}%"
            f"{row['index_bytes'] / 1000:>8.0f} kB"
        )
    rebuild = result["rebuild"]
    print(f"\n{rebuild['n_blocks']} files: looked through in {rebuild['scan_s']:.2f} s", end=", ")
    print(f"index rebuilt in {rebuild['rebuild_s']:.2f} s")


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "edge", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(figsize=(8, 3))
    lines = (
        ("match_conversation", "find 2,048 tokens in 16 blocks", "#2b6cb0"),
        ("match_sibling", "find the nearest of many siblings", "#c05621"),
    )
    for encrypted in (False, True):
        rows = [row for row in result["growth"] if row["encrypted"] == encrypted and row["n_blocks"] >= CHAIN_BLOCKS]
        for name, label, colour in lines:
            axes.plot(
                [row["n_blocks"] for row in rows], [row[name]["median_us"] / 1000 for row in rows], color=colour,
                marker="o", linestyle="--" if encrypted else "-", label=label + (", encrypted" if encrypted else ""),
            )  # fmt: skip
    axes.set(xscale="log", xlabel="blocks in the store", ylabel="milliseconds (median)", ylim=(0, None))
    axes.set_title("Finding a stored prefix, in small and large stores", fontsize=9, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--blocks", default="1,100,1000,10000,100000", help="sizes of the store, separated by commas")
    parser.add_argument("--payloads", type=int, default=16, help="how many blocks of 3 MB")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--directory", type=Path, help="where to make the stores; a temporary directory otherwise")
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--plot", type=Path, help="draw the growth here (needs matplotlib)")
    given = parser.parse_args()
    sizes = [int(size) for size in given.blocks.split(",")]
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "growth": [],
        "bytes": {},
    }
    with tempfile.TemporaryDirectory(dir=given.directory) as name:
        for encrypt in (False, True):
            kind = "encrypted" if encrypt else "plain"
            result["growth"] += measure_growth(Path(name, f"growth-{kind}"), sizes, encrypt=encrypt)
            result["bytes"][kind] = measure_bytes(Path(name, f"bytes-{kind}"), given.payloads, given.rounds, encrypt=encrypt)
        result["sealing"] = measure_sealing(given.rounds * 3)
        result["block_sizes"] = measure_block_sizes(Path(name, "sizes"), given.rounds)
        result["rebuild"] = measure_rebuild(Path(name, "rebuild"), min(max(sizes), 10_000))
    show(result)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if given.plot:
        plot(result, given.plot)


if __name__ == "__main__":
    main()
