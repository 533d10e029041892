"""From a name to verified files: catalogue names, paths, hf:, ollama: and pypi: references.

api.py        resolve, pull, verify, remove
entries.py    the shipped catalogue and the user's own as one
installed.py  the models on this device, whoever put them there
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
    from edge.catalog.entries import CatalogEntry, add_artifact, check_name, find_entry, is_reference, load_catalog
    from edge.catalog.installed import Installed, list_for_converters, list_models
    from edge.names import FORMATS
    from edge.sources.base import ArtifactEntry, DownloadProgress, Phase

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
        "edge.catalog.entries": ("CatalogEntry", "add_artifact", "check_name", "find_entry", "is_reference", "load_catalog"),
        "edge.catalog.installed": ("Installed", "list_for_converters", "list_models"),
        "edge.names": ("FORMATS",),
        "edge.sources.base": ("ArtifactEntry", "DownloadProgress", "Phase"),
    },
)
