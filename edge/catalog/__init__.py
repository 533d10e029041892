"""From a name to verified files: catalogue names, paths, hf:, ollama: and pypi: references.

api.py        resolve, pull, verify, remove
entries.py    the shipped catalogue and the user's own as one
installed.py  the models on this device, whoever put them there
voice.py      models for voice, which are folders of plain files
adapters.py   LoRA adapters that fit a model
request.py    one question about one model, and its candidates
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge.catalog.api import (
        Removed,
        add_model,
        check_reference,
        pull,
        pull_adapter,
        pull_checkpoint,
        remove,
        resolve,
        resolve_all,
        verify,
    )
    from edge.catalog.entries import (
        VOICE,
        CatalogEntry,
        add_artifact,
        check_name,
        find_bundle,
        find_entry,
        is_reference,
        load_catalog,
    )
    from edge.catalog.installed import Installed, list_for_converters, list_models
    from edge.catalog.voice import find_voice, is_voice, list_voice, pull_voice, voice_folder
    from edge.names import FORMATS
    from edge.sources.base import ArtifactEntry, DownloadProgress, Phase

__all__ = [
    "FORMATS",
    "VOICE",
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
    "find_bundle",
    "find_entry",
    "find_voice",
    "is_reference",
    "is_voice",
    "list_for_converters",
    "list_models",
    "list_voice",
    "load_catalog",
    "pull",
    "pull_adapter",
    "pull_checkpoint",
    "pull_voice",
    "remove",
    "resolve",
    "resolve_all",
    "verify",
    "voice_folder",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge.catalog.api": (
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
        ),
        "edge.catalog.entries": (
            "VOICE",
            "CatalogEntry",
            "add_artifact",
            "check_name",
            "find_bundle",
            "find_entry",
            "is_reference",
            "load_catalog",
        ),
        "edge.catalog.installed": ("Installed", "list_for_converters", "list_models"),
        "edge.catalog.voice": ("find_voice", "is_voice", "list_voice", "pull_voice", "voice_folder"),
        "edge.names": ("FORMATS",),
        "edge.sources.base": ("ArtifactEntry", "DownloadProgress", "Phase"),
    },
)
