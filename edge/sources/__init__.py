"""Where models come from: one file a kind of reference, found through the registry below."""

from __future__ import annotations

import importlib

from edge.sources.base import Context, Source

__all__ = ["SOURCES", "open_source"]

SOURCES = {
    "hf": "edge.sources.hub:HubSource",
    "ollama": "edge.sources.ollama:OllamaSource",
    "pypi": "edge.sources.pypi:PypiSource",
}
"""What a reference starts with -> where its class is; imported when it is needed."""


def open_source(kind: str, context: Context) -> Source:
    """Make the source for one kind of reference; `kind` is a key of SOURCES."""
    module_name, class_name = SOURCES[kind].split(":")
    source: Source = getattr(importlib.import_module(module_name), class_name)(context)
    return source
