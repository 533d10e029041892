"""Makes the bytes of a package reproducible: coremltools adds a date and random identifiers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from edge.formats.coreml import find_files

from .program import read_spec

__all__ = ["normalise_package"]

_DATE = "com.github.apple.coremltools.conversion_date"
# coremltools names the two items of a package by random UUIDs
_MODEL_ID = "00000000-0000-4000-8000-000000000001"
_WEIGHTS_ID = "00000000-0000-4000-8000-000000000002"


def normalise_package(folder: Path, metadata: Mapping[str, str]) -> None:
    """Rewrite a package so that its bytes depend on its content only.

    The date goes, map fields of the protobuf are written in order, and the items of the manifest get fixed identifiers.

    Args:
        folder: an .mlpackage that coremltools saved; changed in place.
        metadata: put into the model's user-defined metadata, where `MLModel.user_defined_metadata` shows it.

    Raises:
        ModelFileError: the package is damaged.
    """
    path, _ = find_files(folder)
    spec = read_spec(path)
    defined = spec.description.metadata.userDefined
    if _DATE in defined:
        del defined[_DATE]
    for key, value in metadata.items():
        defined[key] = value
    path.write_bytes(spec.SerializeToString(deterministic=True))
    path.chmod(0o644)
    entries = {
        _MODEL_ID: ("CoreML Model Specification", "model.mlmodel"),
        _WEIGHTS_ID: ("CoreML Model Weights", "weights"),
    }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifier: {
                "author": "com.apple.CoreML",
                "description": description,
                "name": name,
                "path": f"com.apple.CoreML/{name}",
            }
            for identifier, (description, name) in entries.items()
        },
        "rootModelIdentifier": _MODEL_ID,
    }
    (folder / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")
