"""One of several processes that use one block store at once, as hard as they can. Prints one JSON object.

kv_hammer.py DIRECTORY SECONDS SEED BUDGET_BLOCKS

Conversations are drawn from few tokens, so that the processes share blocks, write the same ones at the same time, evict what
others read, pin, forget, clear, verify and put in order. What a block must hold follows from its tokens; anything else is
counted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import sys
import time
from collections import Counter
from pathlib import Path

from edge.kv.blocks import fingerprint
from edge.kv.rows import DISK_BLOCK_BYTES
from edge.kv.store import BlockStore, StoreOptions

MODEL = fingerprint({"weights": "a"})


def payload_of(tokens: list[int]) -> bytes:
    digest = hashlib.sha256(repr(tokens).encode()).digest()
    return digest * (1 + digest[0])


class Caught(logging.Handler):
    """Keeps what the store logs: in a healthy store it has nothing to say."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


def turn(store: BlockStore, rng: random.Random, me: str, counts: Counter[str], pins: list[bytes]) -> None:
    """Do what a turn does: find, restore, compute the rest, store it."""
    query = [rng.randrange(3) for _ in range(rng.randint(1, 24))]
    match = store.match(MODEL, "ns", query)
    tokens: list[int] = []
    parent = None
    with store.lease(match):
        for ref in match.blocks:
            payload = store.read(ref)
            if payload is None:
                counts["gone"] += 1  # evicted or forgotten between the match and the lease
                break
            tokens = query[: ref.start + ref.n_used]
            if ref.n_used < ref.n_tokens:
                tokens = tokens[: ref.start]
                break
            counts["read"] += 1
            counts["wrong"] += bytes(payload) != payload_of(tokens)
            parent = ref.key
        if match.blocks and rng.random() < 0.3:
            store.touch([ref.key for ref in match.blocks], owner=me)
        while len(tokens) < len(query):
            start = len(tokens)
            tokens = query[: start + rng.randint(1, 6)]
            parent = store.put(
                parent, tokens[start:], payload_of(tokens), fingerprint=MODEL, namespace="ns", start=start,
                prefill_ms=rng.random() * 10, owner=me if rng.random() < 0.5 else None,
            )  # fmt: skip
            counts["put"] += parent is not None
        if match.blocks and rng.random() < 0.05:
            pins.append(match.blocks[-1].key)
            store.pin(pins[-1])
        if len(pins) > 3:
            store.unpin(pins.pop(0))


def main() -> None:
    directory, seconds, seed, budget_blocks = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    rng = random.Random(seed)
    caught = Caught()
    logging.getLogger("edge.kv").addHandler(caught)
    counts: Counter[str] = Counter()
    pins: list[bytes] = []
    longest = 0.0
    end = time.monotonic() + seconds
    store = BlockStore(
        directory, StoreOptions(budget_bytes=budget_blocks * DISK_BLOCK_BYTES, min_free_bytes=0, sync=False, retry_s=1.0)
    )
    while time.monotonic() < end:
        began = time.monotonic()
        turn(store, rng, f"owner {seed}-{rng.randrange(5)}", counts, pins)
        longest = max(longest, time.monotonic() - began)
        counts["turns"] += 1
        chance = rng.random()
        if chance < 0.01:
            counts["forgotten"] += store.forget(f"owner {seed}-{rng.randrange(5)}").n_blocks
        elif chance < 0.04:
            counts["damaged"] += len(store.verify().damaged)
        elif chance < 0.05:
            report = store.gc()
            counts["disagreed"] += report.n_indexed + report.n_removed + report.n_missing
        elif chance < 0.053:
            counts["cleared"] += store.clear()
        elif chance < 0.058:
            store.close()
            store = BlockStore(
                directory, StoreOptions(budget_bytes=budget_blocks * DISK_BLOCK_BYTES, min_free_bytes=0, sync=False)
            )
        elif chance < 0.13:
            assert store.flush(60.0), "a flush hangs"
        elif chance < 0.6:
            counts["most_bytes"] = max(counts["most_bytes"], store.stats().size_bytes)
    for key in pins:
        store.unpin(key)
    assert store.flush(60.0), "a flush hangs"
    stats = store.stats()
    counts["evicted"], counts["lost"] = stats.n_evicted, stats.n_lost
    store.close()
    print(json.dumps({"messages": caught.messages[:5], "problem": store.problem, "longest_s": longest, **counts}))


if __name__ == "__main__":
    main()
