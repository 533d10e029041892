"""The models on this device, whoever put them there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge.catalog.entries import is_reference, load_catalog
from edge.names import FORMATS, Format
from edge.sources import SOURCES, open_source
from edge.sources.base import Context, Found, Source
from edge.sources.local import LocalSource
from edge.sources.packages import PackagesSource

if TYPE_CHECKING:
    from edge.config.schema import Settings
    from edge.sources.base import Owner

__all__ = ["Installed", "list_for_converters", "list_models", "source_of"]


@dataclass(frozen=True, slots=True)
class Installed:
    """A model on this device, for `edge models ls`.

    Attributes:
        name: the catalogue's, or the reference. A model in several formats is listed once for each.
        reference: accepted by `resolve`.
        path: the file or folder.
        size_bytes: of the file, or of everything in the folder.
        origin: where it came from, for people.
        owner: who put it there: "edge", "ollama", "pip" or "hub cache". `remove` removes only edge's own.
        used_by: every name and reference that leads to the file; "default" among them if settings.model does.
        sha256: of the file, if known.
        licence: if known.
        format: which engines read it.
        quantisation: of its weights; "" if only the file itself could tell.
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


def source_of(reference: str, context: Context) -> Source:
    """Return the source for a reference, or for a path, which the user's own catalogue may name."""
    if context.entry is not None and context.entry.is_folder:
        return PackagesSource(context)
    return open_source(reference.partition(":")[0], context) if is_reference(reference) else LocalSource(context)


def list_models(settings: Settings) -> list[Installed]:
    """List every model on this device that edge can load by a name: its own, Ollama's, and those in installed packages.

    Models for voice are not among them: see `edge.catalog.list_voice`.

    Raises:
        StorageError: the models folder cannot be read.
    """
    found: dict[Path, Found] = {}
    names: dict[Path, list[str]] = {}

    def add(model: Found, *known: str) -> None:
        found.setdefault(model.path, model)
        names.setdefault(model.path, []).extend([*known, model.reference, *model.names])

    for entry in load_catalog(settings).values():
        for artifact in entry.artifacts if entry.voice is None else ():
            context = Context(settings, entry.name, artifact)
            model = source_of(artifact.reference, context).find(artifact.reference)
            if model:
                quantisation = artifact.quantisation or model.quantisation
                licence = model.licence or entry.licence or None
                add(replace(model, licence=licence, format=artifact.form, quantisation=quantisation), entry.name)
    for kind in SOURCES:
        for model in open_source(kind, Context(settings)).installed():
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
    """List the checkpoints and adapters that converters fetched, which no engine reads; `remove` takes their references.

    Returns:
        ("checkpoint" or "adapter", where it is) of each.

    Raises:
        StorageError: the models folder cannot be read.
    """
    from edge.sources.hub_checkpoint import HubAdapterSource, HubCheckpointSource

    context = Context(settings)
    sources = (HubCheckpointSource(context), HubAdapterSource(context))
    return [(source.what, found) for source in sources for found in source.installed()]
