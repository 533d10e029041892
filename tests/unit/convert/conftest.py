"""Tiny checkpoints and what is converted of them, made once for a run of the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shared import made_once

Make = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Give the folder of a tiny checkpoint of a kind (see tests/checkpoints.py). Tests read it and never write into it."""
    pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")
    from tests.checkpoints import make_checkpoint

    return lambda kind: made_once(tmp_path_factory, f"checkpoints/{kind}", lambda path: make_checkpoint(path, kind))


@pytest.fixture(scope="session")
def tiny_onnx(tiny_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Give the ONNX folder of a tiny checkpoint: of a kind, in "fp32" or in "int4" that is computed in float32."""
    pytest.importorskip("onnx", reason="needs the extra [convert]")
    from edge_convert.onnx.export import OnnxOptions, export_onnx

    def make(kind: str, precision: str) -> Path:
        options = OnnxOptions(precision="fp32" if precision == "fp32" else "int4", accuracy_level=1)
        checkpoint = tiny_checkpoint(kind)
        return made_once(
            tmp_path_factory,
            f"onnx/{kind}-{precision}",
            lambda path: export_onnx(checkpoint, path, options, lambda text, done: None),
        )

    return make


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the steps of `edge convert` in this process: a child of its own would import torch for each.

    Steps in processes of their own are tested in test_step_process.py and tests/faults/test_convert_disk.py.
    """
    monkeypatch.setattr("edge_convert.step_process.isolate", lambda plan, source, request: plan)
