"""Bundle: a conversation and its KV blocks in one file that another machine can open.

It is a zip file without compression (KV cache hardly shrinks):

    conversation.json   as `ConversationStore.export_json` writes it
    blocks/0, 1, ...    payloads as the engine exported them, parents before children
    manifest.json       describes each of them, with its size and SHA-256

It holds the chat in readable form: keys and values can be turned back into text, and the text is beside them. The checksums
prove that the file is unchanged, not who wrote it, and engines check payloads little. So trust a bundle as much as its maker.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import msgspec

from edge.errors import StorageError
from edge.files import check_replaceable, open_zip
from edge.kv.blocks import MAX_FILE_BYTES, MAX_PREFILL_MS, MAX_TOKENS
from edge.kv.records import PlainBlock
from edge.names import ANSWERS, is_answer_namespace

__all__ = ["Bundle", "BundleReport", "open_bundle", "write_bundle"]

_CONVERSATION, _MANIFEST = "conversation.json", "manifest.json"
_MAX_TEXT_BYTES = 1 << 30
_MAX_MANIFEST_BYTES = 32 << 20
"""About 4 million tokens, of which the numbers alone take a tenth of a gigabyte of memory."""
_MAX_BLOCKS = 1 << 16
_HEADER_BYTES = 30  # of an entry of a zip file, before its name
_DAMAGE = (
    zipfile.BadZipFile, msgspec.MsgspecError, struct.error, KeyError, ValueError, OverflowError, RuntimeError, EOFError,
)  # fmt: skip
"""Raised by the libraries for a file that is not a bundle, or a damaged one."""
_EPOCH = (1980, 1, 1, 0, 0, 0)

_Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file of the bundle."""

    file: str
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_BYTES)]
    sha256: _Sha256


class _BlockPart(_Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A block; `parent` is the place of an earlier one."""

    parent: Annotated[int, msgspec.Meta(ge=0)] | None
    model: _Sha256
    namespace: Annotated[str, msgspec.Meta(max_length=63)]
    start: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    tokens: Annotated[list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]], msgspec.Meta(min_length=1, max_length=MAX_TOKENS)]
    origin: Literal["prefill", "decode"]
    prefill_ms: Annotated[float, msgspec.Meta(ge=0, le=MAX_PREFILL_MS)]


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    format: Literal["edge-bundle"]
    version: Literal[1]
    edge: str
    about: dict[str, Any]
    conversation: _Part
    blocks: Annotated[list[_BlockPart], msgspec.Meta(max_length=_MAX_BLOCKS)]

    def __post_init__(self) -> None:
        for place, block in enumerate(self.blocks):
            if block.file != f"blocks/{place}":
                raise ValueError(f"block {place} is named {block.file}")
            if (block.parent is None) != (block.start == 0):
                raise ValueError(f"block {place} has no parent")
            if block.start + len(block.tokens) >= 1 << 32 or block.size + 4 * len(block.tokens) + 1024 > MAX_FILE_BYTES:
                raise ValueError(f"block {place} is too large")
            if block.parent is not None:
                parent = self.blocks[block.parent] if block.parent < place else None
                if parent is None or parent.start + len(parent.tokens) != block.start:
                    raise ValueError(f"block {place} does not follow block {block.parent}")


@dataclass(frozen=True, slots=True)
class BundleReport:
    """Content of a written bundle: blocks, their tokens, and the size of the file in bytes."""

    n_blocks: int
    n_tokens: int
    size_bytes: int


class Bundle:
    """An open bundle. See `open_bundle`.

    Attributes:
        about: values from its writer, for people to read.
        models: tokens by fingerprint.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        with _refusing(path):
            _check_entries(archive)
            self._manifest = msgspec.json.decode(self._read(_MANIFEST, _MAX_MANIFEST_BYTES), type=_Manifest)
        self.about: Mapping[str, Any] = self._manifest.about
        self.models: dict[bytes, int] = {}
        for block in self._manifest.blocks:
            model = bytes.fromhex(block.model)
            self.models[model] = self.models.get(model, 0) + len(block.tokens)

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Read every byte and compare the checksums of the manifest.

        Args:
            on_progress: called with (bytes done, bytes in all).

        Raises:
            StorageError: something is damaged or missing.
        """
        parts: list[_Part] = [self._manifest.conversation, *self._manifest.blocks]
        total, done = sum(part.size for part in parts), 0
        for part in parts:
            self._part(part)
            done += part.size
            if on_progress is not None:
                on_progress(done, total)

    def conversation(self) -> bytes:
        """Return the conversation, for `ConversationStore.import_json`.

        Raises:
            StorageError: it is damaged.
        """
        return self._part(self._manifest.conversation)

    def blocks(self, model: bytes | None = None) -> Iterator[PlainBlock]:
        """Yield the blocks, parents before children, each compared with the manifest.

        Args:
            model: only those of this fingerprint; None yields all.

        Raises:
            StorageError: one is damaged.
        """
        for place, part in enumerate(self._manifest.blocks):
            if model is None or part.model == model.hex():
                yield PlainBlock(
                    _key(place), None if part.parent is None else _key(part.parent), bytes.fromhex(part.model), part.namespace,
                    part.start, part.tokens, self._part(part), part.origin, part.prefill_ms,
                )  # fmt: skip

    def _part(self, part: _Part) -> bytes:
        with _refusing(self._path):
            data = self._read(part.file, part.size)
            if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
                raise ValueError(f"{part.file} was changed")
        return data

    def _read(self, name: str, most: int) -> bytes:
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise ValueError(f"{name} is compressed or too large")
        with self._archive.open(info) as file:
            return file.read(most)


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """Open a bundle and read its manifest.

    Raises:
        StorageError: it cannot be read, or is not a bundle, damaged, or of a newer version.
    """
    with ExitStack() as stack:
        with _refusing(path):
            if not stat.S_ISREG(path.stat().st_mode):
                raise ValueError("it is not a regular file")
            archive = stack.enter_context(open_zip(path))
        yield Bundle(path, archive)


def write_bundle(
    path: Path, conversation: str, blocks: Iterable[PlainBlock], about: Mapping[str, object] | None = None
) -> BundleReport:
    """Write a bundle, whole or not at all, readable by its owner only.

    Args:
        path: replaced if it exists.
        conversation: from `ConversationStore.export_json`.
        blocks: parents before children; see `BlockStore.export_blocks`.
        about: JSON values for people to read.

    Raises:
        StorageError: it cannot be written, or is a device or FIFO.
    """
    check_replaceable(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            fd = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(fd, "w+b") as file:
                n_blocks, n_tokens = _write(file, conversation, blocks, dict(about or {}))
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        hint = "Choose a folder with enough space that you may write to."
        raise StorageError(f"The bundle {path} cannot be written ({error.strerror or error}).", hint) from error
    return BundleReport(n_blocks, n_tokens, size)


def _write(file: IO[bytes], conversation: str, blocks: Iterable[PlainBlock], about: dict[str, Any]) -> tuple[int, int]:
    import edge

    places: dict[bytes, int] = {}
    parts: list[_BlockPart] = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        first = _add(archive, _CONVERSATION, conversation.encode("utf-8"))
        for block in blocks:
            part = _add(archive, f"blocks/{len(parts)}", block.payload)
            places[block.key] = len(parts)
            parent = None if block.parent is None else places[block.parent]
            origin: Literal["prefill", "decode"] = "decode" if block.origin == "decode" else "prefill"
            parts.append(
                _BlockPart(
                    file=part.file, size=part.size, sha256=part.sha256, parent=parent, model=block.model.hex(),
                    namespace=ANSWERS if is_answer_namespace(block.namespace) else "", start=block.start,
                    tokens=list(block.tokens), origin=origin,
                    prefill_ms=block.prefill_ms,
                )
            )  # fmt: skip
        manifest = _Manifest(
            format="edge-bundle", version=1, edge=edge.__version__, about=about, conversation=first, blocks=parts
        )  # fmt: skip
        _add(archive, _MANIFEST, msgspec.json.encode(manifest))
    return len(parts), sum(len(part.tokens) for part in parts)


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> _Part:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o600 << 16
    with archive.open(info, "w", force_zip64=True) as file:
        file.write(data)
    return _Part(file=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _check_entries(archive: zipfile.ZipFile) -> None:
    """Refuse entries that share their bytes: a small file could then take hours to read.

    Raises:
        ValueError: they overlap, or there are too many.
    """
    end = 0
    entries = sorted(archive.infolist(), key=lambda info: info.header_offset)
    if len(entries) > _MAX_BLOCKS + 2:
        raise ValueError("it has too many entries")
    for info in entries:
        if info.header_offset < end:
            raise ValueError(f"{info.filename} overlaps another entry")
        end = info.header_offset + _HEADER_BYTES + len(info.orig_filename) + info.compress_size
    if end > archive.start_dir:
        raise ValueError("an entry overlaps the directory")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    hint = "Export the conversation again."
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"There is no file {path}.", "Check the name.") from error
    except _DAMAGE as error:
        reason = f"{error.args[0] if error.args else error}"
        raise StorageError(f"{path} is damaged or not a bundle of edge: {reason}.", hint) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror or error}).", "Check its permissions.") from error


def _key(place: int) -> bytes:
    return place.to_bytes(8, "big")
