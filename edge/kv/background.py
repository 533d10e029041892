"""The thread behind a block store: it writes, keeps index and files in order, and watches the disk.

No turn waits for it, and no failure of the disk reaches a turn. Blocks that cannot be stored are dropped; after a failure the
store says what is wrong, pauses, and then tries again by itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from edge.errors import EdgeError, StorageError
from edge.kv.disk import EXPIRE_EVERY_S, Disk
from edge.kv.doubts import check_opened
from edge.kv.expiry import expire
from edge.kv.files import give_way
from edge.kv.index import explain, is_busy, is_damage
from edge.kv.maintenance import scan
from edge.kv.opening import close_disk, lacks_room, open_disk, reopen_disk
from edge.kv.options import StoreOptions
from edge.kv.reader import Reader
from edge.kv.records import BlockRef, Pending

__all__ = ["Background"]

_log = logging.getLogger("edge.kv")
_TOUCH_DELAY_S = 2.0
_BATCH_BYTES = 16 << 20
_BATCH_BLOCKS = 64
_RETRY_BUSY_S = 1.0
_BUSY_PAUSE_S = 0.05
_EMPTY_EVERY_S = 5.0
_LEAST_FILES, _LEAST_BYTES = 4, 256 << 10
"""Block files deleted at once where the index of an open store has no room."""
FIRST_USE_SHARE = 0.5
"""Share of the day's limit for blocks that nobody has reused yet."""
_STUCK_S = 0.5
"""Longest wait of `close` for another process that holds the index's lock: it may be stopped."""
_OPENING = "it is still being opened: another process, or the disk, takes its time"


@dataclass(slots=True)
class _Work:
    """Work that the thread takes at once."""

    batch: list[Pending] = field(default_factory=list)
    touched: dict[tuple[bytes, str], None] = field(default_factory=dict)
    pins: dict[bytes, tuple[bool, float | None]] = field(default_factory=dict)  # whether, and until when
    released: list[bytes] = field(default_factory=list)


class Background:
    """The open store and the thread that writes to it.

    Args:
        directory: of the store.
        options: of the store.

    Attributes:
        hint: what to do about the problem, if the failure said so.
        reader: asks the disk for turns.
        leased: keys in use in this process, with counts.
        lost: damaged blocks whose rows are not removed yet; nobody is given them.
        n_written, n_known, n_dropped, n_lost: see StoreStats.
    """

    def __init__(self, directory: Path, options: StoreOptions) -> None:
        self._directory, self._options = directory, options
        self._pid = os.getpid()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._queue: deque[Pending] = deque()
        self._queued_bytes = 0
        self._unwritten: set[bytes] = set()  # keys from `put` until they are in the index, or dropped
        self._work = _Work()  # without a batch: that is the queue
        self._is_busy = self._is_closing = False
        self._was_open = False
        self.reader = Reader(options.read_timeout_s, options.retry_s, options.timer)
        self._wants_open = self._wants_log = self._wants_count = self._wants_emptying = False
        self._n_flushing = 0
        self._disk: Disk | None = None
        self._is_suspect = False  # something failed since it was opened: opening it again may cure that
        self._retry_at = self._distrusted_at = float("-inf")
        self._distrusted: Path | None = None
        self._problem: str | None = None
        self.hint = ""
        self.leased: Counter[bytes] = Counter()
        self.lost: dict[bytes, BlockRef] = {}
        self._to_drop: list[BlockRef] = []  # those in `lost` that their finder could not remove
        self.n_written = self.n_known = self.n_dropped = self.n_lost = 0
        self._written = (-1, 0)  # day, and bytes written on it by all processes
        self._open_first()

    @property
    def problem(self) -> str | None:
        """Why nothing is stored at present, or None."""
        return "this process was forked from the one that opened it" if self._is_fork else self._problem

    @property
    def is_paused(self) -> bool:
        """The disk failed, and it is too early to try again."""
        return self.problem is not None and (self._is_fork or not self._may_try())

    @property
    def disk(self) -> Disk | None:
        """The open store, or None while it is off. Wakes the thread when it is time to open it again."""
        if self._is_fork:
            return None
        if self._disk is None and self._problem is not None and not self._is_closing and self._may_try():
            self._wants_open = True
            self._wake_thread()
        return self._disk

    def takes(self, n_bytes: int, *, is_reused: bool) -> bool:
        """Return whether the day's limit allows to write so many bytes more, with those that wait."""
        most, disk = self._options.max_written_bytes, self._disk
        if most is None or disk is None or self._is_fork:
            return True
        if self._written[0] != disk.limits.day():  # a new one; what others have written on it the thread looks up
            self._written, self._wants_count = (disk.limits.day(), 0), True
            self._wake_thread()
        return self._written[1] + self._queued_bytes + n_bytes <= (most if is_reused else most * FIRST_USE_SHARE)

    @property
    def is_healing(self) -> bool:
        """The index is damaged, and the thread is about to build another one."""
        return self._distrusted is not None and self._wants_open

    def put(self, pending: Pending) -> bool:
        """Queue a block without waiting; return False if it was dropped."""
        if self._is_fork:
            return False
        with self._wake:
            is_full = self._queued_bytes + pending.size_bytes > self._options.queue_bytes
            if is_full or self._is_closing or not self._may_try():
                self.n_dropped += 1
                return False
            self._queue.append(pending)
            self._unwritten.add(pending.key)
            self._queued_bytes += pending.size_bytes
        self._wake_thread()
        return True

    def touch(self, keys: Iterable[bytes], owner: str) -> None:
        """Note a use of blocks, to be written after the queue of now."""
        if self._is_fork:  # another thread of the parent may have held the lock then, and nobody will release it here
            return
        with self._wake:
            if self._may_try():
                self._work.touched.update(((key, owner), None) for key in keys)
        self._wake_thread()

    def pin(self, key: bytes, is_pinned: bool, until: float | None = None) -> None:
        """Note a pin, to be written after the queue of now. It ends at `until`, in unix seconds, or never."""
        if self._is_fork:
            return
        with self._wake:
            if self._may_try():
                self._work.pins[key] = (is_pinned, until)
        self._wake_thread()

    def lease(self, key: bytes) -> None:
        """Begin a lease in this process."""
        if self._is_fork:
            return
        with self._wake:
            self.leased[key] += 1

    def release(self, key: bytes, *, is_noted: bool) -> None:
        """End a lease, and remove it from the index if it was noted there."""
        if self._is_fork:
            return
        with self._wake:
            self.leased[key] -= 1
            if self.leased[key] <= 0:
                del self.leased[key]
            if not is_noted:
                return
            self._work.released.append(key)
        self._wake_thread()

    def discard(self, owner: str | None) -> None:
        """Drop the queued blocks of an owner; None drops everything."""
        if self._is_fork:
            return
        with self._wake:
            left = [] if owner is None else [pending for pending in self._queue if pending.owner != owner]
            self.n_dropped += len(self._queue) - len(left)
            self._queue = deque(left)
            self._queued_bytes = sum(pending.size_bytes for pending in left)
            self._unwritten = {pending.key for pending in left}
            for item in [item for item in self._work.touched if owner in (None, item[1])]:
                del self._work.touched[item]

    def is_waiting(self, key: bytes) -> bool:
        """Return whether a block waits to be written."""
        if self._is_fork:
            return False
        with self._wake:
            return key in self._unwritten

    def drop_later(self, ref: BlockRef) -> None:
        """Ask the thread to remove a block in `lost` once others release the index."""
        if self._is_fork:
            return
        with self._wake:
            self._to_drop.append(ref)
        self._wake_thread()

    def warm_up(self) -> None:
        """Ask the thread to do beforehand what the first turn would wait for."""
        if self._is_fork:
            return
        with self._wake:
            self._wants_log = True
        self._wake_thread()

    def empty_log(self) -> None:
        """Ask the thread to empty the log of the index as soon as no other process reads it."""
        with self._wake:
            self._wants_emptying = True
        self._wake_thread()

    def n_queued(self) -> int:
        """Return the number of blocks that wait to be written."""
        if self._is_fork:
            return 0
        with self._wake:
            return len(self._queue)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all work is done; return False if the timeout came first."""
        if self._is_fork:
            return True
        with self._wake:
            self._n_flushing += 1
            self._wake.notify_all()
            try:
                return self._wake.wait_for(lambda: not self._is_busy and not self._has_work(), timeout_s)
            finally:
                self._n_flushing -= 1

    def fail(self, error: BaseException, disk: Disk | None = None) -> None:
        """Note a failure and pause. Other processes being busy is not one.

        Args:
            error: the failure.
            disk: where it happened; ignored if that is not the open store any more.
        """
        if self._is_fork:
            return
        now = self._options.timer()
        reason = explain(error)
        with self._wake:
            if disk is not None and disk is not self._disk:
                return
            if is_busy(error) and self._disk is not None:
                _log.debug("KV store: %s", reason)
                return
            if self._may_try():  # a failure during the pause does not prolong it
                retry_s = self._options.retry_s
                self._retry_at = now + (min(retry_s, _RETRY_BUSY_S) if is_busy(error) else retry_s)
            if self._problem in (None, _OPENING):
                known = isinstance(error, (OSError, sqlite3.Error, EdgeError, ImportError, MemoryError))
                _log.warning("The KV store works without the disk for now: %s", reason, exc_info=None if known else error)
            self._is_suspect = self._is_suspect or isinstance(error, (OSError, sqlite3.Error))
            self._problem, self.hint = reason, error.hint if isinstance(error, EdgeError) else ""
            self.n_dropped += len(self._queue)
            self._unwritten.clear()
            self._queue.clear()
            self._queued_bytes = 0
            self._work = _Work(released=self._work.released)
            if isinstance(error, sqlite3.Error) and is_damage(error) and self._disk is not None:
                self._distrusted = self._disk.index.path
                if now >= self._distrusted_at + self._options.retry_s:  # a new index helps, but not one after the other
                    self._retry_at = self._distrusted_at = now
                    self._wants_open = True
            self._wake.notify_all()
        if self._wants_open:
            self._wake_thread()

    def close(self, timeout_s: float) -> None:
        """Write the queue as far as time allows, and close the store. May be called twice."""
        if self._is_fork or self._is_closing:
            return  # the store belongs to the parent, or is closed
        deadline = time.monotonic() + timeout_s
        while not self.flush(_STUCK_S / 5):
            disk, now = self._disk, time.monotonic()
            is_stuck = disk is None or self.reader.is_stuck or disk.index.waits_since + _STUCK_S < now
            deadline = min(deadline, now) if is_stuck else deadline
            if now >= deadline:
                self.discard(None)
                break
        with self._wake:
            self._is_closing = True
            if self._disk is not None:
                self._disk.index.is_hurried = True
            self._wake.notify_all()
        self.reader.close()
        if self._thread is not None:
            self._thread.join(max(_STUCK_S, deadline - time.monotonic()))
            if self._thread.is_alive():
                return  # the disk hangs; the thread ends with the process
        disk, self._disk = self._disk, None
        if disk is not None and not self.reader.is_stuck:  # its locks are held for ever then
            close_disk(disk)

    @property
    def _is_fork(self) -> bool:
        return os.getpid() != self._pid

    def _wake_thread(self) -> None:
        if self._is_fork:
            return
        with self._wake:
            if self._thread is None and not self._is_closing:
                # A daemon: if the process ends in the middle, it leaves what a crash would leave.
                thread = threading.Thread(target=self._run, name="edge-kv", daemon=True)
                try:
                    thread.start()
                except (RuntimeError, MemoryError) as error:  # too many threads, or too little memory: tried again next time
                    _log.warning("The KV store's thread cannot be started: %s", error)
                    return
                self._thread = thread
            self._wake.notify_all()

    def _open_first(self) -> None:
        """Open the store in the thread; go on without it where that takes long."""
        self._wants_open, self._problem = True, _OPENING
        self._wake_thread()
        if self._thread is None:  # too many threads, or too little memory
            self._problem = "its thread cannot be started"
        else:
            self.wait_open(self._options.open_wait_s)

    def wait_open(self, timeout_s: float) -> None:
        """Wait until the store was opened for the first time, or could not be."""
        if self._is_fork:
            return
        with self._wake:
            self._wake.wait_for(lambda: self._problem is not _OPENING, timeout_s)

    def _may_try(self) -> bool:
        return self._problem is None or self._options.timer() >= self._retry_at

    def _is_urgent(self) -> bool:
        """Return whether there is work that should not wait."""
        if self._wants_open:
            return True
        work = self._work
        needs_scan = self._disk is not None and self._disk.needs_scan and self._problem is None
        wants_expiry = self._disk is not None and self._problem is None and self._disk.wants_expiry
        wants = needs_scan or wants_expiry or bool(self._to_drop) or self._wants_log or self._wants_count
        return self._may_try() and bool(self._queue or work.pins or work.released or wants)

    def _has_work(self) -> bool:
        return self._is_urgent() or (bool(self._work.touched) and self._may_try())

    def _run(self) -> None:
        while True:
            with self._wake:
                self._is_busy = False
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._has_work() or self._wants_emptying or self._is_closing, self._pause_s())
                self._wants_emptying = False
                # Touches come in groups and are not urgent.
                self._wake.wait_for(lambda: self._is_urgent() or self._n_flushing or self._is_closing, _TOUCH_DELAY_S)
                if self._is_closing:
                    return
                self._is_busy = True
                work = self._take()
            try:
                self._do(work)
            except Exception as error:  # noqa: BLE001 (the thread must go on)
                if isinstance(error, MemoryError) and work.batch:
                    _log.warning("%d KV blocks are not stored: there is too little memory", len(work.batch))
                    self._drop(work)
                    self._put_back(work, True)
                    continue
                self._put_back(work, is_busy(error))
                self._give_way(error)
                self.fail(error)
                if is_busy(error):
                    with self._wake:
                        self._wake.wait_for(lambda: self._is_closing, _BUSY_PAUSE_S)

    def _give_way(self, error: Exception) -> None:
        """Make room where the index of the open store has none even for evicting: empty its log, or else delete blocks.

        The next scan drops the rows of those.
        """
        disk = self._disk
        if disk is None or not isinstance(error, sqlite3.Error) or not lacks_room(self._directory, error):
            return
        with contextlib.suppress(OSError, sqlite3.Error):
            if disk.index.log_bytes() > _LEAST_BYTES and disk.index.checkpoint(emptying=True):
                return
        n_deleted = give_way(
            self._directory, disk.files.suffix, lambda n, n_bytes: n >= _LEAST_FILES and n_bytes >= _LEAST_BYTES
        )
        _log.warning("There is no room: %d KV blocks were deleted for their index", n_deleted)
        disk.needs_scan = disk.needs_scan or n_deleted > 0

    def _pause_s(self) -> float | None:
        """Return the longest pause of the thread without work."""
        if self._disk is None or not self._may_try():
            return None
        return _EMPTY_EVERY_S if self._disk.needs_emptying else EXPIRE_EVERY_S

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
            return _Work(batch)  # touches and pins may be for blocks that still wait
        work, self._work = self._work, _Work()
        work.batch = batch
        return work

    def _put_back(self, work: _Work, is_busy: bool) -> None:
        """Queue undone work again: all of it if others were busy, else only the ends of leases, which nobody repeats."""
        with self._wake:
            self._work.released[:0] = work.released
            if not is_busy:
                self._drop(work)
                return
            self._queue.extendleft(reversed(work.batch))
            self._unwritten.update(pending.key for pending in work.batch)
            self._queued_bytes += sum(pending.size_bytes for pending in work.batch)
            self._work.touched = {**work.touched, **self._work.touched}
            self._work.pins = {**work.pins, **self._work.pins}

    def _drop(self, work: _Work) -> None:
        with self._wake:
            self.n_dropped += len(work.batch)
            self._unwritten.difference_update(pending.key for pending in work.batch)
            work.batch = []

    def _do(self, work: _Work) -> None:
        """Do the work, and remove from it what is done."""
        disk = self._ensure_open()
        if disk.needs_check and (work.batch or disk.needs_scan):  # not for one who only reads, nor for a pin
            check_opened(disk)
            disk.needs_check = False
        if self._wants_count:
            self._count(disk)
        if self._wants_log:
            self._wants_log = False
            disk.index.start_log()
        self._write(disk, work.batch)
        if work.touched or work.pins or work.released:
            self._note(disk, work)
            work.touched, work.pins, work.released = {}, {}, []
        while self._to_drop:
            disk.drop(self._to_drop[0])
            self.lost.pop(self._to_drop.pop(0).key, None)
        self._problem = None
        if disk.needs_scan and not self._queue:
            _log.debug("KV store scanned: %s", scan(disk, lambda: self._write_between(disk)))
        if disk.wants_expiry and not self._queue:
            _log.debug("%d KV blocks were too old", expire(disk, lambda: self._write_between(disk)))
        if disk.needs_emptying:
            disk.empty_log()
        if disk.index.log_bytes() > self._options.log_bytes:
            disk.index.checkpoint()
            disk.index.start_log()

    def _write(self, disk: Disk, batch: list[Pending]) -> None:
        if not batch:
            return
        report = disk.write(batch, self.leased.copy())
        self._count(disk)
        with self._wake:
            self._unwritten.difference_update(pending.key for pending in batch)
            batch.clear()
            self.n_written += report.n_written
            self.n_known += report.n_known
            self.n_dropped += report.n_dropped
        if report.shortage:
            raise StorageError(report.shortage, "Free some space.")

    def _count(self, disk: Disk) -> None:
        """Look up what all processes have written today."""
        self._wants_count = False
        if self._options.max_written_bytes is not None:
            self._written = disk.limits.day(), disk.limits.written_today()

    def _write_between(self, disk: Disk) -> bool:
        """Write a batch during a long scan; return True to end the scan, since the store is being closed."""
        with self._wake:
            work = _Work(self._take_batch())
        try:
            self._write(disk, work.batch)
        except BaseException as error:
            self._put_back(work, is_busy(error))
            raise
        return self._is_closing

    def _note(self, disk: Disk, work: _Work) -> None:
        with disk.index.write() as change:
            for key, owner in work.touched:
                change.touch([key], owner)
            for key, (is_pinned, _) in work.pins.items():
                change.pin(key, is_pinned)
            for key in work.released:
                change.lease(disk.files.live_id, key, -1)
        disk.limits.set_ends((key, until) for key, (_, until) in work.pins.items())

    def _ensure_open(self) -> Disk:
        disk = self._disk
        self._wants_open = False
        if disk is not None and self._distrusted is None and not disk.is_outdated:
            if self._is_suspect and not self.reader.is_stuck:
                self._is_suspect = False
                self._disk = disk = reopen_disk(disk, self._directory, self._options)
            return disk
        self._disk = None
        if disk is not None and not self.reader.is_stuck:
            close_disk(disk)
        self._check_closing()
        disk = open_disk(self._directory, self._options, self._distrusted, is_again=self._was_open)
        try:
            self._check_closing()
        except StorageError:
            close_disk(disk)
            raise
        self._count(disk)
        self._disk, self._was_open = disk, True
        self._distrusted = None
        self._is_suspect = False
        self._problem = None
        return self._disk

    def _check_closing(self) -> None:
        if self._is_closing:
            raise StorageError("The KV store is closed.", "Open it again.")
