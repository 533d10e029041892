"""Names that users write and files hold: formats, accelerators, KV types, places of the KV cache. Engines: edge/registry.py."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = [
    "ACCELERATORS", "CACHE_HINTS", "FORMATS", "KV_TYPES", "TITLES", "Accelerator", "CacheHint", "Format", "KVType",
]  # fmt: skip

Format = Literal["gguf", "onnx", "coreml"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""Model formats, in the order in which they are looked for."""

Accelerator = Literal["cuda", "ane", "metal", "tensorrt", "openvino", "qnn", "cpu"]
ACCELERATORS: tuple[Accelerator, ...] = get_args(Accelerator)
"""Accelerators, the best first. The Neural Engine and a Mac's GPU come together; the Neural Engine uses less energy."""

KVType = Literal["f16", "q8_0", "q4_0"]
KV_TYPES: tuple[KVType, ...] = get_args(KVType)
"""Types of keys and values that a user may choose, the most exact first."""

CacheHint = Literal["off", "memory", "disk", "keep"]
CACHE_HINTS: tuple[CacheHint, ...] = get_args(CacheHint)
"""Where the KV cache of a request stays: nowhere, in memory, also on disk, pinned there. The most private first."""

TITLES: dict[str, str] = {
    "gguf": "GGUF",
    "onnx": "ONNX",
    "coreml": "Core ML",
    "cuda": "CUDA",
    "ane": "Neural Engine",
    "metal": "Metal",
    "tensorrt": "TensorRT",
    "openvino": "OpenVINO",
    "qnn": "QNN",
    "cpu": "CPU",
}
"""Format or accelerator -> its name in messages."""
