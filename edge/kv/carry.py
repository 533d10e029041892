"""Blocks between a store and a bundle: opened and verified on the way out, sealed with the store's own key on the way in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from edge.kv.blocks import BlockDamaged, pack_tokens, unpack_tokens
from edge.kv.disk import Disk
from edge.kv.keys import TOKEN_BYTES
from edge.kv.records import ImportReport, PlainBlock

__all__ = ["add_blocks", "plain_blocks"]

_FLUSH_BYTES = 32 << 20


def plain_blocks(disk: Disk, owner: str) -> Iterator[PlainBlock]:
    """Yield the blocks of an owner and their ancestors, parents first, without damaged ones and their descendants.

    Raises:
        sqlite3.Error: the index cannot be read.
    """
    sql = """WITH RECURSIVE path(key) AS (
        SELECT block.key FROM owner JOIN block ON block.id = owner.block WHERE owner.name = ?
        UNION SELECT block.parent FROM path JOIN block ON block.key = path.key WHERE block.start > 0)
        SELECT block.key FROM path JOIN block ON block.key = path.key ORDER BY block.start"""
    with disk.index.long_read() as view:
        keys = [key for (key,) in view.sql.execute(sql, (owner,))]
    given: set[bytes] = set()
    for key in keys:
        try:
            block = disk.open(key)
        except (BlockDamaged, OSError):
            continue  # `verify` reports it; the cost is computing these tokens once more
        header = block.header
        if header.start > 0 and header.parent not in given:
            continue
        given.add(key)
        yield PlainBlock(
            key, header.parent if header.start > 0 else None, header.model, header.namespace, header.start,
            unpack_tokens(block.tokens), block.payload, header.origin, header.prefill_ms,
        )  # fmt: skip


def add_blocks(
    disk: Disk,
    blocks: Iterable[PlainBlock],
    namespace: str,
    put: Callable[[PlainBlock, bytes | None], bytes | None],
    flush: Callable[[], object],
    problem: Callable[[], str | None],
) -> ImportReport:
    """Store blocks, and wait until they are on the disk.

    Args:
        disk: of the store.
        blocks: parents before children.
        namespace: where `put` stores them.
        put: queues a block after the one with a key, and returns its key, or None if it was dropped.
        flush: waits until the queue is written.
        problem: returns why nothing is stored at present, or None.

    Raises:
        StorageError: one of `blocks` cannot be read.
        sqlite3.Error: the index cannot be read.
    """
    keys: dict[bytes, bytes] = {}
    n_blocks = n_known = n_waiting = 0
    for block in blocks:
        n_blocks += 1
        parent = None if block.parent is None else keys.get(block.parent)
        if block.start > 0 and parent is None:
            continue
        n_bytes = len(block.payload) + 3 * TOKEN_BYTES * len(block.tokens) + 1024  # as Pending.size_bytes
        if n_waiting + n_bytes > _FLUSH_BYTES:
            flush()
            n_waiting = 0
        n_waiting += n_bytes
        before = parent or disk.root(block.model, namespace)
        is_known = disk.has(disk.keys.block(block.model, namespace, before, pack_tokens(block.tokens)))
        key = put(block, parent)
        if key is not None:
            keys[block.key] = key
            n_known += is_known
    flush()
    n_there = sum(disk.has(key) for key in keys.values())
    return ImportReport(n_there - n_known, n_known, n_blocks - n_there, problem())
