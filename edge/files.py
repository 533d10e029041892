"""Small files: bounded reads of what strangers wrote, private files and folders of our own, the data that ships with edge."""

from __future__ import annotations

import codecs
import errno
import io
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from edge.errors import ConfigError, ModelFileError, StorageError, UsageError
from edge.units import reason

if TYPE_CHECKING:
    import zipfile

__all__ = [
    "MAX_JSON_BYTES", "absolute_path", "check_replaceable", "decode_text", "exists", "expand_user", "lock_file",
    "make_private_dir", "open_file", "open_zip", "overwrite_file", "parse_json", "parse_toml", "read_bytes", "read_json",
    "read_record", "read_text", "shipped", "sync_file", "sync_folder", "toml_text", "try_lock", "write_private",
]  # fmt: skip

MAX_JSON_BYTES = 16 << 20
"""Of a configuration file; the largest known, with thousands of added tokens, has 2 MB."""

_MAX_ZIP_DIRECTORY_BYTES = 16 << 20
_WAIT_S = 0.2
_ZEROS_AT_ONCE = 1 << 20  # bytes
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)
T = TypeVar("T")


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path with a leading "~" or "~user" replaced by that home directory.

    Raises:
        UsageError: there is no such user, or no home directory.
    """
    given = Path(path)
    try:
        return given.expanduser()
    except RuntimeError:
        if name := given.parts[0][1:]:
            what, hint = f"there is no user {name!r} on this device", "Give the path without ~."
        else:
            what, hint = "your home directory is unknown", "Set HOME, or give the path without ~."
        raise UsageError(f"{str(path)[:200]!r} leads nowhere: {what}.", hint) from None


def exists(path: Path) -> bool:
    """Return True if there is something at a path, or a folder on the way is closed; False for a text too long to be one."""
    try:
        return path.exists()
    except ValueError:
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG


def absolute_path(path: str | os.PathLike[str], base: Path | None = None) -> Path:
    """Return an absolute path with "~" expanded.

    Args:
        path: as the user wrote it.
        base: folder of relative paths, instead of the current directory.

    Raises:
        UsageError: there is no such home directory, or the current directory was deleted.
    """
    expanded = expand_user(path)
    try:
        return (base / expanded if base else expanded).absolute()
    except FileNotFoundError:
        raise UsageError(
            f"{str(path)[:200]!r} is relative to the current directory, which no longer exists.",
            "Give a path that begins with /, or change to another directory.",
        ) from None


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open an ordinary file, or the null device, to read its bytes.

    Never waits: a FIFO would wait for its other end, a terminal for what is typed.

    Raises:
        OSError: it is something else, or cannot be opened; `strerror` says why.
    """
    try:
        _check_kind(path, Path(path).stat())  # before it is opened, too: opening some devices already does something
    except ValueError as error:
        raise OSError(errno.EINVAL, f"it cannot be a path ({error})", os.fspath(path)) from error
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)), "rb")
    try:
        _check_kind(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def _check_kind(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory, not a file", os.fspath(path))
    is_null = stat.S_ISCHR(status.st_mode) and status.st_rdev == Path(os.devnull).stat().st_rdev
    if not stat.S_ISREG(status.st_mode) and not is_null:
        raise OSError(errno.EINVAL, f"it is {_kind(status.st_mode)}, not a file", os.fspath(path))


def _kind(mode: int) -> str:
    return next((words for fits, words in _KINDS if fits(mode)), "something else")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a file.

    Args:
        path: the file.
        max_bytes: the most it may have.

    Raises:
        ModelFileError: it is missing, no file, too large, or cannot be read.
    """
    try:
        if not path.is_file():
            raise ModelFileError(f"{path} is missing.", "Download or convert the model again.")
        with open_file(path) as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.", "Check its permissions and the disk.") from error
    if len(data) > max_bytes:
        raise ModelFileError(
            f"{path} has more than {max_bytes:,} bytes, so it is not what its name says.",
            "Download or convert the model again.",
        )
    return data


def read_text(path: Path, max_bytes: int) -> str:
    """Return the text of a file in UTF-8.

    Raises:
        ModelFileError: as `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is not a text file: {reason(error)}.", "Download or convert the model again.") from error


def read_json(path: Path, kind: type[T], max_bytes: int = MAX_JSON_BYTES) -> T:
    """Return the values of a JSON file, checked against a type. Fields that the type does not name are passed over.

    Args:
        path: the file.
        kind: a msgspec.Struct.
        max_bytes: the most it may have.

    Raises:
        ModelFileError: as `read_bytes`, or it is not JSON, or not of the type.
    """
    return parse_json(path, read_bytes(path, max_bytes), kind)


def parse_json(path: Path, data: bytes, kind: type[T]) -> T:
    """As `read_json`, of bytes that were read already; `path` is for messages."""
    import msgspec

    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else reason(error)
        raise ModelFileError(f"{path} is damaged: {why}.", "Download or convert the model again.") from error


def read_record(path: Path, kind: type[T], max_bytes: int = 1 << 20) -> T | None:
    """Return a JSON file of edge's own, such as the verdict of a trial; None if it is missing, damaged or too large.

    Args:
        path: the file.
        kind: type of its content.
        max_bytes: the most it may have.
    """
    try:
        return read_json(path, kind, max_bytes)
    except ModelFileError:
        return None  # then it is found out again


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip file unless its list of entries is so long that reading it could take minutes, and gigabytes of memory.

    Raises:
        ValueError: it is.
        zipfile.BadZipFile, OSError: it is not a zip file, damaged, or cannot be read.
    """
    import zipfile

    with _Bounded(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        file.most = None
        yield archive


class _Bounded(io.BufferedReader):
    most: int | None = _MAX_ZIP_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if self.most is None:
            return super().read(size)
        data = super().read(self.most + 1 if size is None or size < 0 else min(size, self.most + 1))
        if len(data) > self.most:
            raise ValueError("it has too many entries")
        return data


def decode_text(data: bytes, name: str) -> str:
    """Return a text that a person gives: UTF-8, or UTF-16 with a byte order mark, as Notepad and PowerShell write it.

    Args:
        data: the whole text.
        name: of the file, for messages.

    Returns:
        The text, with line ends as "\\n".

    Raises:
        UsageError: it is binary, or in another encoding.
    """
    is_utf16 = len(data) > 2 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        if b"\0" not in data:
            hint = "Convert it first, for example with: iconv -t UTF-8"
            raise UsageError(f"{name} is not UTF-8 text.", hint) from None
        text = "\0"
    if "\0" in text:
        raise UsageError(f"{name} is a binary file, not UTF-8 text.", "Only text can be used; convert it first.")
    return text.replace("\r\n", "\n")


def toml_text(path: Path, data: bytes) -> str:
    """Return the text of a TOML file.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}, byte {error.start}.", "Save it as UTF-8.") from None


def parse_toml(path: Path, text: str) -> dict[str, Any]:
    """Return the values of a TOML file, whoever wrote it: settings, a catalogue, a recipe, a theme.

    Args:
        path: of the file, for messages.
        text: its content.

    Raises:
        ConfigError: it is not TOML; the message has line and column.
    """
    # tomllib came with Python 3.11; tomli is the same library for 3.10.
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        values: dict[str, Any] = toml.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not a TOML file: {error}.", "Correct that line, or move the file away.") from None
    except RecursionError:
        raise ConfigError(f"{path} is not a usable TOML file: it is nested too deeply.", "Move the file away.") from None
    return values


def try_lock(handle: int, *, shared: bool = False) -> bool:
    """Lock an open file without waiting, and return whether that worked. Closing the file, or the process's end, releases it.

    Args:
        handle: descriptor of the file.
        shared: several may hold it at once.

    Raises:
        OSError: the file system, or the operating system, has no locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError("this system has no file locks that edge knows") from error
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def lock_file(path: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is missing; the kernel releases it when the process dies.

    Args:
        path: the file; its content does not matter.
        on_wait: called about five times a second while another process holds it; may raise to give up. None waits for ever.

    Raises:
        OSError: the file cannot be opened or locked.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not try_lock(handle):
            if on_wait:
                on_wait()
            time.sleep(_WAIT_S)
        yield
    finally:
        os.close(handle)


def overwrite_file(path: Path) -> None:
    """Overwrite a file with zeros, and wait until that is on the disk. A missing one has nothing to overwrite.

    Raises:
        OSError: it cannot be written.
    """
    try:
        file = path.open("r+b", buffering=0)
    except FileNotFoundError:
        return
    with file:
        n_left = os.fstat(file.fileno()).st_size
        while n_left:
            n_left -= file.write(bytes(min(n_left, _ZEROS_AT_ONCE)))
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Make the content of a file survive a power cut.

    Raises:
        OSError: it cannot be read or written back.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make new, renamed and removed names in a folder survive a power cut.

    Raises:
        OSError: it cannot be opened or written back.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_private_dir(path: Path) -> Path:
    """Make a directory, and its missing parents, that only their owner may enter. Existing ones stay as they are.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        for folder in reversed([path, *(parent for parent in path.parents if not parent.exists())]):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        hint = "Check its owner and the free space, or choose another directory (edge config path)."
        raise StorageError(f"The directory {path} cannot be made: {error.strerror}.", hint) from error
    return path


def check_replaceable(path: Path) -> None:
    """Check that a path is an ordinary file, a link to one, or free.

    Raises:
        StorageError: there is something else, such as a device, which `write_private` would destroy; or it cannot be examined.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return  # free, or the folder cannot be made, which making it says
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.", "Check the path and its owner.") from error
    if not stat.S_ISREG(mode):
        raise StorageError(f"{path} is {_kind(mode)}, so it is not replaced by a file.", "Give the path of an ordinary file.")


def write_private(path: Path, data: bytes) -> None:
    """Replace a file as a whole: after a crash there is the old one or the new one. Only its owner may read it.

    Raises:
        StorageError: it cannot be written, or is not an ordinary file; the old one is as it was.
    """
    # A settings file kept elsewhere and linked to is replaced where it really is.
    target = Path(os.path.realpath(path))
    check_replaceable(path)
    make_private_dir(target.parent)
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # made with mode 0600
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", "Check its owner and the free space on that disk."
        ) from error


def shipped(name: str) -> Path | None:
    """Return the path of a file or folder that ships with edge (models/ of the project), or None if it is missing.

    Args:
        name: relative, such as "catalog.toml" or "templates/qwen.jinja".
    """
    here = Path(__file__).parent
    # The wheel carries the folder inside the package; a checkout, and an editable install of it, beside it.
    return next((folder / name for folder in (here / "_models", here.parent / "models") if (folder / name).exists()), None)
