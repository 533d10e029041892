"""Refuses what onnxruntime's kernels do not have, before anything is done."""

from __future__ import annotations

from edge.errors import ModelFileError
from edge_convert.model_config import ModelConfig

__all__ = ["check_config"]

_ROTATED = 16


def check_config(model: ModelConfig) -> None:
    """Refuse a model that cannot become ONNX.

    Raises:
        ModelFileError: a kernel does not take the width of its rotary embedding.
    """
    if model.n_rotated % _ROTATED:
        raise ModelFileError(
            f"This variant cannot become ONNX: {model.n_rotated} numbers of a head are rotated, and the kernels take "
            f"multiples of {_ROTATED}.",
            "Convert to another format: --to gguf or --to coreml",
        )
