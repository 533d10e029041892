"""The directory of a block store: who may enter, the secret, block files, and which processes are alive.

    key                 the secret, or the id of one that is kept elsewhere
    opening.lock        held while a store is opened
    index-000001.sqlite see index.py
    live/3f2c...        one per open store, locked as long as it lives
    tmp/3f2c...-17      block files while they are written, named after who writes them
    blocks/ab/cdef...   block files, named after their keys

A process is alive while it holds the lock on its file in live/. The kernel lets go of it when the process ends, however it
ends, so no process number can be mistaken for another, and containers that share the directory see each other. A file there
that nobody has locked tells of a crash.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from edge.errors import StorageError
from edge.kv.blocks import HEADER_READ_BYTES
from edge.kv.keys import KEY_BYTES, Keys, secret_of_keyring

__all__ = ["KEYRING", "Secret", "StoreBusyError", "StoreFiles", "is_transient"]

KEYRING: Literal["keyring"] = "keyring"
Secret = bytes | Literal["keyring"] | None
OPENING_TIMEOUT_S = 10.0
_OWN_SECRET = b"edgekv key own\r\n"
_KEPT_ELSEWHERE = b"edgekv key ext\r\n"
_NAME = re.compile(r"[0-9a-f]{62}")
_WRITE_BYTES = 1 << 20
# No symbolic links, no waiting for whoever put a pipe there, nothing inherited by child processes.
_CAREFUL = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))


def is_transient(error: OSError) -> bool:
    """Whether a file that could not be read is not to blame: this process has no more room for open files or memory."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)


class StoreBusyError(StorageError):
    """Another process is opening the store, for longer than one was ready to wait."""


class StoreFiles:
    """An open store directory.

    Args:
        directory: made, with its parents, where it does not exist.
        secret: 32 bytes kept elsewhere; None keeps them in the directory, readable by its owner only; KEYRING also finds
            them in the keyring of the operating system.
        make_in_keyring: with KEYRING, a new store's secret goes there, if there is a keyring.
        sync: wait for the disk before a block file gets its name. Without it a power cut loses more of the last blocks; a
            block that is torn is found when it is read, either way.

    Attributes:
        keys: what the secret is good for.
        live_id: this open store's name among all of them.

    Raises:
        StorageError: the directory is not ours, or was made with another secret.
        StoreBusyError: another process is opening it, for too long.
        OSError: it cannot be used.
    """

    def __init__(self, directory: Path, *, secret: Secret = None, make_in_keyring: bool = False, sync: bool = True) -> None:
        self.directory = directory
        self._make_in_keyring = make_in_keyring
        self._sync = sync
        self._n_written = 0
        self._shards: set[str] = set()
        self.live_id = secrets.token_hex(8)
        self._live_fd = -1
        self._blocks, self._tmp, self._live = (directory / name for name in ("blocks", "tmp", "live"))
        for path in (directory, self._blocks, self._tmp, self._live):
            _make_private(path)
        with self.opening():
            self.keys = self._load_keys(secret)
            self._dead = self._find_dead()
            self._enter()

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Be alone among those who open this store.

        Raises:
            StoreBusyError: somebody else stays in there.
        """
        fd = os.open(self.directory / "opening.lock", os.O_CREAT | os.O_RDWR | _CAREFUL, 0o600)
        try:
            deadline = time.monotonic() + OPENING_TIMEOUT_S
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    waited = f"has been opening it for {OPENING_TIMEOUT_S:.0f} seconds"
                    raise StoreBusyError(f"Another process {waited} ({self.directory}).", "Try again when that has ended.")
                time.sleep(0.005)
            yield
        finally:
            os.close(fd)

    def path(self, key: bytes) -> Path:
        """Where the file of a block is."""
        return Path(self._name(key))

    def write(self, pieces: Sequence[bytes]) -> Path:
        """Write a block file that has no name yet.

        Returns:
            Where it is; for `publish` or `discard`.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        self._n_written += 1
        path = self._tmp / f"{self.live_id}-{self._n_written}"
        try:
            _write_file(path, pieces, sync=self._sync)
        except BaseException:
            self.discard(path)
            raise
        return path

    def publish(self, draft: Path, key: bytes) -> None:
        """Give a written file its name. Only inside `Index.write`.

        Raises:
            OSError: it cannot be renamed.
        """
        path = self.path(key)
        if path.parent.name not in self._shards:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._shards.add(path.parent.name)
        try:
            draft.replace(path)
        except FileNotFoundError:  # somebody tidied the shard away
            path.parent.mkdir(mode=0o700, exist_ok=True)
            draft.replace(path)

    def discard(self, draft: Path) -> None:
        """Remove a written file that gets no name."""
        try:
            draft.unlink(missing_ok=True)
        except OSError:
            pass  # Whoever opens the store next removes it.

    def remove(self, key: bytes) -> None:
        """Remove a block file, if there is one. Only inside `Index.write`.

        Raises:
            OSError: it is there and stays there.
        """
        path = self.path(key)
        try:
            path.unlink(missing_ok=True)
        except (IsADirectoryError, PermissionError):
            if not path.is_dir():
                raise
            path.rmdir()

    def prefetch(self, key: bytes) -> None:
        """Have a block file fetched into the page cache, without waiting for it. Does nothing on systems that cannot."""
        if not hasattr(os, "posix_fadvise"):
            return
        try:
            fd = os.open(self._name(key), os.O_RDONLY | _CAREFUL)
        except OSError:
            return  # whoever reads it finds out why
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass  # not a file, or not one that can be fetched: as above
        finally:
            os.close(fd)

    def load(self, key: bytes) -> bytes:
        """All bytes of a block file. Not verified.

        It is read, not mapped: bytes that were verified must not change afterwards, and a bad sector or a truncation under a
        mapping would kill the process.

        Raises:
            OSError: it cannot be read.
        """
        fd = os.open(self._name(key), os.O_RDONLY | _CAREFUL)
        try:
            size = _regular_size(fd)
            data = os.read(fd, size)
            while len(data) < size and (more := os.read(fd, size - len(data))):
                data += more
            return data
        finally:
            os.close(fd)

    def head(self, key: bytes) -> tuple[bytes, os.stat_result]:
        """The first bytes of a block file, enough for its header, and its size and times.

        Raises:
            OSError: it cannot be read.
        """
        fd = os.open(self._name(key), os.O_RDONLY | _CAREFUL)
        try:
            _regular_size(fd)
            head = os.read(fd, HEADER_READ_BYTES)
            if len(head) >= 16:
                # The header's size is in it; a header of many tokens is longer than a usual one.
                missing = min(int.from_bytes(head[12:16], "big"), 1 << 24) - len(head)
                while missing > 0 and (more := os.read(fd, missing)):
                    head, missing = head + more, missing - len(more)
            return head, os.fstat(fd)
        finally:
            os.close(fd)

    def shard(self, first: int) -> tuple[set[bytes], int]:
        """The block files there are, one directory of 256 at a time.

        Args:
            first: first byte of the keys.

        Returns:
            The keys, and how many other entries there are (they are left alone).

        Raises:
            OSError: the directory cannot be read.
        """
        name = f"{first:02x}"
        try:
            entries = [entry.name for entry in os.scandir(f"{self._blocks}/{name}")]
        except FileNotFoundError:
            return set(), 0
        keys = {bytes.fromhex(name + entry) for entry in entries if _NAME.fullmatch(entry)}
        return keys, len(entries) - len(keys)

    def free_bytes(self) -> int:
        """Free space of the disk the store is on.

        Raises:
            OSError: it cannot be asked.
        """
        return shutil.disk_usage(self.directory).free

    def is_live(self, live_id: str) -> bool:
        """Whether the process that opened the store under this name still has it open."""
        if live_id == self.live_id:
            return True
        try:
            fd = os.open(self._live / live_id, os.O_RDWR | _CAREFUL)
        except OSError:
            return False
        try:
            return not _try_lock(fd)
        finally:
            os.close(fd)

    @property
    def found_crash(self) -> bool:
        """Whether a process that had the store open died without closing it, and nobody has put the store in order since."""
        return bool(self._dead)

    def remove_dead(self) -> None:
        """Forget the dead that were found: the store is in order again."""
        for name in self._dead:
            (self._live / name).unlink(missing_ok=True)
        self._dead = []

    def close(self) -> None:
        """Leave. May be called twice."""
        if self._live_fd >= 0:
            fd, self._live_fd = self._live_fd, -1
            try:
                (self._live / self.live_id).unlink(missing_ok=True)
            except OSError:
                pass  # Then it looks like a crash, and the next one who opens the store has a look around.
            os.close(fd)

    def _name(self, key: bytes) -> str:
        name = key.hex()
        return f"{self._blocks}/{name[:2]}/{name[2:]}"

    def _enter(self) -> None:
        path = self._live / self.live_id
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | _CAREFUL, 0o600)
        # Those who look for the dead hold the opening lock, as we do: nobody sees the file without its lock.
        if not _try_lock(fd):
            os.close(fd)
            raise StorageError(f"Files in {self.directory} cannot be locked.", "Put the cache on a local disk.")
        self._live_fd = fd

    def _find_dead(self) -> list[str]:
        dead = [entry.name for entry in os.scandir(self._live) if not self.is_live(entry.name)]
        for draft in list(os.scandir(self._tmp)):
            if not self.is_live(draft.name.partition("-")[0]):
                (self._tmp / draft.name).unlink(missing_ok=True)
        return dead

    def _load_keys(self, secret: Secret) -> Keys:
        path = self.directory / "key"
        try:
            fd = os.open(path, os.O_RDONLY | _CAREFUL)
        except FileNotFoundError:
            return self._make_keys(path, secret)
        try:
            _check_owner(path, os.fstat(fd))
            if os.fstat(fd).st_mode & 0o077:
                os.fchmod(fd, 0o600)
            content = os.read(fd, 256)
        finally:
            os.close(fd)
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
        return self._make_keys(path, secret)  # damaged, and with it every block: the scan removes them

    def _make_keys(self, path: Path, secret: Secret) -> Keys:
        if secret == KEYRING:
            secret = secret_of_keyring(make=True) if self._make_in_keyring else None
        made = secrets.token_bytes(KEY_BYTES) if secret is None else secret
        keys = Keys(made)
        draft = self._tmp / f"{self.live_id}-key"
        draft.unlink(missing_ok=True)
        _write_file(draft, [_OWN_SECRET + made if secret is None else _KEPT_ELSEWHERE + keys.id], sync=True)
        draft.replace(path)
        return keys


def _write_file(path: Path, pieces: Sequence[bytes], *, sync: bool) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _CAREFUL, 0o600)
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view[:_WRITE_BYTES]) :]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def _regular_size(fd: int) -> int:
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode):
        raise OSError("it is not a regular file")
    return state.st_size


def _make_private(path: Path) -> None:
    """Make a directory that only we may enter, or make sure that one is.

    Raises:
        StorageError: it belongs to somebody else, or is no directory.
        OSError: it cannot be made.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = path.stat()
    _check_owner(path, state)
    if state.st_mode & 0o077:
        path.chmod(0o700)


def _check_owner(path: Path, state: os.stat_result) -> None:
    if hasattr(os, "geteuid") and state.st_uid != os.geteuid():
        raise StorageError(
            f"{path} belongs to another user, who could read or change what is kept there.",
            "Set EDGE_CACHE_DIR to a directory of yours.",
        )


def _try_lock(fd: int) -> bool:
    """Take the lock on an open file without waiting. It ends with the process, or when the file is closed."""
    try:
        import fcntl
    except ImportError:
        raise StorageError("This system has no file locks that the KV store knows.", "The chat works without it.") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
