"""Models for voice: folders of plain files, which no engine for chats loads. `edge_voice` asks here where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.catalog.entries import find_bundle, load_catalog
from edge.catalog.installed import source_of
from edge.catalog.request import Request
from edge.errors import ModelNotFoundError, UsageError
from edge.sources.base import Context
from edge.units import quoted

if TYPE_CHECKING:
    from pathlib import Path

    from edge.catalog.entries import CatalogEntry
    from edge.config.schema import Settings
    from edge.sources.base import Found, OnProgress

__all__ = ["find_voice", "is_voice", "list_voice", "pull_voice", "voice_folder"]


def is_voice(reference: str, settings: Settings) -> bool:
    """Return True if a name or reference means a model for voice. Raises as `edge.catalog.check_reference`."""
    entry, _ = Request(reference, settings).candidates
    return entry is not None and entry.voice is not None


def pull_voice(
    reference: str, *, settings: Settings, on_progress: OnProgress | None = None, accept_licence: bool = False
) -> Found:
    """Fetch a model for voice, unless it is here already.

    Args:
        reference: name in the catalogue, such as "kokoro-82m".
        settings: directories, offline mode.
        on_progress: called with the progress of the download; may raise to stop it, and the next call resumes.
        accept_licence: the user agrees to the licence, if the catalogue requires that.

    Returns:
        Its folder.

    Raises:
        UsageError: it is a model for something else.
        ModelNotFoundError: there is no such model, or edge is offline and it is not here.
        DownloadError, AccessDeniedError, ChecksumError, StorageError: it could not be fetched.
    """
    request = _voice_request(reference, settings, on_progress, accept_licence)
    found = request.fetch()
    request.check(found)
    return found


def find_voice(reference: str, *, settings: Settings) -> Found | None:
    """Return a model for voice if it is on this device. Nothing is fetched, and its files are not read.

    Raises:
        UsageError: it is a model for something else.
        ModelNotFoundError: there is no such model.
        StorageError: the models folder cannot be read.
    """
    return _voice_request(reference, settings).find()


def voice_folder(reference: str, *, settings: Settings) -> Path:
    """Return the folder with the files of a model for voice, as the packages name them (docs/models.md).

    Its files are those that the catalogue names: one that was changed since it was fetched is hashed again.

    Args:
        reference: name in the catalogue, such as "kokoro-82m", or in the user's own, where it is any folder.
        settings: directories.

    Raises:
        UsageError: it is a model for something else.
        ModelNotFoundError: there is no such model, or it is not on this device; the hint says how to fetch it.
        ModelFileError: a file was changed.
    """
    request = _voice_request(reference, settings)
    found = request.find()
    if found is None:
        raise ModelNotFoundError(f"{reference} is not on this device.", f"Fetch it with: edge models pull {quoted(reference)}")
    request.check(found)
    return found.path


def list_voice(settings: Settings) -> list[tuple[CatalogEntry, Found]]:
    """List the models for voice on this device.

    Raises:
        StorageError: the models folder cannot be read.
    """
    listed = []
    for entry in load_catalog(settings).values():
        for artifact in entry.artifacts if entry.voice else ():
            found = source_of(artifact.reference, Context(settings, entry.name, artifact)).find(artifact.reference)
            if found is not None:
                listed.append((entry, found))
    return listed


def _voice_request(
    reference: str, settings: Settings, on_progress: OnProgress | None = None, accept_licence: bool = False
) -> Request:
    request = Request(reference, settings, on_progress, accept_licence)
    entry, _ = request.candidates
    if entry is None or entry.voice is None:
        if members := find_bundle(reference, settings):
            raise UsageError(f"{reference} is a set of models.", f"Name one of them: {', '.join(members)}")
        if entry is None:
            request.find()  # raises for an unknown name
        names = [name for name, known in load_catalog(settings).items() if known.voice]
        raise UsageError(f"{reference} is not a model for voice.", f"Those are: {', '.join(names)}")
    return request
