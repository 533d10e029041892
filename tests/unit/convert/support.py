"""Conversions as tests run them, and the manifests that they leave."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge_convert.facts import Request
from edge_convert.inputs import Input
from edge_convert.manifest import Manifest, seal
from edge_convert.pipeline import OnProgress, run
from edge_convert.plan import make_plan


def convert(checkpoint: Path, out: Path, request: Request, on_progress: OnProgress | None = None) -> list[Path]:
    """Convert a checkpoint folder in this process. Returns the artifacts' folders."""
    source = Input(kind="checkpoint", path=checkpoint, source=checkpoint.name)
    return run(make_plan(source, out, request), on_progress)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; its fingerprint fits its content."""
    manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    assert seal(manifest) == manifest
    return manifest
