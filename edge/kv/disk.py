"""Block files together with their index.

In all processes, a block file gets or loses its name only under the index's write lock, in the transaction that adds or removes
its row. A crash in between leaves a file without a row, which the next scan indexes, or a row without a file, which a read or
the scan drops; never a wrong block, since files are written under another name first and verified on every read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from edge.kv.blocks import Block, BlockDamaged, Header, open_block, seal_block
from edge.kv.entries import is_full, is_no_room, is_transient
from edge.kv.expiry import fit_model
from edge.kv.files import StoreFiles
from edge.kv.formats import OtherFormats, format_suffix
from edge.kv.index import Index
from edge.kv.keys import TOKEN_BYTES, entry_bytes
from edge.kv.limits import Limits
from edge.kv.lookup import longest_prefix
from edge.kv.options import StoreOptions
from edge.kv.owners import MOST_BLOCKS, wrong_owners
from edge.kv.records import BlockRef, Match, Pending
from edge.kv.rows import Change, disk_bytes
from edge.kv.uses import Uses, current_uses, pins_of
from edge.units import size_text

__all__ = ["EXPIRE_EVERY_S", "Disk", "WriteReport"]

_SCAN_EVERY_S = 7 * 24 * 3600.0
EXPIRE_EVERY_S = 600.0
_AT_A_TIME = 8
"""Files removed in one transaction, before others get their turn."""


class WriteReport(NamedTuple):
    """Result of writing a batch: blocks written, known, and dropped (no parent, no room); the shortage of space, or ""."""

    n_written: int
    n_known: int
    n_dropped: int
    shortage: str


class Disk:
    """An open store directory and its index.

    Args:
        directory: of the store.
        options: of the store.
        distrusted: a damaged index file, to be replaced.
        is_again: this process had it open before; if another has turned encryption on since, this one encrypts, too.

    Attributes:
        encrypts: new blocks are encrypted.
        files, index, uses, others, limits: the parts of the directory.
        needs_scan: files and index may disagree after a crash or with a new index; or blocks have to go, since they are plain
            or more than the options allow.
        needs_check: the totals of the index were not compared with its blocks yet.
        needs_emptying: the log of the index still holds rows that were deleted for good.
        n_evicted: blocks that this object evicted.
        expired_at: when it last looked for old blocks, as the options' timer says.
        shortage: why the last `make_room` failed, if other files take the space; or "".

    Raises:
        StorageError: it cannot be opened; see `StoreFiles`.
        OSError, sqlite3.Error: here and from every method: the disk failed. A change was not made then.
    """

    def __init__(
        self, directory: Path, options: StoreOptions, distrusted: Path | None = None, *, is_again: bool = False
    ) -> None:
        self.options = options
        self._is_torn = self._is_doubted = False
        self.n_evicted = 0
        self.needs_check = True
        self.needs_emptying = False
        self.shortage = ""
        suffix = format_suffix()
        self.files = StoreFiles(directory, options, suffix)
        self.keys = self.files.keys
        self.uses = Uses(self.files)
        self.others = OtherFormats(directory, suffix)
        self.limits = Limits(directory, options)
        self.expired_at = float("-inf")
        try:
            with self.files.opening():
                is_new_wish = self.files.note_encryption(options.encrypt, is_again=is_again)
                self.encrypts = options.encrypt or self.files.wants_encryption
                self.index = Index(
                    directory, self.keys.id, options, suffix=suffix, note=self.uses.append, distrusted=distrusted
                )  # fmt: skip
        except BaseException:
            self.files.close()
            raise
        scanned, taken = self.index.scanned, self.index.taken_bytes
        is_old = scanned is None or abs(options.clock() - scanned) > _SCAN_EVERY_S
        is_over = taken > options.budget_bytes or (taken > 0 and self.files.free_bytes() < options.min_free_bytes)
        self.needs_scan = self.files.found_crash or is_old or is_over or is_new_wish
        self.needs_scan = self.needs_scan or (self.encrypts and self.index.has_plain)

    def root(self, model: bytes, namespace: str) -> bytes:
        """Return what first blocks have in place of a parent's key."""
        return self.keys.root(model, namespace, encrypted=self.encrypts)

    def match(self, model: bytes, namespace: str, tokens: bytes, lost: Set[bytes], *, partial: bool) -> Match:
        """Find the longest stored prefix of packed tokens, without the blocks in `lost`."""
        parent = self.root(model, namespace)
        with self.index.read() as view:
            steps = longest_prefix(
                view,
                parent,
                tokens,
                path_of=lambda parent, tokens: self.keys.path(parent, tokens, encrypted=self.encrypts),
                entry_bytes=entry_bytes(encrypted=self.encrypts),
                is_usable=lambda key: key not in lost,
                partial=partial,
            )
        blocks = []
        start = 0
        for row, n_used in steps:
            used = tokens[start * TOKEN_BYTES : (start + n_used) * TOKEN_BYTES]
            blocks.append(BlockRef(row.key, parent, model, namespace, start, row.n_tokens, n_used, row.prefill_ms, used))
            parent, start = row.key, start + n_used
        return Match(tuple(blocks), start)

    def has(self, key: bytes) -> bool:
        """Return whether the index has a block."""
        with self.index.read() as view:
            return view.get(key) is not None

    def load(self, ref: BlockRef) -> memoryview:
        """Return the payload of a block, every byte verified.

        Raises:
            BlockDamaged: it is damaged, or another block.
        """
        block = self.open(ref.key)
        header = block.header
        found = header.parent, header.model, header.namespace, header.start, header.n_tokens
        if found != (ref.parent, ref.model, ref.namespace, ref.start, ref.n_tokens) or not block.tokens.startswith(ref.tokens):
            raise BlockDamaged("it is not the block that the index describes")
        return block.payload

    def write(self, batch: Sequence[Pending], protected: Iterable[bytes] = ()) -> WriteReport:
        """Store blocks, all or none, except those whose parent is not stored: they would never be found.

        Args:
            batch: parents before children.
            protected: keys that are not evicted to make room.
        """
        wanted, known, n_dropped = self._wanted(batch)
        stay = {*protected, *(pending.parent for pending in wanted)}
        limit, n_reserved = self.options.max_written_bytes, 0
        need, shortage = 0, ""
        drafts: list[tuple[Header, bytes, Path]] = []
        try:
            for pending in wanted:
                if not pending.is_allowed:
                    continue
                if not self.make_room(need + disk_bytes(pending.size_bytes), stay):
                    shortage = self.shortage
                    continue  # and `_publish` skips those that follow it
                need += disk_bytes(pending.size_bytes)
                if limit is not None and not self.limits.reserve(disk_bytes(pending.size_bytes), limit):
                    continue
                n_reserved += 0 if limit is None else disk_bytes(pending.size_bytes)
                header, pieces = seal_block(self.keys, pending, encrypted=self.encrypts)
                drafts.append((header, pending.root, self._draft(pieces, disk_bytes(pending.size_bytes), stay)))
            published = self._publish(drafts, known, stay) if drafts or known else []
            n_bytes = sum(disk_bytes(header.file_bytes) for header, _, _ in drafts if header.key in published)
            self.limits.reserve(n_bytes - n_reserved, None)
            n_written = len(published)
        finally:
            for _, _, draft in drafts:
                self.files.discard(draft)
        return WriteReport(n_written, len(known), n_dropped + len(wanted) - n_written, shortage)

    def _draft(self, pieces: Sequence[bytes], n_bytes: int, stay: Set[bytes]) -> Path:
        """Write a file; if there is no room, evict some blocks and try once more.

        The free space that `make_room` has seen says nothing about a quota, or how many files there may be.
        """
        try:
            return self.files.write(pieces)
        except OSError as error:
            is_room = not is_no_room(error) or not is_full(self.files.directory, n_bytes)
            if is_room or not self._evict_some(n_bytes, stay):
                raise
        return self.files.write(pieces)

    def _evict_some(self, n_bytes: int, protected: Set[bytes]) -> bool:
        """Evict blocks of so many bytes, and no fewer than one transaction takes; return whether there were any."""
        freed = n_evicted = 0
        while True:
            with self.index.write() as change:
                stay = change.leased(self.files.is_live) | protected
                for _ in range(_AT_A_TIME):
                    size = self._evict_one(change, stay)
                    if size is None:
                        return n_evicted > 0
                    freed, n_evicted = freed + size, n_evicted + 1
            if freed >= n_bytes:
                return True

    def make_room(self, n_bytes: int, protected: Set[bytes] = frozenset()) -> bool:
        """Evict until `n_bytes` more fit the budget and leave the disk its free space.

        Args:
            n_bytes: of disk, about to be written.
            protected: keys that are not evicted.

        Returns:
            False if that much cannot be freed.
        """
        self.shortage = ""
        floor_bytes = self.options.min_free_bytes + n_bytes
        if n_bytes > self.options.budget_bytes:
            return False
        self.others.count(self.options.timer())
        # Asked once: some file systems free space late, and asking again would evict everything.
        short = floor_bytes - self.files.free_bytes()
        with self.index.read() as view:
            over = view.disk() + n_bytes - self._budget_bytes
        if over > 0 or short > 0:
            short -= self.others.evict(max(over, short))
        else:
            return True
        while True:
            with self.index.write() as change:
                stay = change.leased(self.files.is_live) | protected
                for _ in range(_AT_A_TIME):
                    if change.disk() + n_bytes <= self._budget_bytes and short <= 0:
                        return True
                    freed = self._evict_one(change, stay)
                    if freed is None:
                        self._doubt_index()
                        if short > 0:
                            self.shortage = f"less than {size_text(floor_bytes)} of the disk are free"
                        return False
                    short -= freed

    def drop(self, ref: BlockRef, timeout_s: float | None = None) -> str | None:
        """Read a block again that could not be read and, if it is still bad, remove it and its descendants.

        Args:
            ref: the block.
            timeout_s: as for `Index.write`.

        Returns:
            The damage; None if it is whole after all or was evicted meanwhile.
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
        """Remove a block. Only inside `Index.write`."""
        # The row first: if the file cannot be removed (read-only disk), the transaction is rolled back.
        change.remove(key)
        self.files.remove(key)

    def remove_subtree(self, change: Change, key: bytes) -> int:
        """Remove a block and its descendants, and return how many rows that were. Only inside `Index.write`."""
        found = change.descendants(key)
        for each in reversed(found):
            self.remove(change, each)
        return len(found)

    def lease(self, key: bytes, change_by: int, timeout_s: float) -> None:
        """Count one more (+1) or one less (-1) use of a block by this store."""
        with self.index.write(timeout_s) as change:
            change.lease(self.files.live_id, key, change_by)

    def open(self, key: bytes) -> Block:
        """Return a verified block, of which the index tells only the size.

        Raises:
            BlockDamaged: it is damaged, or another block.
        """
        with self.index.read() as view:
            size = view.size(key)
        if size is not None and not self.files.has_size(key, size):
            self.needs_scan = True  # it corrects the index
        block = open_block(self.keys, self.files.load(key))
        if block.header.key != key:
            raise BlockDamaged("it is not the block of its name")
        return block

    @property
    def is_outdated(self) -> bool:
        """Another process has replaced the index, or turned encryption on."""
        return not self.index.is_current() or (self.files.wants_encryption and not self.encrypts)

    def empty_log(self) -> bool:
        """Empty the log of the index, which still holds deleted rows; return False if another process reads it just now."""
        self.needs_emptying = not self.index.checkpoint(emptying=True)
        return not self.needs_emptying

    def heal_uses(self) -> None:
        """Make pins and users in the index those of the log, and rewrite the log if it is damaged or has grown.

        Raises:
            OSError, sqlite3.Error: as everywhere.
        """
        log = self.uses.read()
        pinned = pins_of(log.uses)
        with self.index.read() as view:
            in_index = {key for (key,) in view.sql.execute("SELECT key FROM block WHERE pinned")}
            newest = view.newest()
        is_whole = log.is_whole and (newest is None or any(use.key == newest for use in log.uses))
        if is_whole and in_index != pinned:
            with self.index.write() as change:
                change.set_pins(pinned)
        if is_whole:
            self.heal_owners()
        if not is_whole or self.uses.is_grown:
            self._rewrite_uses()

    def heal_owners(self, owners: Sequence[str] | None = None) -> None:
        """Make the users of blocks in the index those of the log, if that is whole and the store is not very large.

        Args:
            owners: look only at blocks that these use; None looks at all.

        Raises:
            OSError, sqlite3.Error: as everywhere.
        """
        with self.index.read() as view:
            if view.totals()[0] > MOST_BLOCKS:
                return
        log = self.uses.read()
        with self.index.long_read() as view:
            if not log.is_whole or wrong_owners(view, log.uses, owners) == ((), ()):
                return
        with self.index.write() as change:  # no other process appends to the log just now
            log = self.uses.read()
            if log.is_whole:
                change.set_owners(*wrong_owners(change, log.uses, owners))

    def _rewrite_uses(self) -> None:
        with ExitStack() as stack:
            with self.index.write():  # no other process appends just now
                since = self.uses.size()
                view = stack.enter_context(self.index.long_read())
                view.disk()  # the view stays as it is now
            draft = self.uses.rewrite(current_uses(view))
        with self.index.write():
            self.uses.put_in_place(draft, since)

    def close(self) -> None:
        """Close it. May be called twice."""
        self.limits.close()
        self.index.close()
        self.files.close(looks_crashed=self._is_torn)

    def _doubt_index(self) -> None:
        """Check an index in which nothing can be evicted, once: it may protect blocks that nobody needs."""
        if not self._is_doubted:
            self._is_doubted = True
            self.index.check()

    @property
    def wants_expiry(self) -> bool:
        """It is time to look for old blocks and pins that end; see expiry.py."""
        options = self.options
        has_limits = options.max_age_s is not None or options.has_model_budgets or self.limits.has_ends
        return has_limits and options.timer() >= self.expired_at + EXPIRE_EVERY_S

    @property
    def _budget_bytes(self) -> int:
        """Disk space that blocks of this format may take now."""
        return self.options.budget_bytes - self.others.size_bytes

    def _wanted(self, batch: Sequence[Pending]) -> tuple[list[Pending], list[Pending], int]:
        """Return the blocks to write, those stored already, and the number that have no parent."""
        wanted: dict[bytes, Pending] = {}
        known = []
        n_dropped = 0
        with self.index.read() as view:
            for pending in batch:
                row = view.get(pending.parent)
                before = wanted.get(pending.parent)
                if pending.root != self.root(pending.model, pending.namespace):  # encryption was turned on since
                    n_dropped += 1
                elif view.get(pending.key) is not None or pending.key in wanted:
                    known.append(pending)
                elif (
                    (pending.start == 0 and pending.parent == pending.root)
                    or (row is not None and row.start + row.n_tokens == pending.start)
                    or (before is not None and before.start + len(before.tokens) // TOKEN_BYTES == pending.start)
                ):
                    wanted[pending.key] = pending
                else:
                    n_dropped += 1
        return list(wanted.values()), known, n_dropped

    def _evict_one(self, change: Change, stay: Set[bytes]) -> int | None:
        """Evict the next block that is not in `stay`; return its bytes of disk, or None if there is none."""
        victim = change.next_victim(stay)
        if victim is None:
            return None
        self.remove(change, victim[0])
        self.n_evicted += 1
        return victim[1]

    def _fits(self, change: Change, n_bytes: int, stay: Set[bytes]) -> bool:
        """Return whether `n_bytes` more fit the budget, after evicting what is necessary."""
        while change.disk() + n_bytes > self._budget_bytes:
            if self._evict_one(change, stay) is None:
                return False
        return True

    def _publish(
        self, drafts: Sequence[tuple[Header, bytes, Path]], known: Sequence[Pending], protected: Set[bytes]
    ) -> list[bytes]:
        """Give drafts their names and rows. Other processes may have changed the store since `_wanted` and `make_room`."""
        published: list[bytes] = []
        names = self.limits.names() if self.options.has_model_budgets else {}
        try:
            with self.index.write() as change:
                if self.is_outdated:
                    return []
                stay = change.leased(self.files.is_live) | protected
                for header, root, draft in drafts:
                    if change.get(header.key) is None:
                        has_parent = header.start == 0 or change.get(header.parent) is not None
                        n_bytes = disk_bytes(header.file_bytes)
                        if not has_parent or not fit_model(self, change, header.model, n_bytes, stay, names):
                            continue
                        if not self._fits(change, n_bytes, stay):
                            continue
                        published.append(header.key)
                        self.files.publish(draft, header.key)
                    change.insert(header, root)
                    stay.add(header.key)
                for pending in known:
                    change.touch([pending.key], pending.owner)
        except BaseException:
            for key in published:
                try:
                    self.files.path(key).unlink(missing_ok=True)
                except OSError:
                    self.needs_scan = self._is_torn = True  # a scan indexes the file, once the disk works again
            raise
        return published
