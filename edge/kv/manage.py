"""Calls of a block store that people make: look at it, forget, verify, tidy. They wait for the disk, and say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edge.errors import EdgeError, StorageError
from edge.kv.background import Background
from edge.kv.carry import plain_blocks
from edge.kv.disk import Disk
from edge.kv.expiry import expire
from edge.kv.files import StoreBusyError
from edge.kv.index import explain, is_busy
from edge.kv.listing import each_block, find_keys, keys_of_owner, list_blocks, list_namespaces, list_owners, usages
from edge.kv.maintenance import clear, forget, forget_namespace, scan, verify
from edge.kv.options import StoreOptions
from edge.kv.records import (
    BlockInfo,
    ForgetReport,
    GcReport,
    PlainBlock,
    StoreStats,
    Usage,
    VerifyReport,
)

__all__ = ["ManagedStore"]


class ManagedStore:
    """A directory of blocks, as those see it who manage it. See `BlockStore`.

    Args:
        directory: of the store.
        options: of the store.
    """

    def __init__(self, directory: Path, options: StoreOptions) -> None:
        self.directory, self.options = directory, options
        self._background = Background(directory, options)

    def forget(self, owner: str) -> ForgetReport:
        """Delete the blocks that only this owner used, since a conversation is deleted.

        Pinned blocks and parents of others' blocks stay. Only uses with an owner (`put`, `touch`) count. A flash disk may keep
        the bytes of deleted files for a while; encrypted blocks are useless without the key.

        Raises:
            StorageError: not all could be deleted.
        """
        return self.forget_all([owner])[owner]

    def forget_all(self, owners: Sequence[str]) -> dict[str, ForgetReport]:
        """As `forget`, for several owners.

        Raises:
            StorageError: not all could be deleted.
        """
        for owner in owners:
            self._background.discard(owner)
        with self._maintained() as disk:
            self._settle()
            reports = forget(disk, owners)
        if any(report.is_in_log for report in reports):
            self._background.empty_log()
        return dict(zip(owners, reports, strict=True))

    def forget_namespace(self, namespace: str) -> ForgetReport:
        """Delete all blocks of a namespace, also pinned ones and those of several owners.

        Raises:
            StorageError: not all could be deleted.
        """
        with self._maintained() as disk:
            self._settle()
            report = forget_namespace(disk, namespace)
        if report.is_in_log:
            self._background.empty_log()
        return report

    def stats(self) -> StoreStats:
        """Return the content of the store in numbers.

        Raises:
            StorageError: the store is off.
        """
        background = self._background
        with self._maintained() as disk, disk.index.long_read() as view:
            n_blocks, n_tokens, size, prefill_ms = view.totals()
            return StoreStats(
                n_blocks, n_tokens, size, self.options.budget_bytes, disk.index.file_bytes(), disk.files.free_bytes(),
                prefill_ms, view.spaces(), background.n_queued(), background.n_written, background.n_known,
                background.n_dropped, disk.n_evicted, background.n_lost, disk.limits.written_today(),
                {key.hex(): name for key, name in disk.limits.names().items()},
            )  # fmt: skip

    def n_blocks(self) -> int:
        """Return the number of blocks.

        Raises:
            StorageError: the store is off.
        """
        with self._maintained() as disk, disk.index.read() as view:
            return view.totals()[0]

    def ls(self, *, owner: str | None = None) -> list[BlockInfo]:
        """List all blocks, or those of one owner, parents before children.

        Raises:
            StorageError: the store is off.
        """
        with self._maintained() as disk:
            return list_blocks(disk, owner)

    def each_block(self) -> Iterator[BlockInfo]:
        """Yield all blocks in the order in which they were stored, in bounded memory.

        Raises:
            StorageError: the store is off.
        """
        with self._maintained() as disk:
            yield from each_block(disk)

    def usages(self, newest: int | None = None) -> list[Usage]:
        """Add up the blocks of each model and namespace that the same owners use.

        Args:
            newest: how many blocks count, from the one that was stored last, at about 10 us each; None is all.

        Raises:
            StorageError: the store is off.
        """
        with self._maintained() as disk:
            return usages(disk, newest)

    def owners(self, beginning: str = "") -> list[str]:
        """List the owners of blocks whose names begin so, sorted.

        Raises:
            StorageError: the store is off.
        """
        with self._maintained() as disk:
            return list_owners(disk, beginning)

    def keys(self, owner: str) -> list[str]:
        """List the keys of an owner's blocks in hexadecimal, parents before children.

        Raises:
            StorageError: the store is off.
        """
        with self._maintained() as disk:
            return keys_of_owner(disk, owner)

    def namespaces(self) -> list[str]:
        """List the namespaces of all blocks, sorted.

        Raises:
            StorageError: the store is off.
        """
        with self._maintained() as disk:
            return list_namespaces(disk)

    def find_keys(self, beginning: str) -> list[str]:
        """List the keys, in hexadecimal, that begin with these digits.

        Raises:
            StorageError: the store is off.
        """
        with self._maintained() as disk:
            return find_keys(disk, beginning)

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Read every block and drop damaged ones with their descendants.

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
        """Make files and index agree, and keep the budget. The store does this by itself after a crash and once a week.

        Raises:
            StorageError: the store is off, or the disk failed.
        """
        try:
            with self._maintained() as disk:
                self._settle()
                return replace(scan(disk), n_expired=expire(disk))
        except StorageError:
            if not self._background.is_healing:
                raise
        self._settle()  # until the thread has built another index
        with self._maintained() as disk:
            return replace(scan(disk), n_expired=expire(disk))

    def clear(self) -> int:
        """Delete every block, pinned or not, and return how many there were.

        Raises:
            StorageError: not all could be deleted.
        """
        self._background.discard(None)
        with self._maintained() as disk:
            self._settle()
            n_blocks = clear(disk)
        if disk.needs_emptying:
            self._background.empty_log()
        return n_blocks

    def export_blocks(self, owner: str) -> Iterator[PlainBlock]:
        """Yield the blocks of an owner and their ancestors, parents first, verified and readable; for `write_bundle`.

        Damaged ones are left out, with their descendants.

        Raises:
            StorageError: the store is off, or the disk failed.
        """
        with self._maintained() as disk:
            self._settle()
            yield from plain_blocks(disk, owner)

    def _settle(self) -> None:
        """Let the background thread finish, whose changes could otherwise follow the caller's."""
        timeout_s = self.options.busy_timeout_s
        if not self._background.flush(timeout_s):
            waited = f"did not finish its queue within {timeout_s:.0f} seconds"
            raise StoreBusyError(f"The KV store's thread {waited}: others keep it busy.", "Nothing is lost. Try again.")

    @contextmanager
    def _maintained(self) -> Iterator[Disk]:
        background = self._background
        hint = f"Check the disk and the permissions of {self.directory}."
        background.wait_open(self.options.open_timeout_s)
        disk = background.disk
        if disk is None:
            raise StorageError(f"The KV store cannot be used: {background.problem or 'it is closed'}.", background.hint or hint)
        try:
            yield disk
        except EdgeError:
            raise  # not about the disk: it explains itself
        except Exception as error:
            background.fail(error, disk)
            if is_busy(error):
                hint = f"Nothing is lost. Try again when others that use {self.directory} have less to do."
            raise StorageError(f"The KV store failed: {explain(error)}.", hint) from error
