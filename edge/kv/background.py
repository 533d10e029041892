"""The thread behind a block store: writes what turns leave behind, keeps the store in order, and minds the disk.

No turn waits for it and no failure of the disk reaches a turn. What cannot be stored is dropped; after a failure the store says
what is wrong, stays away from the disk for a while and then tries again by itself.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from edge.errors import EdgeError, StorageError
from edge.kv.disk import Disk
from edge.kv.index import FAILURES, explain, is_busy, is_damage
from edge.kv.maintenance import scan
from edge.kv.records import BlockRef, Pending

__all__ = ["Background"]

_log = logging.getLogger("edge.kv")
TOUCH_DELAY_S = 2.0
_BATCH_BYTES = 16 << 20
_BATCH_BLOCKS = 64
_LOG_BYTES = 4 << 20
_RETRY_BUSY_S = 1.0
_BUSY_PAUSE_S = 0.05


@dataclass(slots=True)
class _Work:
    """What the thread takes at a time."""

    batch: list[Pending] = field(default_factory=list)
    touched: dict[tuple[bytes, str], None] = field(default_factory=dict)
    pins: dict[bytes, bool] = field(default_factory=dict)
    released: list[bytes] = field(default_factory=list)


class Background:
    """Owns the open store and the thread that writes to it.

    Args:
        open_disk: opens the store; its argument is an index file that turned out to be damaged, or None.
        queue_bytes: how much may wait to be written; more is dropped.
        retry_s: how long to stay away from a disk that failed.

    Attributes:
        problem: why nothing is stored just now, or None.
        hint: what to do about it, where the failure said so.
        leased: keys in use in this process, with how often.
        lost: blocks found bad whose rows could not be removed yet.
        n_written, n_known, n_dropped, n_lost: see StoreStats.
    """

    def __init__(self, open_disk: Callable[[Path | None], Disk], *, queue_bytes: int, retry_s: float) -> None:
        self._open_disk, self._queue_bytes, self._retry_s = open_disk, queue_bytes, retry_s
        self._pid = os.getpid()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._queue: deque[Pending] = deque()
        self._queued_bytes = 0
        self._unwritten: set[bytes] = set()  # keys from `put` until they are in the index, or dropped
        self._work = _Work()  # but for its batch, which is the queue
        self._is_busy = self._is_closing = self._wants_open = self._wants_drop = self._wants_log = False
        self._n_flushing = 0
        self._disk: Disk | None = None
        self._retry_at = self._distrusted_at = 0.0
        self._distrusted: Path | None = None
        self.problem: str | None = None
        self.hint = ""
        self.leased: Counter[bytes] = Counter()
        self.lost: dict[bytes, BlockRef] = {}
        self.n_written = self.n_known = self.n_dropped = self.n_lost = 0
        self._open_first()

    @property
    def disk(self) -> Disk | None:
        """The open store; None while it is off. When it is time to try again, the thread is told to."""
        if os.getpid() != self._pid:
            self.problem = "this process was forked from the one that opened it"
            return None
        if self._disk is None and self.problem is not None and not self._is_closing and self._may_try():
            self._wants_open = True
            self._poke()
        return self._disk

    def put(self, pending: Pending) -> bool:
        """Queue a block. Never waits.

        Returns:
            False when it was dropped.
        """
        with self._wake:
            is_full = self._queued_bytes + pending.size_bytes > self._queue_bytes
            if is_full or self._is_closing or not self._may_try():
                self.n_dropped += 1
                return False
            self._queue.append(pending)
            self._unwritten.add(pending.key)
            self._queued_bytes += pending.size_bytes
        self._poke()
        return True

    def touch(self, keys: Iterable[bytes], owner: str) -> None:
        """Note a use of blocks, to be written down after what is queued now."""
        with self._wake:
            if self._may_try():
                self._work.touched.update(((key, owner), None) for key in keys)
        self._poke()

    def pin(self, key: bytes, is_pinned: bool) -> None:
        """Note a pin, to be written down after what is queued now."""
        with self._wake:
            if self._may_try():
                self._work.pins[key] = is_pinned
        self._poke()

    def lease(self, key: bytes) -> None:
        """Begin a lease in this process."""
        with self._wake:
            self.leased[key] += 1

    def release(self, key: bytes, *, is_noted: bool) -> None:
        """End a lease, and take it out of the index if it was noted there."""
        with self._wake:
            self.leased[key] -= 1
            if self.leased[key] <= 0:
                del self.leased[key]
            if not is_noted:
                return
            self._work.released.append(key)
        self._poke()

    def discard(self, owner: str | None) -> None:
        """Drop what waits to be written for an owner; None drops everything."""
        with self._wake:
            kept = [] if owner is None else [pending for pending in self._queue if pending.owner != owner]
            self.n_dropped += len(self._queue) - len(kept)
            self._queue = deque(kept)
            self._queued_bytes = sum(pending.size_bytes for pending in kept)
            self._unwritten = {pending.key for pending in kept}
            for item in [item for item in self._work.touched if owner in (None, item[1])]:
                del self._work.touched[item]

    def is_waiting(self, key: bytes) -> bool:
        """Whether a block waits to be written."""
        with self._wake:
            return key in self._unwritten

    def drop_lost(self) -> None:
        """Have the blocks in `lost` removed as soon as others let go of the index."""
        with self._wake:
            self._wants_drop = True
        self._poke()

    def warm_up(self) -> None:
        """Have the thread do what the first turn would wait for."""
        with self._wake:
            self._wants_log = True
        self._poke()

    def n_queued(self) -> int:
        """How many blocks wait to be written."""
        with self._wake:
            return len(self._queue)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was asked for is done.

        Returns:
            False when the time was over first.
        """
        with self._wake:
            self._n_flushing += 1
            self._wake.notify_all()
            try:
                return self._wake.wait_for(lambda: not self._is_busy and not self._has_work(), timeout_s)
            finally:
                self._n_flushing -= 1

    def fail(self, error: BaseException, disk: Disk | None = None) -> None:
        """Stay away from the disk for a while, and say why. That others are busy with it is no reason to.

        Args:
            error: what happened.
            disk: what it happened to; nothing is done if that is not in use any more.
        """
        now = time.monotonic()
        reason = explain(error)
        with self._wake:
            if disk is not None and disk is not self._disk:
                return
            if is_busy(error) and self._disk is not None:
                _log.debug("KV store: %s", reason)
                return
            if self._may_try():  # else it is staying away already, and must not do so for ever
                self._retry_at = now + (min(self._retry_s, _RETRY_BUSY_S) if is_busy(error) else self._retry_s)
            if self.problem is None:
                _log.warning("The KV store does without the disk for now: %s", reason)
            self.problem, self.hint = reason, error.hint if isinstance(error, EdgeError) else ""
            self.n_dropped += len(self._queue)
            self._unwritten.clear()
            self._queue.clear()
            self._queued_bytes = 0
            self._work = _Work(released=self._work.released)
            if isinstance(error, sqlite3.Error) and is_damage(error) and self._disk is not None:
                self._distrusted = self._disk.index.path
                if now >= self._distrusted_at + self._retry_s:  # A new index helps, but not one after the other.
                    self._retry_at = self._distrusted_at = now
                    self._wants_open = True
            self._wake.notify_all()
        if self._wants_open:
            self._poke()

    def close(self, timeout_s: float) -> None:
        """Write what is queued, as far as time allows, and close the store. May be called twice."""
        if os.getpid() != self._pid or self._is_closing:
            return  # the store is the parent's, or closed
        if not self.flush(timeout_s):
            self.discard(None)
        with self._wake:
            self._is_closing = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return  # The disk hangs. The thread ends with the process.
        disk, self._disk = self._disk, None
        if disk is not None:
            disk.close()

    def _poke(self) -> None:
        with self._wake:
            if self._thread is None and not self._is_closing and os.getpid() == self._pid:
                # A daemon: what it leaves behind when the process ends in the middle is what a crash would leave.
                self._thread = threading.Thread(target=self._run, name="edge-kv", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def _open_first(self) -> None:
        try:
            disk = self._ensure_open()
        except FAILURES as error:
            self.fail(error)
            return
        if disk.needs_scan:
            self._poke()

    def _may_try(self) -> bool:
        return self.problem is None or time.monotonic() >= self._retry_at

    def _is_urgent(self) -> bool:
        """There is something to do that should not wait."""
        if self._wants_open:
            return True
        work = self._work
        needs_scan = self._disk is not None and self._disk.needs_scan and self.problem is None
        wants = needs_scan or self._wants_drop or self._wants_log
        return self._may_try() and bool(self._queue or work.pins or work.released or wants)

    def _has_work(self) -> bool:
        return self._is_urgent() or (bool(self._work.touched) and self._may_try())

    def _run(self) -> None:
        while True:
            with self._wake:
                self._is_busy = False
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._has_work() or self._is_closing)
                # Touches come in crowds and are in no hurry.
                self._wake.wait_for(lambda: self._is_urgent() or self._n_flushing or self._is_closing, TOUCH_DELAY_S)
                if self._is_closing:
                    return
                self._is_busy = True
                work = self._take()
            try:
                self._do(work)
            except FAILURES as error:
                self._put_back(work, is_busy(error))
                self.fail(error)
                if is_busy(error):
                    with self._wake:
                        self._wake.wait_for(lambda: self._is_closing, _BUSY_PAUSE_S)
            except Exception as error:  # noqa: BLE001  the thread must go on; the traceback says what to mend
                _log.exception("The KV store's thread met an error that it does not know")
                self._put_back(work, False)
                self.fail(sqlite3.DatabaseError(f"malformed: {error}"))

    def _take_batch(self) -> list[Pending]:
        batch: list[Pending] = []
        n_bytes = 0
        while self._queue and len(batch) < _BATCH_BLOCKS and (not batch or n_bytes < _BATCH_BYTES):
            batch.append(self._queue.popleft())
            n_bytes += batch[-1].size_bytes
        self._queued_bytes -= n_bytes
        return batch

    def _take(self) -> _Work:
        batch = self._take_batch()
        if self._queue:
            return _Work(batch)  # touches and pins may mean blocks that still wait
        work, self._work = self._work, _Work()
        work.batch = batch
        return work

    def _put_back(self, work: _Work, is_busy: bool) -> None:
        """Keep what was not done: all of it if others only were busy, or else the ends of leases, which nobody repeats."""
        with self._wake:
            self._work.released[:0] = work.released
            if not is_busy:
                self.n_dropped += len(work.batch)
                self._unwritten.difference_update(pending.key for pending in work.batch)
                return
            self._queue.extendleft(reversed(work.batch))
            self._unwritten.update(pending.key for pending in work.batch)
            self._queued_bytes += sum(pending.size_bytes for pending in work.batch)
            self._work.touched = {**work.touched, **self._work.touched}
            self._work.pins = {**work.pins, **self._work.pins}

    def _do(self, work: _Work) -> None:
        """Do it, and take out of it what is done."""
        disk = self._ensure_open()
        if self._wants_log:
            self._wants_log = False
            disk.index.start_log()
        self._write(disk, work.batch)
        if work.touched or work.pins or work.released:
            self._note(disk, work)
            work.touched, work.pins, work.released = {}, {}, []
        self._wants_drop = False
        try:
            for ref in list(self.lost.values()):
                disk.drop(ref)
                self.lost.pop(ref.key, None)
        except sqlite3.OperationalError as error:
            self._wants_drop = is_busy(error)
            raise
        self.problem = None
        if disk.needs_scan and not self._queue:
            _log.debug("KV store put in order: %s", scan(disk, lambda: self._go_between(disk)))
        if disk.index.log_bytes() > _LOG_BYTES:
            disk.index.checkpoint()
            disk.index.start_log()  # the log begins anew after it

    def _write(self, disk: Disk, batch: list[Pending]) -> None:
        if not batch:
            return
        report = disk.write(batch, self.leased.copy())
        with self._wake:
            self._unwritten.difference_update(pending.key for pending in batch)
            batch.clear()
            self.n_written += report.n_written
            self.n_known += report.n_known
            self.n_dropped += report.n_dropped
        if report.shortage:
            raise StorageError(report.shortage, "Free some space.")

    def _go_between(self, disk: Disk) -> bool:
        """What turns leave behind is written while a scan goes on, which can take long; and closing ends it."""
        with self._wake:
            work = _Work(self._take_batch())
        try:
            self._write(disk, work.batch)
        except BaseException as error:
            self._put_back(work, is_busy(error))
            raise
        return self._is_closing

    def _note(self, disk: Disk, work: _Work) -> None:
        now = disk.clock()
        with disk.index.write() as change:
            for key, owner in work.touched:
                change.touch([key], budget_bytes=disk.budget_bytes, now=now, owner=owner)
            for key, is_pinned in work.pins.items():
                change.sql.execute("UPDATE block SET pinned = ? WHERE key = ?", (is_pinned, key))
            for key in work.released:
                change.lease(disk.files.live_id, key, -1)

    def _ensure_open(self) -> Disk:
        disk = self._disk
        self._wants_open = False
        if disk is not None and self._distrusted is None and disk.index.is_current():
            return disk
        self._disk = None
        if disk is not None:
            disk.close()
        if self._is_closing:
            raise StorageError("The KV store is closed.", "Open it again.")
        self._disk = self._open_disk(self._distrusted)
        self._distrusted = None
        self.problem = None
        return self._disk
