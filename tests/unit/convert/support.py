"""Conversions as tests run them, and the manifests that they leave."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge_convert.facts import Request
from edge_convert.inputs import Input
from edge_convert.manifest import FileEntry, Manifest, seal, tool_versions
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


def make_manifest(**changes: object) -> Manifest:
    """Return a manifest of made-up values."""
    entry = FileEntry(name="b.gguf", size_bytes=3, sha256="0" * 64)
    fields: dict[str, object] = {
        "format": "gguf",
        "name": "tiny",
        "architecture": "LlamaForCausalLM",
        "quantisation": "Q4_0",
        "source": "hf:owner/repo",
        "source_files": (entry, FileEntry(name="a", size_bytes=1, sha256="1" * 64)),
        "recipe": {"z": "1", "a": "2"},
        "tools": tool_versions("msgspec"),
        "files": (entry,),
    }
    return seal(Manifest(**(fields | changes)))  # type: ignore[arg-type]
