"""What is in a store: for people and programs, in bounded memory however much it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from edge.kv.disk import Disk
from edge.kv.keys import KEY_BYTES
from edge.kv.records import BlockInfo, Usage
from edge.kv.rows import View

__all__ = ["each_block", "find_keys", "keys_of_owner", "list_blocks", "list_namespaces", "list_owners", "usages"]

_PAGE = 512
_COLUMNS = """block.id, block.key, block.parent, model, namespace, start, n_tokens, size, prefill_ms, origin,
    space.encrypted, pinned, children, last_used"""


def each_block(disk: Disk) -> Iterator[BlockInfo]:
    """Yield all blocks in the order in which they were stored, some hundred at a time; others may write meanwhile."""
    last_id, ends = -1, _ends(disk)
    while True:
        with disk.index.long_read() as view:
            sql = f"""SELECT {_COLUMNS} FROM block JOIN space ON space.id = block.space WHERE block.id > ?
                ORDER BY block.id LIMIT ?"""  # noqa: S608 (constants)
            rows = view.sql.execute(sql, (last_id, _PAGE)).fetchall()
            if not rows:
                return
            named = "SELECT block, name FROM owner WHERE block BETWEEN ? AND ? ORDER BY block, name"
            owners: dict[int, list[str]] = {}
            for block, name in view.sql.execute(named, (rows[0][0], rows[-1][0])):
                owners.setdefault(block, []).append(name)
        last_id = rows[-1][0]
        yield from (_info(row, owners.get(row[0], []), ends) for row in rows)


def list_blocks(disk: Disk, owner: str | None = None) -> list[BlockInfo]:
    """List all blocks, or those of one owner, parents before children."""
    if owner is None:
        return sorted(each_block(disk), key=lambda info: (info.model, info.namespace, info.start, info.key))
    sql = f"""SELECT {_COLUMNS} FROM owner JOIN block ON block.id = owner.block JOIN space ON space.id = block.space
        WHERE owner.name = ? ORDER BY block.space, start, block.key"""  # noqa: S608 (constants)
    ends = _ends(disk)
    with disk.index.long_read() as view:
        owners: dict[int, list[str]] = {}
        # Only the rows of its blocks: the table has one for each use of a block.
        named = """SELECT other.name, other.block FROM owner JOIN owner AS other ON other.block = owner.block
            WHERE owner.name = ? ORDER BY other.name"""
        for name, block in view.sql.execute(named, (owner,)):
            owners.setdefault(block, []).append(name)
        return [_info(row, owners.get(row[0], []), ends) for row in view.sql.execute(sql, (owner,))]


def usages(disk: Disk, newest: int | None = None) -> list[Usage]:
    """Add up the blocks that the same owners use; the memory is that of the owners.

    Args:
        disk: the store.
        newest: how many blocks count, from the one that was stored last; None is all.
    """
    ends = _ends(disk)
    with disk.index.long_read() as view:
        after = -1 if newest is None else _last_before(view, newest)
        spaces = {id: (model, name) for id, model, name in view.sql.execute("SELECT id, model, namespace FROM space")}
        owners = _owners_in_order(view, after)
        block, names = next(owners, (None, ()))
        sums: dict[tuple[int, tuple[str, ...]], _Sum] = {}
        sql = "SELECT id, key, space, n_tokens, size, prefill_ms, last_used, pinned FROM block WHERE id > ? ORDER BY id"
        for id, block_key, space, n_tokens, size, prefill_ms, last_used, pinned in view.sql.execute(sql, (after,)):
            while block is not None and block < id:
                block, names = next(owners, (None, ()))
            key = space, names if block == id else ()
            found = sums.get(key)
            if found is None:
                found = sums[key] = _Sum()
            found.n_blocks += 1
            found.n_tokens += n_tokens
            found.size_bytes += size
            found.prefill_ms += prefill_ms
            found.last_used = max(found.last_used, last_used)
            if pinned:
                found.n_pinned += 1
                found.pinned_until = max(found.pinned_until, ends.get(block_key, math.inf))
    return [
        Usage(
            spaces[space][0].hex(), spaces[space][1], names, found.n_blocks, found.n_tokens, found.size_bytes, found.prefill_ms,
            found.last_used, found.n_pinned,
            found.pinned_until if found.n_pinned and math.isfinite(found.pinned_until) else None,
        )
        for (space, names), found in sums.items()
        if space in spaces
    ]  # fmt: skip


def list_owners(disk: Disk, beginning: str = "") -> list[str]:
    """List the owners of blocks whose names begin so, sorted. The time depends on their number, not on that of the blocks."""
    sql = """WITH RECURSIVE each(name) AS (SELECT min(name) FROM owner WHERE name >= ?1
        UNION ALL SELECT (SELECT min(name) FROM owner WHERE name > each.name) FROM each WHERE substr(name, 1, length(?1)) = ?1)
        SELECT name FROM each WHERE substr(name, 1, length(?1)) = ?1"""
    with disk.index.long_read() as view:
        return [name for (name,) in view.sql.execute(sql, (beginning,))]


def keys_of_owner(disk: Disk, owner: str) -> list[str]:
    """List the keys of an owner's blocks, parents before children."""
    sql = "SELECT key FROM owner JOIN block ON block.id = owner.block WHERE owner.name = ? ORDER BY start, key"
    with disk.index.long_read() as view:
        return [key.hex() for (key,) in view.sql.execute(sql, (owner,))]


def list_namespaces(disk: Disk) -> list[str]:
    """List the namespaces of all blocks, sorted."""
    with disk.index.long_read() as view:
        return [name for (name,) in view.sql.execute("SELECT DISTINCT namespace FROM space ORDER BY namespace")]


def find_keys(disk: Disk, beginning: str) -> list[str]:
    """List the keys that begin with these hexadecimal digits."""
    low, high = (bytes.fromhex(beginning.ljust(2 * KEY_BYTES, digit)) for digit in "0f")
    with disk.index.long_read() as view:
        return [key.hex() for (key,) in view.sql.execute("SELECT key FROM block WHERE key BETWEEN ? AND ?", (low, high))]


@dataclass(slots=True)
class _Sum:
    n_blocks: int = 0
    n_tokens: int = 0
    size_bytes: int = 0
    prefill_ms: float = 0.0
    last_used: float = 0.0
    n_pinned: int = 0
    pinned_until: float = 0.0


def _last_before(view: View, n_blocks: int) -> int:
    """Return the row before the newest blocks."""
    row = view.sql.execute("SELECT id FROM block ORDER BY id DESC LIMIT 1 OFFSET ?", (n_blocks,)).fetchone()
    return -1 if row is None else int(row[0])


def _owners_in_order(view: View, after: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (row of a block, its owners), in the order of rows after one; equal owners are the same object."""
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    rows = view.sql.execute("SELECT block, name FROM owner WHERE block > ? ORDER BY block, name", (after,))
    for block, found in groupby(rows, key=itemgetter(0)):
        names = tuple(name for _, name in found)
        yield block, known.setdefault(names, names)


def _ends(disk: Disk) -> Mapping[bytes, float]:
    return disk.limits.ends() if disk.limits.has_ends else {}


def _info(row: tuple, owners: list[str], ends: Mapping[bytes, float]) -> BlockInfo:  # type: ignore[type-arg]  # _COLUMNS
    _, key, parent, model, namespace, start, n_tokens, size, prefill_ms, origin, encrypted, pinned, children, last_used = row
    return BlockInfo(
        key.hex(), parent.hex(), model.hex(), namespace, tuple(owners), start, n_tokens, size, prefill_ms, origin,
        bool(encrypted), bool(pinned), children, last_used, ends.get(key) if pinned else None,
    )  # fmt: skip
