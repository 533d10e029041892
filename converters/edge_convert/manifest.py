"""manifest.json beside an artifact: its source, options and tools.

The same input, recipe and tools give the same bytes: no times, no paths of the machine, keys in one order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from edge.errors import ModelFileError
from edge.files import read_json

__all__ = ["MANIFEST", "FileEntry", "Manifest", "check_files", "digest_file", "seal", "tool_versions", "write_manifest"]

MANIFEST = "manifest.json"
"""Name of the file in an artifact's folder."""

_CHUNK_BYTES = 1 << 20


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of an artifact or of its source.

    Attributes:
        name: relative to the artifact's or the checkpoint's folder, with forward slashes.
        size_bytes: of the file.
        sha256: of the file.
    """

    name: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The record of one artifact.

    Attributes:
        version: of this layout.
        format: "gguf", "onnx" or "coreml".
        name: of the model.
        architecture: the class in config.json.
        quantisation: name of the mix of weight types.
        source: the reference or file name that the user gave.
        source_quantised: weight mix of the source, if it was quantised already.
        source_files: of the checkpoint, weights and tokenizer.
        licence: where it is known.
        recipe: options that decided the result, as text.
        tools: package -> version.
        files: of the artifact.
        fingerprint: SHA-256 over everything above.
    """

    version: int = 1
    format: str
    name: str
    architecture: str
    quantisation: str
    source: str
    source_quantised: str | None = None
    source_files: tuple[FileEntry, ...]
    licence: str | None = None
    recipe: dict[str, str]
    tools: dict[str, str]
    files: tuple[FileEntry, ...]
    fingerprint: str = ""


def seal(manifest: Manifest) -> Manifest:
    """Sort a manifest's entries and add its fingerprint."""
    ordered = msgspec.structs.replace(
        manifest,
        source_files=tuple(sorted(manifest.source_files, key=lambda entry: entry.name)),
        recipe=dict(sorted(manifest.recipe.items())),
        tools=dict(sorted(manifest.tools.items())),
        files=tuple(sorted(manifest.files, key=lambda entry: entry.name)),
        fingerprint="",
    )
    return msgspec.structs.replace(ordered, fingerprint=hashlib.sha256(msgspec.json.encode(ordered)).hexdigest())


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest as indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def check_files(artifact: Path, on_bytes: Callable[[int], None] | None = None) -> int:
    """Compare the files of an artifact with the manifest that a conversion wrote.

    Args:
        artifact: a file or a package with the manifest beside it, or the folder around them.
        on_bytes: see `digest_file`.

    Returns:
        The number of files; 0 if there is no manifest, as beside a copy of the artifact alone.

    Raises:
        ModelFileError: a file is missing or changed, or the manifest is damaged or lists nothing of the artifact.
    """
    # A package has a Manifest.json of its own, which a Mac does not tell from ours.
    is_folder = artifact.suffix != ".mlpackage" and (artifact / MANIFEST).is_file()
    folder = artifact if is_folder else artifact.parent
    if not (folder / MANIFEST).is_file():
        return 0
    manifest = read_json(folder / MANIFEST, Manifest)
    entries = [entry for entry in manifest.files if is_folder or entry.name.split("/")[0] == artifact.name]
    if not entries:
        raise ModelFileError(
            f"{folder / MANIFEST} lists no file of {artifact.name}.",
            "Move it away if it belongs to another model, or convert the model again.",
        )
    for entry in entries:
        file = folder / entry.name
        if not file.is_file():
            raise ModelFileError(f"{file} is missing; {MANIFEST} lists it.", "Copy or convert the model again.")
        found = digest_file(file, name=entry.name, on_bytes=on_bytes)
        if found != entry:
            what = "SHA-256" if found.size_bytes == entry.size_bytes else "size"
            raise ModelFileError(
                f"{file} has changed since it was made: it has another {what} than in {MANIFEST}.",
                "Copy or convert the model again.",
            )
    return len(entries)


def digest_file(path: Path, *, name: str | None = None, on_bytes: Callable[[int], None] | None = None) -> FileEntry:
    """Return the size and SHA-256 of a file.

    Args:
        path: the file.
        name: in the manifest; None is the file's own.
        on_bytes: called with the number of bytes read so far; may raise to stop.
    """
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if on_bytes:
                on_bytes(done)
    return FileEntry(name=name or path.name, size_bytes=done, sha256=digest.hexdigest())


def tool_versions(*packages: str) -> dict[str, str]:
    """Return the versions of edge and of those packages that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("edge-assistant", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
