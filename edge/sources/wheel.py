"""One Python package, installed or as a wheel that pip fetches, and one file of it. No code of a package ever runs."""

from __future__ import annotations

import base64
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import ModelFileError, ModelNotFoundError, UsageError
from edge.formats.artifact import is_gguf, is_side_file
from edge.sources.pip_child import download_wheel

if TYPE_CHECKING:
    from edge.sources.base import Context

__all__ = ["InstalledFile", "WheelName", "choose_file", "find_installed", "open_wheel", "parse_wheel"]

_REFERENCE = re.compile(r"pypi:([A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?)(?:==([A-Za-z0-9][A-Za-z0-9.+!_-]{0,126}))?")


@dataclass(frozen=True)
class WheelName:
    """A package, as its reference names it.

    Attributes:
        name: in its normal form (PEP 503).
        version: None for any.
    """

    name: str
    version: str | None

    def __str__(self) -> str:
        return f"pypi:{self.name}" + (f"=={self.version}" if self.version else "")

    @property
    def requirement(self) -> str:
        """The package as pip names it."""
        return str(self).removeprefix("pypi:")

    @property
    def installed_version(self) -> str | None:
        """The version of the installed package; None if it is another one than wanted, or not installed."""
        try:
            version = metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return None
        return version if self.version in (None, version) else None


@dataclass(frozen=True)
class InstalledFile:
    """A file of an installed package.

    Attributes:
        path: of the file.
        version: of the package.
        sha256: from the package's RECORD; None if that has none.
    """

    path: Path
    version: str
    sha256: str | None


def parse_wheel(reference: str) -> WheelName:
    """Parse "pypi:package" or "pypi:package==version".

    Raises:
        UsageError: it is malformed.
    """
    found = _REFERENCE.fullmatch(reference)
    if not found:
        raise UsageError(f"{reference[:100]!r} is not a valid package reference.", "Write pypi:package or pypi:package==1.2.3.")
    name, version = found.groups()
    return WheelName(re.sub(r"[-_.]+", "-", name).lower(), version)


def find_installed(package: WheelName, file: str | None) -> InstalledFile | None:
    """Return a file of an installed package, if the package has the wanted version.

    Args:
        package: the package.
        file: path inside it; None for its only GGUF file.

    Raises:
        UsageError: it has several GGUF files.
    """
    if package.installed_version is None:
        return None
    distribution = metadata.distribution(package.name)
    files = {str(path): path for path in distribution.files or []}
    try:
        found = files[choose_file(list(files), file, package.requirement)]
    except ModelNotFoundError:
        return None
    path = Path(str(found.locate()))
    if not path.is_file():
        return None
    # RECORD has the hash that the installer checked, in URL-safe base64 without padding.
    recorded = found.hash.value if found.hash and found.hash.mode == "sha256" else ""
    sha256 = base64.urlsafe_b64decode(recorded + "=" * (-len(recorded) % 4)).hex() if recorded else None
    return InstalledFile(path, distribution.version, sha256)


@contextmanager
def open_wheel(
    context: Context,
    package: WheelName,
    sha256: str | None,
    *,
    size_bytes: int | None,
    platform: str = "",
    on_bytes: Callable[[int], None],
) -> Iterator[tuple[zipfile.ZipFile, str]]:
    """Fetch a wheel with pip and open it; it is removed when the context ends.

    Args:
        context: settings and store.
        package: the package.
        sha256: of the wheel, if known.
        size_bytes: of what is taken out of it, for the check of the disk.
        platform: tag of the wheel, for one that is not for every system but whose files are.
        on_bytes: called with the number of bytes so far; may raise to stop.

    Yields:
        The archive and its version.

    Raises:
        ModelFileError: it is damaged, also where the caller reads from it.
        EdgeError: those of `download_wheel`.
    """
    with download_wheel(
        package.requirement,
        sha256,
        context.store,
        size_bytes=size_bytes,
        platform=platform,
        offline=context.settings.hub.offline,
        on_bytes=on_bytes,
    ) as wheel:
        try:
            with zipfile.ZipFile(wheel) as archive:
                yield archive, wheel.name.split("-")[1]
        except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise ModelFileError(
                f"The package {package.requirement} is damaged: {error}.", "Run the same command again."
            ) from error


def choose_file(names: Sequence[str], file: str | None, what: str) -> str:
    """Return the wanted file among those of a package, or its only GGUF file.

    Raises:
        ModelNotFoundError: it has no such file.
        UsageError: it has several GGUF files.
    """
    if file is not None:
        if file in names:
            return file
        raise ModelNotFoundError(f"The package {what} has no file {file}.", "It is another version than expected.")
    models = [name for name in names if is_gguf(name) and not is_side_file(name)]
    if not models:
        raise ModelNotFoundError(f"The package {what} carries no GGUF file.", "See its page on your package index.")
    if len(models) > 1:
        raise UsageError(f"The package {what} carries {len(models)} models.", "Install it and give the path of one.")
    return models[0]
