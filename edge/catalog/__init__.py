"""How a name becomes verified files: catalogue names, paths, hf:, ollama: and pypi: references.

api.py        resolve, pull, verify, remove
entries.py    the shipped catalogue and the user's own as one
installed.py  the models on this device, whoever put them there
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
        "ArtifactEntry": "edge.sources.base",
        "CatalogEntry": "edge.catalog.entries",
        "DownloadProgress": "edge.sources.base",
        "FORMATS": "edge.names",
        "Installed": "edge.catalog.installed",
        "Phase": "edge.sources.base",
        "Removed": "edge.catalog.api",
        "add_artifact": "edge.catalog.entries",
        "add_model": "edge.catalog.api",
        "check_name": "edge.catalog.entries",
        "check_reference": "edge.catalog.api",
        "find_entry": "edge.catalog.entries",
        "is_reference": "edge.catalog.entries",
        "list_for_converters": "edge.catalog.installed",
        "list_models": "edge.catalog.installed",
        "load_catalog": "edge.catalog.entries",
        "pull": "edge.catalog.api",
        "pull_adapter": "edge.catalog.api",
        "pull_checkpoint": "edge.catalog.api",
        "remove": "edge.catalog.api",
        "resolve": "edge.catalog.api",
        "resolve_all": "edge.catalog.api",
        "verify": "edge.catalog.api",
    },
)
