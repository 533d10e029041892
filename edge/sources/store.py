"""The folder of models that edge owns: its layout, locks, and the record beside each model.

    models_dir/
        hf/OWNER/REPO/COMMIT/model.gguf             the file
        hf/OWNER/REPO/COMMIT/model.gguf.edge.json   its record: references, hash, licence, where it came from
        hf/OWNER/REPO/COMMIT/onnx-int4/             a model that is a folder
        hf/OWNER/REPO/COMMIT/onnx-int4.edge.json    likewise, with every file of the folder
        checkpoints/, adapters/                     folders for converters
        pypi/PACKAGE/VERSION/...
        .partial/                                   unfinished downloads, resumed by the next pull
        .locks/                                     one process at a time pulls one file

A file or folder gets its final name by one rename, once it is whole and its hashes were checked. Nothing outside this folder is
ever removed.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from edge.errors import StorageError
from edge.files import lock_file, make_private_dir, open_file, sync_file, sync_folder, write_private
from edge.hashes import file_sha256, join_sha256
from edge.units import size_text

__all__ = ["MARGIN_BYTES", "FileRecord", "Record", "Store", "size_of", "storage_error", "weights_sha256"]

MARGIN_BYTES = 64 << 20
"""Left free by downloads: a disk that is full to the last byte breaks more than the download."""

_RECORD_SUFFIX = ".edge.json"
_PARTIAL, _LOCKS = ".partial", ".locks"
_MAX_RECORD_BYTES = 1 << 20
_DAY_S = 86_400
_KEEP_PARTIAL_S = {".part": 30 * _DAY_S, ".folder": 30 * _DAY_S, ".pip": _DAY_S, ".gone": 0}


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a folder.

    Attributes:
        name: inside the folder, with forward slashes.
        size_bytes, mtime_ns, ctime_ns, sha256: as in a Record.
    """

    name: str
    size_bytes: int
    mtime_ns: int
    sha256: str
    ctime_ns: int = 0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about one file or folder, stored beside it as JSON.

    Attributes:
        references: every reference that led here.
        file: its name.
        size_bytes, mtime_ns: when its hash was checked; of a folder, the sum and 0.
        ctime_ns: likewise; 0 if unknown: then it is hashed once.
        sha256: of the file; "" for a folder.
        promised: who promised that hash: "catalogue", "hub", or "" if nobody did and it was only computed.
        licence: if known.
        origin: address or package, for people.
        revision: commit or version it belongs to.
        fetched: time of the download, in seconds since 1970.
        format: "gguf", "onnx" or "coreml"; "" for a folder for converters.
        quantisation: of its weights, if the name of the file does not tell.
        files: of a folder.
    """

    references: tuple[str, ...]
    file: str
    size_bytes: int
    mtime_ns: int
    sha256: str
    promised: str = ""
    licence: str | None = None
    origin: str = ""
    revision: str = ""
    fetched: float = 0.0
    format: str = "gguf"
    quantisation: str = ""
    files: tuple[FileRecord, ...] = ()
    ctime_ns: int = 0


class Store:
    """The models folder. Holds no state, so it is made for every use."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def records(self, *below: str) -> list[tuple[Path, Record]]:
        """Return the models that have a whole record, in one folder or in all, newest first."""
        found: list[tuple[Path, Record]] = []
        folder = self.root.joinpath(*below)
        try:
            paths = sorted(folder.rglob("*" + _RECORD_SUFFIX)) if folder.is_dir() else []
        except OSError as error:
            raise storage_error(error, folder, "read") from error
        for path in paths:
            record = _read_record(path)
            file = path.with_name(path.name[: -len(_RECORD_SUFFIX)])
            # The name inside must be that of the file beside it: a record never points elsewhere.
            if record is not None and record.file == file.name and (file.is_dir() if record.files else file.is_file()):
                found.append((file, record))
        return sorted(found, key=lambda item: -item[1].fetched)

    def find_same(self, record: Record, *below: str) -> tuple[Path, Record] | None:
        """Return the model that a new record describes if it is here unchanged, from now on under its reference too.

        It came by another reference, or from another process while this one waited for the lock.
        """
        for path, known in self.records(*below):
            is_same = known.revision == record.revision or known.sha256 == record.sha256 != ""
            if is_same and known.file == record.file and self.is_whole(path, known):
                references = tuple(dict.fromkeys([*known.references, *record.references]))
                if references != known.references:
                    known = replace(known, references=references)
                    self._write(path, known)
                return path, known
        return None

    def drop_reference(self, path: Path, record: Record, reference: str) -> None:
        """Remove a reference from a record."""
        rest = tuple(known for known in record.references if known != reference)
        self._write(path, replace(record, references=rest))

    def is_unchanged(self, path: Path, record: Record) -> bool:
        """Return True if sizes and all times are those of the moment when the hashes were checked."""
        try:
            return all(_state(place) == (file.size_bytes, file.mtime_ns, file.ctime_ns) for place, file in _files(path, record))
        except FileNotFoundError:
            return False  # one of a folder's files

    def is_whole(self, path: Path, record: Record) -> bool:
        """Return True if a model is unchanged; files of which only the time of status differs are hashed, and it is noted.

        Links, renames and copies change that time, but so does a file put in the place of another.

        Raises:
            ModelFileError: a file cannot be read.
        """
        try:
            files = []
            for place, file in _files(path, record):
                before = _state(place)
                if before[:2] != (file.size_bytes, file.mtime_ns):
                    return False
                if before[2] != file.ctime_ns and (file_sha256(place) != file.sha256 or _state(place) != before):
                    return False
                files.append(replace(file, ctime_ns=before[2]))
        except FileNotFoundError:
            return False
        noted = replace(record, files=tuple(files)) if record.files else replace(record, ctime_ns=files[0].ctime_ns)
        if noted != record:
            with suppress(StorageError):  # then it is hashed again next time
                self._write(path, noted)
        return True

    def partial(self, *identity: str) -> Path:
        """Return the path of an unfinished download: the same identity (source, hash, size) gives the same file."""
        return self._partials() / f"{_key(*identity)}.part"

    def staging(self, *identity: str) -> Path:
        """Return the folder where the files of an unfinished folder are collected."""
        return make_private_dir(self._partials() / f"{_key(*identity)}.folder")

    def pip_folder(self) -> tempfile.TemporaryDirectory[str]:
        """Return a new folder for pip to work in, which is removed when its context ends."""
        return tempfile.TemporaryDirectory(suffix=".pip", dir=self._partials(), ignore_cleanup_errors=True)

    def _partials(self) -> Path:
        return make_private_dir(self.root / _PARTIAL)

    @contextmanager
    def lock(self, key: str, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lock of one file; the kernel releases it when the process dies.

        Args:
            key: any text.
            on_wait: called about five times a second while another process holds it; may raise to give up.

        Raises:
            StorageError: the folder cannot be written or does not support locks.
        """
        path = make_private_dir(self.root / _LOCKS) / _key(key)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock_file(path, on_wait=on_wait))
            except OSError as error:
                raise storage_error(error, path, "locked") from error
            yield

    def check_space(self, needed_bytes: int) -> None:
        """Check that the disk has room.

        Args:
            needed_bytes: still to be written.

        Raises:
            StorageError: there is less free, with both numbers.
        """
        folder = make_private_dir(self.root)
        free = shutil.disk_usage(folder).free
        if needed_bytes + MARGIN_BYTES > free:
            raise StorageError(
                f"The disk of {folder} has {size_text(free)} free; this needs {size_text(needed_bytes)}, and "
                f"{size_text(MARGIN_BYTES)} are left free for everything else.",
                "Free some space (edge models ls, edge models rm NAME), or set paths.models_dir to another disk.",
            )

    def install(self, partial: Path, folder: tuple[str, ...], record: Record) -> tuple[Path, Record]:
        """Give a whole and checked file or folder its final name, and write its record.

        Args:
            partial: the file, or the folder from `staging`; on the same disk, since it is in `.partial`.
            folder: names of folders below the root.
            record: its file name, hash and origin.

        Returns:
            The final path, and the record with size and time of change.

        Raises:
            StorageError: it cannot be written.
        """
        target_dir = make_private_dir(self.root.joinpath(*folder))
        target = target_dir / record.file
        try:
            if partial.is_dir():
                for place in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
                    sync_folder(place)
                size, mtime_ns = sum(file.size_bytes for file in record.files), 0
            else:
                _seal(partial)
                size, mtime_ns = partial.stat().st_size, partial.stat().st_mtime_ns
            # The record first: a crash in between leaves a record without a file, which is ignored, and the next pull only has
            # to rename the whole partial.
            record = replace(record, size_bytes=size, mtime_ns=mtime_ns, fetched=time.time())
            self._write(target, record)
            if partial.is_dir():
                self._throw_away(target)
            partial.replace(target)
            sync_folder(target_dir)
            if not record.files:  # the rename has changed its time of status
                record = replace(record, ctime_ns=target.stat().st_ctime_ns)
                self._write(target, record)
        except OSError as error:
            raise storage_error(error, target, "written") from error
        return target, record

    def place_in(self, staging: Path, name: str) -> Path:
        """Return the path of a folder's file; missing folders on the way are made.

        Raises:
            StorageError: one cannot be made.
        """
        return make_private_dir((staging / name).parent) / Path(name).name

    def gather(self, partial: Path, staging: Path, name: str) -> None:
        """Move a whole and checked file into its folder.

        Args:
            partial: the file.
            staging: from `staging`.
            name: inside the folder; known to be safe.

        Raises:
            StorageError: it cannot be written.
        """
        target = self.place_in(staging, name)
        try:
            _seal(partial)
            partial.replace(target)
        except OSError as error:
            raise storage_error(error, target, "written") from error

    def remove(self, path: Path) -> int:
        """Remove a model with its record, and the folders that are then empty.

        Returns:
            The size in bytes of the removed files.

        Raises:
            StorageError: it is not below the models folder, or cannot be removed.
        """
        root = self.root.resolve()
        real = path.parent.resolve() / path.name
        is_folder = path.is_dir()
        # A folder has to be one that was fetched: nothing else is a folder with a record beside it.
        if root not in real.parents or (is_folder and (path.is_symlink() or not _is_folder_record(path))):
            raise StorageError(f"{path} is not in the models folder {self.root}.", "It is not removed.")
        try:
            size = sum(file.lstat().st_size for file in (path.rglob("*") if is_folder else [path]) if not file.is_dir())
            self._throw_away(path)
            _record_path(path).unlink(missing_ok=True)
            folder = real.parent
            while folder != root and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent
        except OSError as error:
            raise storage_error(error, path, "removed") from error
        return size

    def _throw_away(self, path: Path) -> None:
        """Remove a file, or a folder: renamed first, so that a crash never leaves half of it under its name."""
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        doomed = self._partials() / f"{_key(str(path), str(time.time_ns()))}.gone"
        path.rename(doomed)
        shutil.rmtree(doomed)

    def _write(self, path: Path, record: Record) -> None:
        write_private(_record_path(path), msgspec.json.format(msgspec.json.encode(record)))

    def sweep(self) -> None:
        """Remove unfinished downloads that are too old to be resumed, and the folders of processes that were killed."""
        for path in (self.root / _PARTIAL).glob("*.*"):
            try:
                if path.suffix not in _KEEP_PARTIAL_S or path.stat().st_mtime > time.time() - _KEEP_PARTIAL_S[path.suffix]:
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except FileNotFoundError:
                continue  # finished or swept by another process in between
            except OSError as error:
                raise storage_error(error, path, "removed") from error


def storage_error(error: OSError, path: Path, verb: str) -> StorageError:
    """Translate an operating system's error about a file into edge's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Free some space (edge models ls, edge models rm NAME) and run the same command again: it resumes."
        return StorageError(f"The disk of {path.parent} is full.", hint)
    if error.errno == errno.EROFS:
        return StorageError(f"{path} cannot be {verb}: the disk is read-only.", "Set paths.models_dir to another disk.")
    return StorageError(f"{path} cannot be {verb}: {error.strerror or error}.", "Check its owner and permissions.")


def size_of(path: Path) -> int:
    """Return the size of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def weights_sha256(folder: Path, files: Sequence[FileRecord], weights: Sequence[Path]) -> str:
    """Return one hash over a folder's weights, from the hashes that its files had when they were fetched.

    Args:
        folder: the folder.
        files: all of its files.
        weights: those that decide what the model computes, in order.
    """
    known = {(folder / file.name).resolve(): file.sha256 for file in files}
    return join_sha256([(path.name, known[path.resolve()]) for path in weights])


def _files(path: Path, record: Record) -> list[tuple[Path, FileRecord]]:
    """Return the files of a model with what is known of them; one for a model that is a file."""
    if record.files:
        return [(path / file.name, file) for file in record.files]
    return [
        (
            path,
            FileRecord(
                name="", size_bytes=record.size_bytes, mtime_ns=record.mtime_ns, sha256=record.sha256, ctime_ns=record.ctime_ns
            ),
        )
    ]


def _state(path: Path) -> tuple[int, int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _key(*identity: str) -> str:
    return hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]


def _seal(partial: Path) -> None:
    """Make a whole and checked file durable and private."""
    sync_file(partial)
    partial.chmod(0o600)


def _is_folder_record(path: Path) -> bool:
    record = _read_record(_record_path(path))
    return record is not None and bool(record.files)


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + _RECORD_SUFFIX)


def _read_record(path: Path) -> Record | None:
    try:
        with open_file(path) as file:
            return msgspec.json.decode(file.read(_MAX_RECORD_BYTES), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None
