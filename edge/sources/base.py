"""The contract of every source of models, and the values that travel between a source and the catalogue."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edge.errors import ChecksumError, DownloadError
from edge.forks import lazy_property
from edge.hashes import is_sha256
from edge.names import FORMATS, Format
from edge.sources.store import FileRecord, Record, Store

if TYPE_CHECKING:
    from edge.config.schema import Settings

__all__ = [
    "ArtifactEntry",
    "Context",
    "DownloadProgress",
    "Found",
    "OnProgress",
    "Phase",
    "Piece",
    "Source",
    "quantisation_of",
    "safe_name",
]

Phase = Literal["connect", "wait", "download", "unpack", "verify"]
"""The step that a pull is at; "wait" is for another process that pulls the same model."""

Owner = Literal["edge", "ollama", "pip", "hub cache", "you"]
"""Who put a file where it is, and so may remove it."""

_QUANTISATION = re.compile(r"(?:^|[-_.])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|BF16|F16|F32|FP16|MXFP4\w*))\.gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """The progress of a pull.

    Attributes:
        name: of the model, as the user wrote it.
        done_bytes: so far, those of an earlier attempt included.
        total_bytes: in all, if known.
        phase: the step that these bytes belong to.
    """

    name: str
    done_bytes: int
    total_bytes: int | None
    phase: Phase


OnProgress = Callable[[DownloadProgress], None]


class Piece(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a package: a part of a model that has to be concatenated, or a file of a model that is a folder.

    Attributes:
        reference: of the package: "pypi:package==1.0", or "npm:package@1.0" if the model is a folder.
        file: path of the part inside the package.
        name: of the file in the folder that it is, or is a part of; "" if the model is one file.
        size_bytes: of the part.
        sha256: of the part.
        archive_sha256: of the package's wheel or tarball.
        platform: tag of the wheel, if there is none for every system; the file is the same in all of them.
    """

    reference: str
    file: str
    size_bytes: int
    sha256: str
    name: str = ""
    archive_sha256: str | None = None
    platform: str = ""


class ArtifactEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file or folder of a catalogue entry. Unknown fields are left out, never guessed.

    Attributes:
        reference: "hf:", "ollama:" or "pypi:"; in a user's own catalogue also a path.
        format: which engines read it; if left out, the reference tells.
        quantisation: name of the mix of weight types.
        file: path inside the package.
        size_bytes: of the file, or of everything in the folder.
        about_bytes: its size as published at the time of writing; shown, and never held against what arrives.
        sha256: of the file; of a folder, that of its weights as `edge models show --verify` prints it.
        archive_bytes, archive_sha256: of the package that holds it.
        pieces: the parts it is published in, in order; those of one file of a folder follow each other.
        recipe: how the file is made of a checkpoint in the package, whose folder is `file`; sha256 and size are of the result.
    """

    reference: str
    format: Format | None = None
    quantisation: str | None = None
    file: str | None = None
    size_bytes: int | None = None
    about_bytes: int | None = None
    sha256: str | None = None
    archive_bytes: int | None = None
    archive_sha256: str | None = None
    pieces: tuple[Piece, ...] = ()
    recipe: Literal["bert"] | None = None

    def __post_init__(self) -> None:
        hashes = [value for piece in self.pieces for value in (piece.sha256, piece.archive_sha256)]
        for value in (self.sha256, self.archive_sha256, *hashes):
            if value is not None and not is_sha256(value):
                raise ValueError(f"{value!r} is not a SHA-256")
        names = [name for name, _ in groupby(piece.name for piece in self.pieces)]
        if len(names) != len(set(names)) or ("" in names and len(names) > 1):
            raise ValueError("the pieces of a file do not follow each other")
        for name in names:
            parts = name.split("/")
            if name and (
                not name.isprintable() or "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts)
            ):
                raise ValueError(f"{name!r} is not a name inside a folder")

    @property
    def is_folder(self) -> bool:
        """True if it is a folder of files out of packages, which is what models for voice are."""
        return any(piece.name for piece in self.pieces)

    @property
    def form(self) -> Format:
        """The given format, or the one that the words of the reference name, such as "onnx" in a repository or folder."""
        if self.format is not None:
            return self.format
        words = set(re.split(r"[^a-z0-9]+", self.reference.lower()))
        if self.reference.lower().endswith(".gguf") or "gguf" in words:
            return "gguf"
        if words & {"coreml", "mlpackage"}:
            return "coreml"
        return "onnx" if "onnx" in words else "gguf"


@dataclass(frozen=True, slots=True)
class Found:
    """A model that is on the device.

    Attributes:
        path: the file or folder.
        reference: the one it was found by.
        size_bytes: of the file, or of everything in the folder.
        origin: where it came from, for people.
        owner: who may remove it.
        sha256: the file's hash as promised or computed; None if unknown.
        verified: the hash was checked when the file was made, and the file has not changed since.
        licence: if known.
        names: every reference that is known to lead to it.
        format: which engines read it.
        quantisation: of its weights; "" if only its header could tell.
        files: of a folder that edge fetched, with the hashes they had.
    """

    path: Path
    reference: str
    size_bytes: int
    origin: str
    owner: Owner
    sha256: str | None = None
    verified: bool = False
    licence: str | None = None
    names: tuple[str, ...] = ()
    format: Format = "gguf"
    quantisation: str = ""
    files: tuple[FileRecord, ...] = ()


@dataclass(frozen=True)
class Context:
    """The surroundings of one question to a source.

    Attributes:
        settings: directories, hub and offline mode.
        name: the user's name for the model, for progress.
        entry: the catalogue's facts about the file; None if the user gave a reference of their own.
        on_progress: called with the progress of a pull; may raise to stop it.
    """

    settings: Settings
    name: str = ""
    entry: ArtifactEntry | None = None
    on_progress: OnProgress | None = field(default=None, repr=False)

    @lazy_property
    def store(self) -> Store:
        """The folder of models that edge owns."""
        return Store(self.settings.paths.models_dir)

    def report(self, done_bytes: int, total_bytes: int | None, phase: Phase) -> None:
        """Report progress. Exceptions of the callback, KeyboardInterrupt included, pass through."""
        if self.on_progress:
            self.on_progress(DownloadProgress(self.name, done_bytes, total_bytes, phase))

    def lock(self, key: str) -> AbstractContextManager[None]:
        """Return the store's lock of one model; waiting for another process is reported as progress."""
        return self.store.lock(key, on_wait=lambda: self.report(0, None, "wait"))

    def check_promise(self, what: str, size_bytes: int | None, sha256: str | None) -> None:
        """Compare an offered file or folder with the catalogue's size and hash.

        Raises:
            ChecksumError: they differ.
        """
        if self.entry is None:
            return
        for kind, ours, theirs in (("size", self.entry.size_bytes, size_bytes), ("SHA-256", self.entry.sha256, sha256)):
            if ours is not None and theirs is not None and ours != theirs:
                raise ChecksumError(
                    f"{what} is not what the catalogue names: its {kind} is {theirs}, not {ours}.",
                    "It was replaced there. Check the publisher's page before you use it by its own reference.",
                )

    def owned(self, path: Path, record: Record, reference: str, origin: str = "") -> Found:
        """Return a file or folder of the store as a Found.

        Args:
            path, record: from the store.
            reference: the one it was found by.
            origin: for people; by default the record's, with its revision.
        """
        return Found(
            path=path,
            reference=reference,
            size_bytes=record.size_bytes if record.files else path.stat().st_size,
            origin=origin or f"{record.origin} ({record.revision[:7]})",
            owner="edge",
            sha256=record.sha256 or None,
            verified=self.store.is_unchanged(path, record),
            licence=record.licence,
            names=record.references,
            format=record.format if record.format in FORMATS else "gguf",
            quantisation=record.quantisation or quantisation_of(record.file) or "",
            files=record.files,
        )


class Source(ABC):
    """One kind of reference. A source is made for one question and thrown away."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @abstractmethod
    def canonical(self, reference: str) -> str:
        """Return the reference in its one canonical spelling.

        Raises:
            UsageError: it is malformed.
        """

    @abstractmethod
    def find(self, reference: str) -> Found | None:
        """Return the model if it is on the device. Never uses the network and never reads the file through.

        Raises:
            UsageError: the reference is malformed.
            StorageError: a folder cannot be read.
        """

    @abstractmethod
    def fetch(self, reference: str) -> Found:
        """Bring the model onto the device, or say why that cannot be done.

        Raises:
            UsageError: the reference is malformed, or means several files.
            ModelNotFoundError: there is no such model.
            DownloadError: the server failed; its subclasses say how.
            StorageError: there is no room, or the folder cannot be written.
        """

    def installed(self) -> list[Found]:
        """Return every model of this kind on the device; none by default."""
        return []


def quantisation_of(name: str) -> str | None:
    """Return the quantisation in a GGUF file's name, if any."""
    found = _QUANTISATION.search(name)
    return found[1].upper() if found else None


def safe_name(name: str) -> str:
    """Return a file name from outside as one that is safe to make here: one component, no control or hidden names.

    Raises:
        DownloadError: it cannot be made safe.
    """
    flat = name.replace("\\", "/")
    parts = flat.split("/")
    is_safe = (
        all(part not in ("", ".", "..") for part in parts)
        and not flat.startswith(".")
        and flat.isprintable()
        and ":" not in flat
        and len(flat.encode()) <= 200
    )
    if not is_safe:
        raise DownloadError(
            f"The server names a file {name[:80]!r}, which is not safe to write here.", "Report it to its publisher."
        )
    return "--".join(parts)
