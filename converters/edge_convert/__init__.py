"""edge_convert: one checkpoint, three int4 formats, one card that says what each of them is worth.

The command `edge convert` and `edge eval` are built on this package. It needs the extra: pip install 'edge-assistant[convert]'
"""

from __future__ import annotations

from edge.lazy import lazy_names

__all__ = ["Checkpoint", "Manifest", "open_checkpoint"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Checkpoint": "edge_convert.checkpoint",
        "Manifest": "edge_convert.manifest",
        "open_checkpoint": "edge_convert.checkpoint",
    },
)
