"""Core ML packages that hold nothing but what a package says about itself: enough to be read and moved, not to be computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge.formats.protobuf import bytes_field, number_field

GOLDEN = {
    "prompt": [5, 6, 7],
    "continuation": [8, 9],
    "package": [{"tokens": [8, 3], "log_probabilities": [-0.1, -3.0]}, {"tokens": [9], "log_probabilities": [-0.2]}],
}
INFO: dict[str, Any] = {
    "variant": "ane",
    "context": 64,
    "chunk": 16,
    "stateful": True,
    "n_layers": 2,
    "n_kv_heads": 3,
    "head_dim": 8,
    "vocab": 100,
    "window": None,
    "golden": GOLDEN,
}


def program_of(metadata: dict[str, str | bytes]) -> bytes:
    """A program that holds nothing but metadata, and fields around it that are to be passed over."""
    entries = b"".join(
        bytes_field(100, bytes_field(1, key.encode()) + bytes_field(2, value if isinstance(value, bytes) else value.encode()))
        for key, value in metadata.items()
    )
    described = bytes_field(100, bytes_field(1, b"a description") + entries)
    return number_field(1, 9) + bytes_field(2, bytes_field(1, b"input") + described) + bytes_field(502, b"\xff" * 50)


def write_package(folder: Path, program: bytes, weights: bytes | None = b"weights") -> Path:
    """A package folder around a program."""
    inner = folder / "Data" / "com.apple.CoreML"
    (inner / "weights").mkdir(parents=True)
    (inner / "model.mlmodel").write_bytes(program)
    if weights is not None:
        (inner / "weights" / "weight.bin").write_bytes(weights)
    entry = {"path": "com.apple.CoreML/model.mlmodel"}
    manifest = {"itemInfoEntries": {"1": entry}, "rootModelIdentifier": "1"}
    (folder / "Manifest.json").write_text(json.dumps(manifest))
    return folder
