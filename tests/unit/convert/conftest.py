"""Tiny checkpoints, made once for a run of the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Make = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Give the folder of a tiny checkpoint of a kind (see tests/checkpoints.py). Tests read it and never write into it."""
    pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")
    from tests.checkpoints import make_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")

    def make(kind: str) -> Path:
        made = folder / kind
        return made if (made / "config.json").is_file() else make_checkpoint(made, kind)

    return make


@pytest.fixture(scope="session")
def tiny_onnx(tiny_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Give the ONNX folder of a tiny checkpoint: of a kind, in "fp32" or in "int4" that is computed in float32."""
    pytest.importorskip("onnx", reason="needs the extra [convert]")
    from edge_convert.onnx.export import OnnxOptions, export_onnx

    folder = tmp_path_factory.mktemp("onnx")

    def make(kind: str, precision: str) -> Path:
        made = folder / f"{kind}-{precision}"
        if not made.is_dir():
            options = OnnxOptions(precision="fp32" if precision == "fp32" else "int4", accuracy_level=1)
            export_onnx(tiny_checkpoint(kind), made, options, lambda text, done: None)
        return made

    return make
