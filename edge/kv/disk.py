"""Block files and their index as one thing.

The rule that keeps them together, in all processes: a block file gets or loses its name only while its process holds the
index's write lock, in the transaction that adds or removes the row. A crash in between leaves a file without a row, which the
next scan indexes, or a row without a file, which a read or the scan drops; never a wrong block, since files are written under
another name first and are verified whenever they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from edge.kv.blocks import Block, BlockDamaged, Header, open_block, seal_block
from edge.kv.files import Secret, StoreFiles, is_transient
from edge.kv.index import Index
from edge.kv.keys import entry_bytes
from edge.kv.lookup import longest_prefix
from edge.kv.records import BlockRef, Match, Pending
from edge.kv.rows import Change, disk_bytes

__all__ = ["Disk", "WriteReport"]

_SCAN_EVERY_S = 7 * 24 * 3600.0
_AT_A_TIME = 8
"""How many files are removed under the write lock before others get their turn."""


class WriteReport(NamedTuple):
    """What became of a batch: written, stored already, not stored (no parent, no room), what is short or ""."""

    n_written: int
    n_known: int
    n_dropped: int
    shortage: str


class Disk:
    """An open store directory and its index.

    Args:
        directory: of the store.
        budget_bytes: the most that block files may take of the disk.
        min_free_bytes: free space of the disk that the store never takes, and gives back by evicting.
        encrypt: seal new blocks encrypted, and look for encrypted ones only.
        secret: see `StoreFiles`.
        sync: see `StoreFiles`.
        clock: unix seconds.
        distrusted: see `Index`.

    Attributes:
        needs_scan: files and index may disagree, since somebody crashed or the index is new; or blocks are to go: plain
            ones, or more of them than there may be now.
        n_evicted: how many blocks this object evicted.
        shortage: why the last `make_room` failed, if other files take the space; or "".

    Raises:
        StorageError, OSError, sqlite3.Error: it cannot be opened.
    """

    def __init__(
        self,
        directory: Path,
        *,
        budget_bytes: int,
        min_free_bytes: int,
        encrypt: bool,
        secret: Secret,
        sync: bool,
        clock: Callable[[], float],
        distrusted: Path | None = None,
    ) -> None:
        self.budget_bytes, self.min_free_bytes, self.encrypt = budget_bytes, min_free_bytes, encrypt
        self.clock = clock
        self.n_evicted = 0
        self.shortage = ""
        self.files = StoreFiles(directory, secret=secret, make_in_keyring=encrypt, sync=sync)
        self.keys = self.files.keys
        try:
            with self.files.opening():
                self.index = Index(directory, self.keys.id, distrusted)
        except BaseException:
            self.files.close()
            raise
        scanned, taken = self.index.scanned, self.index.taken_bytes
        is_old = scanned is None or abs(clock() - scanned) > _SCAN_EVERY_S
        is_over = taken > budget_bytes or (taken > 0 and self.files.free_bytes() < min_free_bytes)
        self.needs_scan = self.files.found_crash or is_old or is_over or (encrypt and self.index.has_plain)

    def root(self, model: bytes, namespace: str) -> bytes:
        """What stands where the parent's key would, in first blocks."""
        return self.keys.root(model, namespace, encrypted=self.encrypt)

    def match(self, model: bytes, namespace: str, tokens: bytes, lost: Set[bytes], *, partial: bool) -> Match:
        """The longest stored beginning of packed tokens, without the blocks in `lost`.

        Raises:
            sqlite3.Error: the index cannot be read, or what it says makes no sense.
        """
        parent = self.root(model, namespace)
        with self.index.read() as view:
            steps = longest_prefix(
                view,
                parent,
                tokens,
                path_of=lambda parent, tokens: self.keys.path(parent, tokens, encrypted=self.encrypt),
                entry_bytes=entry_bytes(encrypted=self.encrypt),
                is_usable=lambda key: key not in lost,
                partial=partial,
            )
        blocks = []
        start = 0
        for row, n_used in steps:
            blocks.append(
                BlockRef(
                    row.key, parent, model, namespace, start, row.n_tokens, n_used, row.size, row.prefill_ms, row.origin,
                    tokens[start * 4 : (start + n_used) * 4],
                )
            )  # fmt: skip
            parent, start = row.key, start + n_used
        return Match(tuple(blocks), start)

    def has(self, key: bytes) -> bool:
        """Whether the index has a block.

        Raises:
            sqlite3.Error: the index cannot be read.
        """
        with self.index.read() as view:
            return view.sql.execute("SELECT 1 FROM block WHERE key = ?", (key,)).fetchone() is not None

    def load(self, ref: BlockRef) -> memoryview:
        """The payload of a block, every byte verified, and the block the one that was asked for.

        Raises:
            BlockDamaged: it is not.
            OSError: its file cannot be read.
        """
        block = open_block(self.keys, self.files.load(ref.key))
        header = block.header
        is_same = (header.key, header.parent, header.model, header.namespace, header.start) == (
            ref.key, ref.parent, ref.model, ref.namespace, ref.start,
        )  # fmt: skip
        if not is_same or not block.tokens.startswith(ref.tokens) or header.n_tokens != ref.n_tokens:
            raise BlockDamaged("it is another block than its name or the index says")
        return block.payload

    def write(self, batch: Sequence[Pending], kept: Iterable[bytes] = ()) -> WriteReport:
        """Store blocks. One whose parent is not stored would never be found and is not written.

        Args:
            batch: parents before children.
            kept: keys that are not evicted to make room.

        Raises:
            OSError, sqlite3.Error: nothing of the batch was stored.
        """
        wanted, known, n_dropped = self._wanted(batch)
        stay = {*kept, *(pending.parent for pending in wanted)}
        need, shortage = 0, ""
        drafts: list[tuple[Header, bytes, Path]] = []
        try:
            for pending in wanted:
                if not self.make_room(need + disk_bytes(pending.size_bytes), stay):
                    shortage = self.shortage
                    continue  # Those that follow it will find no parent.
                need += disk_bytes(pending.size_bytes)
                header, pieces = seal_block(
                    self.keys,
                    parent=pending.parent,
                    tokens=pending.tokens,
                    payload=pending.payload,
                    model=pending.model,
                    namespace=pending.namespace,
                    owner=pending.owner,
                    start=pending.start,
                    origin=pending.origin,
                    prefill_ms=pending.prefill_ms,
                    encrypted=self.encrypt,
                )
                drafts.append((header, pending.root, self.files.write(pieces)))
            n_written = self._publish(drafts, known, stay) if drafts or known else 0
        finally:
            for _, _, draft in drafts:
                self.files.discard(draft)
        return WriteReport(n_written, len(known), n_dropped + len(wanted) - n_written, shortage)

    def make_room(self, n_bytes: int, kept: Set[bytes] = frozenset()) -> bool:
        """Evict until so many bytes more keep within the budget and leave the disk its free space.

        Args:
            n_bytes: of disk, about to be written.
            kept: keys that stay.

        Returns:
            False when that much cannot be freed.

        Raises:
            OSError, sqlite3.Error: the disk failed.
        """
        self.shortage = ""
        if n_bytes > self.budget_bytes:
            return False
        # Asked once: some file systems give space back late, and asking again would evict everything.
        short = self.min_free_bytes + n_bytes - self.files.free_bytes()
        with self.index.read() as view:
            if view.disk() + n_bytes <= self.budget_bytes and short <= 0:
                return True
        while True:
            with self.index.write() as change:
                stay = change.leased(self.files.is_live) | kept
                for _ in range(_AT_A_TIME):
                    if change.disk() + n_bytes <= self.budget_bytes and short <= 0:
                        return True
                    freed = self._evict_one(change, stay)
                    if freed is None:
                        if short > 0:
                            self.shortage = f"less than {(self.min_free_bytes + n_bytes) >> 20} MiB of the disk are free"
                        return False
                    short -= freed

    def drop(self, ref: BlockRef, timeout_s: float | None = None) -> str | None:
        """Look again at a block that could not be read and, if it is still bad, remove it and what hangs below it.

        Args:
            ref: the block.
            timeout_s: as for `Index.write`.

        Returns:
            What is wrong with it; None when it is whole after all or was evicted meanwhile.

        Raises:
            OSError, sqlite3.Error: it cannot be removed.
        """
        with self.index.write(timeout_s) as change:
            if change.get(ref.key) is None:
                return None
            try:
                self.load(ref)
                return None
            except BlockDamaged as damage:
                reason = str(damage)
            except OSError as error:
                if is_transient(error):
                    raise
                reason = f"its file cannot be read ({error.strerror or error})"
            self.remove_subtree(change, ref.key)
            return reason

    def remove(self, change: Change, key: bytes) -> None:
        """Remove a block. Only inside `Index.write`.

        Raises:
            OSError, sqlite3.Error: it cannot be removed; undo the change.
        """
        # The row first: if the file stays (read-only disk), the transaction is undone.
        change.remove(key)
        self.files.remove(key)

    def remove_subtree(self, change: Change, key: bytes) -> int:
        """Remove a block and all that hangs below it. Only inside `Index.write`.

        Returns:
            How many rows were removed.

        Raises:
            OSError, sqlite3.Error: one of them cannot be removed.
        """
        found = change.descendants(key)
        for each in reversed(found):
            self.remove(change, each)
        return len(found)

    def lease(self, key: bytes, change_by: int, timeout_s: float) -> None:
        """Count one use more or fewer of a block by this store.

        Raises:
            sqlite3.Error: the index cannot be changed in time.
        """
        with self.index.write(timeout_s) as change:
            change.lease(self.files.live_id, key, change_by)

    def open(self, key: bytes) -> Block:
        """A block, verified, whatever the index says of it.

        Raises:
            BlockDamaged: it is not whole.
            OSError: its file cannot be read.
        """
        block = open_block(self.keys, self.files.load(key))
        if block.header.key != key:
            raise BlockDamaged("it is another block than its name says")
        return block

    def close(self) -> None:
        """Close it. May be called twice."""
        self.index.close()
        self.files.close()

    def _wanted(self, batch: Sequence[Pending]) -> tuple[list[Pending], list[Pending], int]:
        """Those to be written, those that are stored already, and how many have nothing to follow."""
        wanted: dict[bytes, Pending] = {}
        known = []
        n_dropped = 0
        with self.index.read() as view:
            for pending in batch:
                row = view.get(pending.parent)
                before = wanted.get(pending.parent)
                if view.get(pending.key) is not None or pending.key in wanted:
                    known.append(pending)
                elif (
                    (pending.start == 0 and pending.parent == pending.root)
                    or (row is not None and row.start + row.n_tokens == pending.start)
                    or (before is not None and before.start + len(before.tokens) // 4 == pending.start)
                ):
                    wanted[pending.key] = pending
                else:
                    n_dropped += 1
        return list(wanted.values()), known, n_dropped

    def _evict_one(self, change: Change, stay: Set[bytes]) -> int | None:
        """Evict the next block that is not in `stay`: bytes of disk it took, or None when there is none."""
        victim = change.next_victim(stay)
        if victim is None:
            return None
        self.remove(change, victim[0])
        self.n_evicted += 1
        return victim[1]

    def _fits(self, change: Change, n_bytes: int, stay: Set[bytes]) -> bool:
        """Whether so much more keeps within the budget, after evicting what must go for that."""
        while change.disk() + n_bytes > self.budget_bytes:
            if self._evict_one(change, stay) is None:
                return False
        return True

    def _publish(self, drafts: Sequence[tuple[Header, bytes, Path]], known: Sequence[Pending], kept: Set[bytes]) -> int:
        """Give drafts their names and rows. Other processes may have changed the store since `_wanted` and `make_room`."""
        published: list[bytes] = []
        now = self.clock()
        try:
            with self.index.write() as change:
                stay = change.leased(self.files.is_live) | kept
                for header, root, draft in drafts:
                    if change.get(header.key) is None:
                        has_parent = header.start == 0 or change.get(header.parent) is not None
                        if not has_parent or not self._fits(change, disk_bytes(header.file_bytes), stay):
                            continue
                        published.append(header.key)
                        self.files.publish(draft, header.key)
                    change.insert(header, root=root, budget_bytes=self.budget_bytes, now=now)
                    stay.add(header.key)
                for pending in known:
                    change.touch([pending.key], budget_bytes=self.budget_bytes, now=now, owner=pending.owner)
        except BaseException:
            for key in published:
                self.files.path(key).unlink(missing_ok=True)
            raise
        return len(published)
