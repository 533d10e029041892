"""ollama:name[:tag]: models that Ollama already has on this device. They are used in place; nothing is copied.

Ollama stores a manifest (JSON) per tag, and blobs named by their SHA-256. edge reads both and writes neither.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edge.errors import ModelFileError, ModelNotFoundError, StorageError, UsageError
from edge.files import expand_user, open_file
from edge.sources.base import Found, Source
from edge.units import quoted

__all__ = ["OllamaSource"]

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?"
_REFERENCE = re.compile(rf"ollama:(?:({_PART}(?::\d+)?)/)?(?:({_PART})/)?({_PART})(?::({_PART}))?")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_DEFAULT_HOST, _DEFAULT_NAMESPACE, _DEFAULT_TAG = "registry.ollama.ai", "library", "latest"
_MODEL, _ADAPTER, _LICENCE = (f"application/vnd.ollama.image.{kind}" for kind in ("model", "adapter", "license"))
_MAX_MANIFEST_BYTES = 1 << 20
# Folders of models that Ollama's installers use: for the user, and for the system service on Linux.
_SYSTEM_FOLDERS = ("/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models", "/var/lib/ollama/models")


@dataclass(frozen=True)
class _Tag:
    host: str
    namespace: str
    name: str
    tag: str

    def __str__(self) -> str:
        prefix = ""
        if self.host != _DEFAULT_HOST:
            prefix = f"{self.host}/{self.namespace}/"
        elif self.namespace != _DEFAULT_NAMESPACE:
            prefix = f"{self.namespace}/"
        return f"ollama:{prefix}{self.name}:{self.tag}"

    @property
    def repair(self) -> str:
        """The hint for a model that is damaged."""
        return f"Repair it with: ollama pull {quoted(str(self).removeprefix('ollama:'))}"

    def manifest(self, folder: Path) -> Path:
        return folder / "manifests" / self.host / self.namespace / self.name / self.tag


class OllamaSource(Source):
    """Models in Ollama's own folder: OLLAMA_MODELS, ~/.ollama/models, or the one of the system service."""

    def canonical(self, reference: str) -> str:
        return str(_parse(reference))

    def find(self, reference: str) -> Found | None:
        wanted = _parse(reference)
        closed: list[Path] = []
        for folder in self._folders(closed):
            manifest = wanted.manifest(folder)
            try:
                if not manifest.is_file():
                    continue
                with open_file(manifest) as file:
                    content = file.read(_MAX_MANIFEST_BYTES)
            except PermissionError as error:
                raise _unreadable(manifest) from error
            except OSError as error:
                raise StorageError(f"{manifest} cannot be read: {error.strerror}.", "Check the disk.") from error
            return self._model(wanted, folder, content)
        if closed:
            raise _unreadable(closed[0], f"It is unknown whether {wanted} is on this device: ")
        return None

    def fetch(self, reference: str) -> Found:
        wanted = _parse(reference)
        if not self._folders():
            own = os.environ.get("OLLAMA_MODELS")
            where = f"OLLAMA_MODELS ({own})" if own else "this device"
            raise ModelNotFoundError(
                f"{wanted} is not here: {where} has no models of Ollama.",
                "If Ollama keeps them elsewhere, set OLLAMA_MODELS to that folder.",
            )
        known = [str(tag) for tag in self._tags()]
        near = get_close_matches(str(wanted), known, n=1, cutoff=0.6)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ModelNotFoundError(
            f"The Ollama on this device has no {quoted(str(wanted).removeprefix('ollama:'))}.",
            f"{hint}Fetch it with: ollama pull {quoted(str(wanted).removeprefix('ollama:'))}",
        )

    def installed(self) -> list[Found]:
        found = []
        for tag in self._tags():
            try:
                model = self.find(str(tag))
            except (ModelFileError, StorageError):
                # A damaged or private one must not hide the others; asking for it by name says what is wrong.
                continue
            if model:
                found.append(model)
        return found

    def _folders(self, closed: list[Path] | None = None) -> list[Path]:
        """Return Ollama's readable folders; unreadable ones are added to `closed`."""
        own = os.environ.get("OLLAMA_MODELS")
        folders = []
        for candidate in [own] if own else ["~/.ollama/models", *_SYSTEM_FOLDERS]:
            try:
                folder = expand_user(candidate)
            except UsageError:
                continue  # no such home directory, so no such folder
            try:
                if (folder / "manifests").is_dir():
                    folders.append(folder)
            except PermissionError:
                # The service's folder is closed to others by default; only asking for a model there is an error.
                if closed is not None:
                    closed.append(folder)
            except OSError:
                continue  # a name that is too long for a folder
        return folders

    def _tags(self) -> list[_Tag]:
        tags = []
        for folder in self._folders():
            for path in sorted((folder / "manifests").glob("*/*/*/*")):
                parts = path.relative_to(folder / "manifests").parts
                if path.is_file() and all(re.fullmatch(_PART + r"(?::\d+)?", part) for part in parts):
                    tags.append(_Tag(*parts))
        return tags

    def _model(self, wanted: _Tag, folder: Path, content: bytes) -> Found:
        layers = _layers(wanted, content)
        if any(layer.get("mediaType") == _ADAPTER for layer in layers):
            raise ModelFileError(
                f"{wanted} is a model with an adapter on top, which edge cannot apply.", "Use the model it is made from."
            )
        models = [layer for layer in layers if layer.get("mediaType") == _MODEL]
        if len(models) != 1:
            raise ModelFileError(
                f"{wanted} holds {len(models)} GGUF files; a model that edge can load has one.",
                "Use another model, or one that was made from a GGUF file.",
            )
        digest, size_bytes = _blob(wanted, models[0])
        # Old versions of Ollama wrote the colon into the file name.
        path = folder / "blobs" / f"sha256-{digest}"
        try:
            if not path.is_file() and (folder / "blobs" / f"sha256:{digest}").is_file():
                path = folder / "blobs" / f"sha256:{digest}"
            on_disk = path.stat().st_size
        except FileNotFoundError as error:
            raise ModelFileError(f"{wanted} is incomplete: its file {path.name[:19]}... is missing.", wanted.repair) from error
        except OSError as error:
            raise _unreadable(path) from error
        if size_bytes is not None and on_disk != size_bytes:
            raise ModelFileError(f"{wanted} is truncated: it has {on_disk:,} of {size_bytes:,} bytes.", wanted.repair)
        licence = self._licence(wanted, folder, layers)
        return Found(path, str(wanted), on_disk, f"Ollama ({folder})", "ollama", digest, licence=licence)

    def _licence(self, wanted: _Tag, folder: Path, layers: list[dict[str, Any]]) -> str | None:
        """Return the first non-empty line of the licence text, which is its title."""
        for layer in layers:
            if layer.get("mediaType") == _LICENCE:
                digest, _ = _blob(wanted, layer)
                try:
                    with open_file(folder / "blobs" / f"sha256-{digest}") as file:
                        text = file.read(4000).decode("utf-8", "replace")
                        lines = [line.strip() for line in text.splitlines() if line.strip()]
                except OSError:
                    return None  # shown for information only
                title = " ".join(lines[:1])[:80]
                return title if title and title.isprintable() else None
        return None


def _layers(wanted: _Tag, content: bytes) -> list[dict[str, Any]]:
    try:
        manifest = json.loads(content)
        layers = manifest["layers"]
        if isinstance(layers, list) and all(isinstance(layer, dict) for layer in layers):
            return layers
    except (ValueError, KeyError, TypeError, RecursionError):
        pass  # reported below
    raise ModelFileError(f"Ollama's manifest of {wanted} is damaged.", wanted.repair)


def _blob(wanted: _Tag, layer: dict[str, Any]) -> tuple[str, int | None]:
    digest, size = layer.get("digest"), layer.get("size")
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if not found:
        raise ModelFileError(f"Ollama's manifest of {wanted} names no SHA-256 digest.", "Pull it again with Ollama.")
    return found[1], size if type(size) is int else None


def _unreadable(path: Path, about: str = "") -> StorageError:
    return StorageError(
        f"{about}{path} belongs to Ollama, and you cannot read it.",
        "Join Ollama's group (sudo usermod -aG ollama $USER, then log in again), or give OLLAMA_MODELS a folder of yours.",
    )


def _parse(reference: str) -> _Tag:
    found = _REFERENCE.fullmatch(reference)
    if not found or ".." in reference:
        raise UsageError(f"{reference[:100]!r} is not the name of an Ollama model.", "Write ollama:name or ollama:name:tag.")
    host, namespace, name, tag = found.groups()
    if host and not namespace:
        # One prefix is a namespace of the default registry, as in Ollama itself.
        host, namespace = None, host
    return _Tag(host or _DEFAULT_HOST, namespace or _DEFAULT_NAMESPACE, name, tag or _DEFAULT_TAG)
