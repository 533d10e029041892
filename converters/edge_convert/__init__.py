"""edge_convert: one checkpoint, three int4 formats, one card that says what each of them is worth.

The command `edge convert` and `edge eval` are built on this package. It needs the extra: pip install 'edge-assistant[convert]'
"""

from __future__ import annotations

__all__ = ["Checkpoint", "Manifest", "open_checkpoint"]

_HOMES = {
    "Checkpoint": "edge_convert.checkpoint",
    "Manifest": "edge_convert.manifest",
    "open_checkpoint": "edge_convert.checkpoint",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for: nothing heavy is loaded before it is needed."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
