"""The models that the picker lists: the catalogue's and those on this device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.units import size_text
from edge_chat.commands import Completion

if TYPE_CHECKING:
    from edge.config import Settings

__all__ = ["list_choices"]


def list_choices(settings: Settings) -> list[Completion]:
    """Return the models by name, those on this device first. Blocks: it reads directories.

    Raises:
        EdgeError: the catalogue or the models' directory cannot be read.
    """
    from edge.catalog import list_models, load_catalog

    # A model in several formats is one choice; the plan decides which one runs.
    installed = {model.name: model for model in reversed(list_models(settings))}
    here = {name for model in installed.values() for name in model.used_by}
    choices = [
        _choice(name, model.size_bytes, "on this device", model.licence or "") for name, model in sorted(installed.items())
    ]
    for name, entry in load_catalog(settings).items():
        if name not in here:
            size = entry.artifacts[0].size_bytes if entry.artifacts else None
            choices.append(_choice(name, size, "will be downloaded", entry.licence))
    return choices


def _choice(name: str, size_bytes: int | None, where: str, licence: str) -> Completion:
    parts = (size_text(size_bytes) if size_bytes else "", where, licence)
    return Completion(name, name, ", ".join(part for part in parts if part))
