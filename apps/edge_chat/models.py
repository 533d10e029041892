"""The models that the picker offers: the catalogue's and those on this device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_chat.actions.model import describe_choice
from edge_chat.screens.dialogs import Choice

if TYPE_CHECKING:
    from edge.config import Settings

__all__ = ["list_choices"]


def list_choices(settings: Settings) -> list[Choice]:
    """Models by name: those on this device first. Blocks: it reads directories.

    Raises:
        EdgeError: the catalogue or the models' directory cannot be read.
    """
    from edge.catalog import list_models, load_catalog

    # A model in several formats is one choice: which of them is run is the plan's.
    installed = {model.name: model for model in reversed(list_models(settings))}
    here = {name for model in installed.values() for name in model.used_by}
    choices = [
        Choice(model.name, model.name, describe_choice(model.size_bytes, is_installed=True, licence=model.licence or ""))
        for model in sorted(installed.values(), key=lambda model: model.name)
    ]
    for name, entry in load_catalog(settings).items():
        if name not in here:
            size = entry.artifacts[0].size_bytes if entry.artifacts else None
            choices.append(Choice(name, name, describe_choice(size, is_installed=False, licence=entry.licence)))
    return choices
