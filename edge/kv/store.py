"""Blocks of KV cache on the disk: found by their tokens, written behind the reply, bounded, verified, private.

A prompt that begins like anything this device has read before finds that beginning here, in this process or another, after a
restart too. The store knows nothing of engines: payloads are opaque bytes (see blocks.py for what is kept of each, index.py for
how they are found, disk.py for what happens when processes meet or die).

Nothing that happens to the disk raises into a turn: `match` then finds nothing, `read` gives None, `put` drops, and `problem`
says why. Calls that people make (`stats`, `ls`, `verify`, `gc`, `forget`, `clear`) raise StorageError instead.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edge.errors import EdgeError, StorageError
from edge.kv.background import Background
from edge.kv.blocks import BlockDamaged, check_block, pack_tokens
from edge.kv.disk import Disk
from edge.kv.files import Secret, StoreBusyError, is_transient
from edge.kv.index import BUSY_TIMEOUT_S, FAILURES, explain, is_busy
from edge.kv.maintenance import clear, forget, list_blocks, scan, verify
from edge.kv.records import (
    BlockInfo,
    BlockRef,
    ForgetReport,
    GcReport,
    ImportReport,
    Match,
    Pending,
    PlainBlock,
    StoreStats,
    VerifyReport,
)

__all__ = ["BlockRef", "BlockStore", "GcReport", "Match"]

_log = logging.getLogger("edge.kv")
MIN_FREE_BYTES = 1 << 30
QUEUE_BYTES = 64 << 20
_HOT_TIMEOUT_S = 0.05
"""The longest that a turn may wait for another process's change of the index."""
_DROP_TIMEOUT_S = 1.0
"""The same for removing a damaged block, which happens once for each; the thread does it later where that is not enough."""


class BlockStore:
    """A directory of blocks. Thread-safe; several processes may use one directory.

    Args:
        directory: made where it does not exist; private (0700, files 0600).
        budget_bytes: the most that blocks may take of the disk. The index comes on top, about 1.5 kB a block.
        min_free_bytes: the store never takes the disk's last so many bytes, and gives them back by evicting.
        encrypt: encrypt new blocks, and remove plain ones. Blocks are authenticated either way.
        secret: 32 bytes kept elsewhere; None keeps random ones in a private file of the directory; "keyring" finds them in the
            keyring of the operating system, and puts those of a new store that encrypts there, if there is one.
        queue_bytes: how much may wait to be written; more is dropped.
        sync: ask the disk to keep each block before it counts. Off, a power cut loses more of the last ones.
        retry_s: how long to stay away from a disk that failed.
        clock: unix seconds; for people and for when to look around, never for what to evict.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        budget_bytes: int,
        min_free_bytes: int = MIN_FREE_BYTES,
        encrypt: bool = False,
        secret: Secret = None,
        queue_bytes: int = QUEUE_BYTES,
        sync: bool = True,
        retry_s: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = Path(directory)
        self.budget_bytes = budget_bytes

        def open_disk(distrusted: Path | None) -> Disk:
            return Disk(
                self.directory,
                budget_bytes=budget_bytes,
                min_free_bytes=min_free_bytes,
                encrypt=encrypt,
                secret=secret,
                sync=sync,
                clock=clock,
                distrusted=distrusted,
            )

        self._background = Background(open_disk, queue_bytes=queue_bytes, retry_s=retry_s)

    @property
    def problem(self) -> str | None:
        """Why nothing is stored just now, as the end of a sentence; None when all is well."""
        return self._background.problem

    def match(self, fingerprint: bytes, namespace: str, tokens: Sequence[int], *, partial: bool = True) -> Match:
        """Find the longest stored beginning of a row of tokens.

        Args:
            fingerprint: of model and engine, 32 bytes; see `edge.kv.blocks.fingerprint`.
            namespace: only blocks of this one are found.
            tokens: token ids from position 0.
            partial: whether the first tokens of a block count when the rest differs. Off for engines whose states cannot be
                cut; then only the payload of the last block of a match is of use to them.

        Returns:
            Blocks to be read one after the other; empty when nothing is found or the store is off.
        """
        disk = self._background.disk
        if disk is None or not tokens:
            return Match()
        packed = pack_tokens(tokens)
        try:
            return disk.match(fingerprint, namespace, packed, self._background.lost.keys(), partial=partial)
        except FAILURES as error:
            self._background.fail(error, disk)
            return Match()

    def warm_up(self) -> None:
        """Say that turns will come: the background thread does beforehand what the first one would wait for."""
        self._background.warm_up()

    def prefetch(self, refs: Iterable[BlockRef]) -> None:
        """Say which blocks will be read soon: where the system can, it fetches them from the disk on the side."""
        disk = self._background.disk
        if disk is not None:
            for ref in refs:
                disk.files.prefetch(ref.key)

    def read(self, ref: BlockRef) -> memoryview | None:
        """The payload of a block, every byte of its file verified.

        Args:
            ref: from `match`.

        Returns:
            The bytes that were put; None when they are not to be had: damaged, missing, another's, evicted meanwhile. What was
            damaged is dropped, with all that hangs below it, and logged once. Compute these tokens and all after them.
        """
        disk = self._background.disk
        if disk is None or ref.key in self._background.lost:
            return None
        try:
            return disk.load(ref)
        except BlockDamaged as damage:
            self._lose(disk, ref, str(damage))
        except OSError as error:
            if not is_transient(error):
                self._lose(disk, ref, explain(error))
        except FAILURES as error:
            self._background.fail(error, disk)
        return None

    def has(self, key: bytes) -> bool:
        """Whether a block is stored or waits to be written. What follows one that is neither cannot be stored."""
        disk = self._background.disk
        if disk is None or self._background.is_waiting(key):
            return disk is not None
        try:
            return disk.has(key)
        except FAILURES as error:
            self._background.fail(error, disk)
            return False

    def put(
        self,
        parent: bytes | None,
        tokens: Sequence[int],
        payload: bytes,
        *,
        fingerprint: bytes,
        namespace: str,
        start: int,
        prefill_ms: float = 0.0,
        origin: str = "prefill",
        owner: str | None = None,
    ) -> bytes | None:
        """Hand over a block to be written in the background. Never waits for the disk.

        Args:
            parent: the key of the block that ends where this one starts; None at position 0.
            tokens: the token ids it holds, at least one.
            payload: what the engine exported. Not copied if it is `bytes`.
            fingerprint: as for `match`.
            namespace: as for `match`.
            start: position of its first token.
            prefill_ms: what computing it took; blocks that save more per byte are kept longer.
            origin: "prefill" or "decode".
            owner: who uses it, for `forget`; usually a conversation's id.

        Returns:
            Its key, the parent of what follows; also when it is stored already. None when it was dropped (the store is off,
            the queue full, the parent None though `start` is not 0): what follows it cannot be stored either.

        Raises:
            UsageError: an argument is outside what a block can hold.
        """
        check_block(
            model=fingerprint, namespace=namespace, owner=owner or "", start=start, n_tokens=len(tokens),
            payload_bytes=len(payload), origin=origin, prefill_ms=prefill_ms,
        )  # fmt: skip
        disk = self._background.disk
        if disk is None or (parent is None and start > 0):
            self._background.n_dropped += 1
            return None
        root = disk.root(fingerprint, namespace)
        packed = pack_tokens(tokens)
        before = root if start == 0 else parent or root
        key = disk.keys.block(fingerprint, namespace, before, packed)
        pending = Pending(
            key, before, root, packed, bytes(payload), fingerprint, namespace, owner or "", start, origin, prefill_ms
        )
        return key if self._background.put(pending) else None

    def touch(self, keys: Iterable[bytes], *, owner: str | None = None) -> None:
        """Say that blocks were used, and by whom. Written down in the background, many at a time.

        Args:
            keys: of blocks, parents first.
            owner: uses them from now on: others' `forget` leaves them.
        """
        self._background.touch(keys, owner or "")

    @contextmanager
    def lease(self, match: Match) -> Iterator[None]:
        """Keep the blocks of a match from being evicted, by this or another process, until the block ends.

        It ends with the process, too. It does not keep a block from being forgotten, or dropped as damaged.
        """
        disk = self._background.disk
        if disk is None or not match.blocks:
            yield
            return
        key = match.blocks[-1].key  # Those before it have one that follows, and stay for that.
        self._background.lease(key)
        is_noted = False
        try:
            try:
                disk.lease(key, 1, _HOT_TIMEOUT_S)
                is_noted = True
            except sqlite3.Error as error:
                # Others may evict it then, and `read` gives None: slower, not wrong.
                _log.debug("a lease was not noted: %s", error)
            yield
        finally:
            self._background.release(key, is_noted=is_noted)

    def pin(self, key: bytes) -> None:
        """Never evict a block, nor what it hangs on. Holds once it is written, in all processes, until `unpin`."""
        self._background.pin(key, True)

    def unpin(self, key: bytes) -> None:
        """Let a block be evicted again."""
        self._background.pin(key, False)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that was put, touched and pinned is on the disk, or was dropped.

        Returns:
            False when the time was over first.
        """
        return self._background.flush(timeout_s)

    def forget(self, owner: str) -> ForgetReport:
        """Delete the blocks that only this owner used: a conversation is deleted.

        Blocks that somebody else's blocks follow stay, and pinned ones. What was never noted of use by others (`put` with
        `owner`, `touch` with `owner`) does not count. A flash disk may keep the bytes of deleted files for a while; encrypted
        blocks are of no use to whoever finds them without the key.

        Raises:
            StorageError: not all could be deleted.
        """
        self._background.discard(owner)
        with self._maintained() as disk:
            self._settle()
            return forget(disk, owner)

    def stats(self) -> StoreStats:
        """What is in the store.

        Raises:
            StorageError: the store is off.
        """
        background = self._background
        with self._maintained() as disk, disk.index.long_read() as view:
            n_blocks, n_tokens, size, prefill_ms = view.totals()
            return StoreStats(
                n_blocks, n_tokens, size, self.budget_bytes, disk.index.file_bytes(), disk.files.free_bytes(), prefill_ms,
                view.spaces(), background.n_queued(), background.n_written, background.n_known, background.n_dropped,
                disk.n_evicted, background.n_lost,
            )  # fmt: skip

    def ls(self, *, owner: str | None = None) -> list[BlockInfo]:
        """All blocks, or those of one owner, parents before children.

        Raises:
            StorageError: the store is off.
        """
        with self._maintained() as disk:
            return list_blocks(disk, owner)

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Read every block; drop those that are not whole, with what hangs below them.

        Args:
            on_progress: called with (blocks done, blocks in all).

        Raises:
            StorageError: the store is off, or the disk failed.
        """
        with self._maintained() as disk:
            report = verify(disk, on_progress)
            self._background.n_lost += len(report.damaged)
            return report

    def gc(self) -> GcReport:
        """Make files and index agree, and keep the budget. The store does this by itself after a crash and now and then.

        Raises:
            StorageError: the store is off, or the disk failed.
        """
        with self._maintained() as disk:
            self._settle()
            return scan(disk)

    def clear(self) -> int:
        """Delete every block, pinned or not.

        Returns:
            How many there were.

        Raises:
            StorageError: not all could be deleted.
        """
        self._background.discard(None)
        with self._maintained() as disk:
            self._settle()
            return clear(disk)

    def export_blocks(self, owner: str) -> Iterator[PlainBlock]:
        """The blocks of an owner and those they follow, parents first, verified and readable; for `write_bundle`.

        Damaged ones are left out, with what follows them.

        Raises:
            StorageError: the store is off, or the disk failed.
        """
        from edge.kv import bundle

        with self._maintained() as disk:
            self._settle()
            yield from bundle.plain_blocks(disk, owner)

    def import_blocks(self, blocks: Iterable[PlainBlock], owner: str) -> ImportReport:
        """Store blocks of another store, sealed with the key of this one, and wait until they are on the disk.

        Args:
            blocks: parents before children.
            owner: who uses them here.

        Raises:
            StorageError: the store is off, the disk failed, or `blocks` cannot be read.
            UsageError: one is outside what a block can hold.
        """
        from edge.kv import bundle

        with self._maintained() as disk:
            return bundle.add_blocks(self, disk, blocks, owner)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is queued, as far as time allows, and close the store. May be called twice.

        A process that ends without it loses what is queued, nothing else.
        """
        self._background.close(timeout_s)

    def __enter__(self) -> BlockStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _lose(self, disk: Disk, ref: BlockRef, reason: str) -> None:
        self._background.lost[ref.key] = ref  # at once, so that nobody is given it again while it is removed
        try:
            found = disk.drop(ref, _DROP_TIMEOUT_S)
            self._background.lost.pop(ref.key, None)
            if found is None:
                return  # evicted meanwhile, or whole after all
        except FAILURES as error:
            self._background.fail(error, disk)
            if is_busy(error):
                self._background.drop_lost()
        self._background.n_lost += 1
        _log.warning("KV block %s is dropped and will be computed again: %s", ref.key.hex()[:12], reason)

    def _settle(self) -> None:
        """Let the background thread end what it is at, which could otherwise come after what is done now."""
        if not self._background.flush(BUSY_TIMEOUT_S):
            waited = f"did not come to an end with what was put for {BUSY_TIMEOUT_S:.0f} seconds"
            raise StoreBusyError(f"The KV store's thread {waited}: others keep it busy.", "Nothing is lost. Try again.")

    @contextmanager
    def _maintained(self) -> Iterator[Disk]:
        hint = f"Check the disk and the permissions of {self.directory}."
        disk = self._background.disk
        if disk is None:
            background = self._background
            raise StorageError(f"The KV store cannot be used: {background.problem or 'it is closed'}.", background.hint or hint)
        try:
            yield disk
        except EdgeError:
            raise  # not of the disk: it says itself what happened
        except FAILURES as error:
            self._background.fail(error, disk)
            if is_busy(error):
                hint = f"Nothing is lost. Try again when others that use {self.directory} have less to do."
            raise StorageError(f"The KV store failed: {explain(error)}.", hint) from error
