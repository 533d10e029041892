"""Directory of a block store: permissions, the secret, block files, and the processes that have it open.

    key                 the secret, or the id of one stored elsewhere
    opening.lock        locked while a store is opened
    index-000001.sqlite see index.py
    live/3f2c...        one per open store, locked while it is open
    tmp/3f2c...-17      block files being written, named after their writer
    blocks/ab/cdef...   block files, named after their keys
    uses                see uses.py
    encrypt             there while blocks are to be encrypted, for processes that were started before

All but the first two belong to one format of blocks and index; those of other formats have it in their names (see formats.py).

A store is open while its process holds the lock on its file in live/. The kernel releases it however the process ends, so no
process number can be mistaken for another, and containers that share the directory see each other. An unlocked file there
means a crash.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import StorageError
from edge.files import try_lock
from edge.kv.blocks import HEADER_READ_BYTES, MAX_FILE_BYTES, BlockDamaged, parse_header
from edge.kv.entries import (
    CAREFUL,
    check_owner,
    is_trace,
    kind_of_entry,
    make_inside,
    make_private,
    make_shard,
    opened,
    regular_size,
    set_aside,
    write_file,
)
from edge.kv.keys import KEY_BYTES, KEYRING, Keys, Secret, secret_of_keyring
from edge.kv.options import StoreOptions

__all__ = ["StoreBusyError", "StoreFiles", "give_way"]

_OWN_SECRET = b"edgekv key own\r\n"
_KEPT_ELSEWHERE = b"edgekv key ext\r\n"
_NAME = re.compile(r"[0-9a-f]{62}")
_LIVE = re.compile(r"[0-9a-f]{16}")
_DRAFT = re.compile(r"([0-9a-f]{16})-(\d+|key)")
_LINE_BYTES = 1 << 12


class StoreBusyError(StorageError):
    """Other processes kept the store busy for too long."""


class StoreFiles:
    """An open store directory.

    Args:
        directory: created, with its parents, if it does not exist.
        options: of the store.
        suffix: of the names of this format.

    Attributes:
        keys: derived from the secret.
        live_id: name of this open store among all that are open.

    Raises:
        StorageError: the directory belongs to another user, or was sealed with another secret.
        StoreBusyError: another process took too long to open it.
        OSError: here and from every method: the disk failed.
    """

    def __init__(self, directory: Path, options: StoreOptions, suffix: str = "") -> None:
        self.directory, self.suffix, self._options = directory, suffix, options
        self._n_written = 0
        self._shards: set[str] = set()
        self.live_id = secrets.token_hex(8)
        self._live_fd = -1
        self._blocks, self._tmp, self._live = (directory / f"{name}{suffix}" for name in ("blocks", "tmp", "live"))
        self._encrypt = directory / f"encrypt{suffix}"
        make_private(directory)
        for path in (self._blocks, self._tmp, self._live):
            make_inside(path)
        for path in (directory / "key", directory / "opening.lock", directory / f"uses{suffix}", self._encrypt):
            if kind_of_entry(path) not in (None, stat.S_IFREG):
                set_aside(path)
        with self.opening():
            self.keys = self._load_keys(options.secret)
            self._dead = self._find_dead()
            self._enter()

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Hold the lock that everyone takes to open this store.

        Raises:
            StoreBusyError: another process holds it for too long.
        """
        with opened(self.directory / "opening.lock", os.O_CREAT | os.O_RDWR) as fd:
            timeout_s = self._options.open_timeout_s
            deadline = time.monotonic() + timeout_s
            while not try_lock(fd):
                if time.monotonic() > deadline:
                    waited = f"has been opening it for {timeout_s:.0f} seconds"
                    raise StoreBusyError(f"Another process {waited} ({self.directory}).", "Try again when it has finished.")
                time.sleep(0.005)
            yield

    def path(self, key: bytes) -> Path:
        """Return the path of a block's file."""
        return Path(self._name(key))

    def write(self, pieces: Iterable[bytes]) -> Path:
        """Write a file, whole or not at all, to a temporary path for `publish` or `discard`."""
        self._n_written += 1
        path = self._tmp / f"{self.live_id}-{self._n_written}"
        try:
            write_file(path, pieces, sync=self._options.sync)
        except BaseException:
            self.discard(path)
            raise
        return path

    def publish(self, draft: Path, key: bytes) -> None:
        """Give a written file its name. Only inside `Index.write`."""
        path = self.path(key)
        if path.parent.name not in self._shards:
            make_shard(path.parent)
            self._shards.add(path.parent.name)
        try:
            draft.replace(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):  # someone removed the shard, or put something there
            make_shard(path.parent)
            if kind_of_entry(path) == stat.S_IFDIR:
                set_aside(path)
            draft.replace(path)

    def discard(self, draft: Path) -> None:
        """Remove a file from `write` that gets no name."""
        try:
            draft.unlink(missing_ok=True)
        except OSError:
            pass  # the next process that opens the store removes it

    def append(self, path: Path, data: bytes, *, sync: bool = False) -> None:
        """Append whole lines to a file, which is created if it is missing. What was torn off before gets a line of its own."""
        with opened(path, os.O_CREAT | os.O_APPEND | os.O_RDWR) as fd:
            size = regular_size(fd)
            os.lseek(fd, max(0, size - 1), os.SEEK_SET)
            if size and os.read(fd, 1) != b"\n":
                data = b"\n" + data
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if sync and self._options.sync:
                os.fsync(fd)

    def lines(self, path: Path) -> Iterator[bytes]:
        """Yield the lines of a file."""
        with opened(path, os.O_RDONLY) as fd, os.fdopen(os.dup(fd), "rb") as file:
            while line := file.readline(_LINE_BYTES):
                yield line

    def tail(self, path: Path, start: int) -> bytes:
        """Return the bytes of a file from `start` on."""
        with opened(path, os.O_RDONLY) as fd, os.fdopen(os.dup(fd), "rb") as file:
            file.seek(start)
            return file.read()

    def remove(self, key: bytes) -> None:
        """Remove a block file, if there is one. Only inside `Index.write`."""
        path = self.path(key)
        if kind_of_entry(path.parent) == stat.S_IFLNK:
            set_aside(path.parent)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:  # something else is where its directory was
            return
        except (IsADirectoryError, PermissionError):
            if kind_of_entry(path) != stat.S_IFDIR:
                raise
            try:
                path.rmdir()
            except OSError:  # there is something in it
                set_aside(path)

    def prefetch(self, key: bytes) -> None:
        """Ask the system to load a block file into the page cache, without waiting. Does nothing where that is impossible."""
        if not hasattr(os, "posix_fadvise"):
            return
        try:
            with opened(self._name(key), os.O_RDONLY) as fd:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass  # reading it will say why

    def has_size(self, key: bytes, size: int) -> bool:
        """Compare the size of a block file with that in the index: a file that has grown may not fit into memory.

        Returns:
            False if the index is wrong: the file has the size that it says itself.

        Raises:
            BlockDamaged: it differs from both.
        """
        if self.path(key).lstat().st_size == size:
            return True
        head, state = self.head(key)
        parse_header(head, state.st_size)
        return False

    def load(self, key: bytes) -> bytes:
        """Return all bytes of a block file, unverified.

        Read, not mapped: verified bytes must not change afterwards, and a bad sector or a truncation under a mapping would kill
        the process.
        """
        with opened(self._name(key), os.O_RDONLY) as fd:
            size = regular_size(fd)
            if size > MAX_FILE_BYTES:
                raise BlockDamaged(f"it has {size:,} bytes")
            data = os.read(fd, size)
            while len(data) < size and (more := os.read(fd, size - len(data))):
                data += more
            return data

    def head(self, key: bytes) -> tuple[bytes, os.stat_result]:
        """Return the first bytes of a block file, enough for its header, with its size and times."""
        with opened(self._name(key), os.O_RDONLY) as fd:
            regular_size(fd)
            head = os.read(fd, HEADER_READ_BYTES)
            if len(head) >= 16:
                # The first bytes say how long the header is: one of many tokens is longer than usual.
                missing = min(int.from_bytes(head[12:16], "big"), 1 << 24) - len(head)
                while missing > 0 and (more := os.read(fd, missing)):
                    head, missing = head + more, missing - len(more)
            return head, os.fstat(fd)

    def count(self) -> int:
        """Return the number of block files, at about 1 us each."""
        return sum(len(self.shard(first)[0]) for first in range(256))

    def sizes(self, first: int) -> dict[bytes, int]:
        """Return the sizes of the block files of one of 256 directories, -1 for an entry of another kind."""
        found = {}
        for key in self.shard(first)[0]:
            with contextlib.suppress(FileNotFoundError):
                state = os.lstat(self._name(key))
                found[key] = state.st_size if stat.S_ISREG(state.st_mode) else -1
        return found

    def shard(self, first: int) -> tuple[set[bytes], int]:
        """List the block files of one of 256 directories.

        Args:
            first: first byte of the keys.

        Returns:
            The keys, and the number of other entries (which are left alone).
        """
        name = f"{first:02x}"
        try:
            if kind_of_entry(self._blocks / name) == stat.S_IFLNK:
                return set(), 1
            entries = [entry.name for entry in os.scandir(self._blocks / name)]
        except FileNotFoundError:
            return set(), 0
        except NotADirectoryError:
            return set(), 1
        keys = {bytes.fromhex(name + entry) for entry in entries if _NAME.fullmatch(entry)}
        return keys, len(entries) - len(keys)

    def free_bytes(self) -> int:
        """Return the free space of the store's disk."""
        return shutil.disk_usage(self.directory).free

    def is_live(self, live_id: str) -> bool:
        """Return whether the store with this `live_id` is still open."""
        if live_id == self.live_id:
            return True
        if _LIVE.fullmatch(live_id) is None:  # from a damaged index: it could name any file of the system
            return False
        try:
            with opened(self._live / live_id, os.O_RDWR) as fd:
                return not try_lock(fd)
        except OSError:
            return False

    @property
    def found_crash(self) -> bool:
        """A process died without closing the store, and no scan has finished since."""
        return bool(self._dead)

    def remove_dead(self) -> None:
        """Remove the traces of crashes, once a scan has finished."""
        for name in self._dead:
            if is_trace(self._live / name):
                (self._live / name).unlink(missing_ok=True)
        self._dead = []

    def close(self, *, looks_crashed: bool = False) -> None:
        """Close it. May be called twice.

        Args:
            looks_crashed: leave the trace of a crash, so that the next process that opens the store scans it.
        """
        if self._live_fd >= 0:
            fd, self._live_fd = self._live_fd, -1
            try:
                if not looks_crashed:
                    (self._live / self.live_id).unlink(missing_ok=True)
            except OSError:
                pass  # then it looks like a crash, and the next process that opens the store scans it
            os.close(fd)

    @property
    def wants_encryption(self) -> bool:
        """Blocks are to be encrypted, as the process that opened the store last wants."""
        return kind_of_entry(self._encrypt) is not None

    def note_encryption(self, encrypt: bool, *, is_again: bool) -> bool:
        """Tell the processes that have the store open whether blocks are to be encrypted.

        Args:
            encrypt: they are.
            is_again: only look what others want, unless this process wants encryption.

        Returns:
            Whether that is new: plain blocks have to go.
        """
        if encrypt and not self.wants_encryption:
            write_file(self._encrypt, [], sync=False)
            return True
        if not encrypt and not is_again:
            self._encrypt.unlink(missing_ok=True)
        return False

    def _name(self, key: bytes) -> str:
        name = key.hex()
        return f"{self._blocks}/{name[:2]}/{name[2:]}"

    def _enter(self) -> None:
        path = self._live / self.live_id
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | CAREFUL, 0o600)
        # Like us, those who look for crashes hold the opening lock: none of them sees the file before it is locked.
        if not try_lock(fd):
            os.close(fd)
            raise StorageError(f"Files in {self.directory} cannot be locked.", "Put the cache on a local disk.")
        self._live_fd = fd

    def _find_dead(self) -> list[str]:
        names = [entry.name for entry in os.scandir(self._live)]
        dead = [name for name in names if not self.is_live(name) and is_trace(self._live / name)]
        for draft in list(os.scandir(self._tmp)):
            writer = _DRAFT.fullmatch(draft.name)
            if writer is not None and draft.is_file(follow_symlinks=False) and not self.is_live(writer[1]):
                (self._tmp / draft.name).unlink(missing_ok=True)
        return dead

    def _load_keys(self, secret: Secret) -> Keys:
        path = self.directory / "key"
        try:
            with opened(path, os.O_RDONLY) as fd:
                check_owner(path, os.fstat(fd))
                if os.fstat(fd).st_mode & 0o077:
                    os.fchmod(fd, 0o600)
                content = os.read(fd, 256)
        except FileNotFoundError:
            return self._make_keys(path, secret)
        kind, value = content[: len(_OWN_SECRET)], content[len(_OWN_SECRET) :]
        if kind == _OWN_SECRET and len(value) == KEY_BYTES and not isinstance(secret, bytes):
            return Keys(value)
        if kind == _KEPT_ELSEWHERE and secret == KEYRING:
            secret = secret_of_keyring(make=False)
        if kind == _KEPT_ELSEWHERE and isinstance(secret, bytes) and Keys(secret).id == value:
            return Keys(secret)
        if (kind == _OWN_SECRET and len(value) == KEY_BYTES) or (kind == _KEPT_ELSEWHERE and len(value) == 8):
            raise StorageError(
                f"The blocks in {self.directory} were sealed with another key.",
                "Give that key (is the package keyring installed?), or delete that directory: it holds a cache only.",
            )
        return self._make_keys(path, secret)  # damaged, which makes every block unreadable: the scan removes them

    def _make_keys(self, path: Path, secret: Secret) -> Keys:
        if secret == KEYRING:
            secret = secret_of_keyring(make=True) if self._options.encrypt else None
        made = secrets.token_bytes(KEY_BYTES) if secret is None else secret
        keys = Keys(made)
        draft = self._tmp / f"{self.live_id}-key"
        draft.unlink(missing_ok=True)
        write_file(draft, [_OWN_SECRET + made if secret is None else _KEPT_ELSEWHERE + keys.id], sync=True)
        draft.replace(path)
        return keys


def give_way(directory: Path, suffix: str, is_enough: Callable[[int, int], bool]) -> int:
    """Delete block files where not even the index has room, until `is_enough(n_deleted, n_bytes)`; return how many.

    First those of other formats, then the newest: they have no children yet, as a rule. Their rows stay until the next scan.
    """
    found = [
        (path.parent.parent.name == f"blocks{suffix}", -path.lstat().st_mtime_ns, path)
        for path in directory.glob("blocks*/*/*")
        if _NAME.fullmatch(path.name) and kind_of_entry(path) == stat.S_IFREG and kind_of_entry(path.parent) == stat.S_IFDIR
    ]
    n = freed = 0
    for _, _, path in sorted(found):
        if n and is_enough(n, freed):
            break
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            size = path.lstat().st_size
            path.unlink()
            n, freed = n + 1, freed + size
    return n
