"""Says beforehand which models the openvino backend cannot run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.formats.artifact import Artifact

__all__ = ["why_not"]


def why_not(artifact: Artifact) -> str:
    """Return why the backend cannot run a model; "" if it can, or if that shows only when it is loaded."""
    from edge.backends.openvino import shape

    return shape.why_not(artifact.header) if artifact.header is not None else ""
