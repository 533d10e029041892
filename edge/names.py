"""Names that users write and files hold: formats, accelerators, KV types, places and namespaces of the KV cache.

Engines are in edge/registry.py.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

__all__ = [
    "ACCELERATORS", "ANSWERS", "CACHE_HINTS", "FORMATS", "IMPORTED", "KV_TYPES", "NAMESPACE_PATTERN", "PRIORITIES", "TITLES",
    "Accelerator", "CacheHint", "Format", "KVType", "Priority", "answer_namespace", "import_namespace", "is_answer_namespace",
    "is_client_namespace",
]  # fmt: skip

Format = Literal["gguf", "onnx", "coreml"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""Model formats, in the order in which they are looked for."""

Accelerator = Literal["cuda", "ane", "metal", "tensorrt", "openvino", "qnn", "intel-gpu", "intel-npu", "cpu"]
ACCELERATORS: tuple[Accelerator, ...] = get_args(Accelerator)
"""Accelerators, the best first. The Neural Engine and a Mac's GPU come together; the Neural Engine uses less energy."""

KVType = Literal["f32", "f16", "bf16", "q8_0", "u8", "q4_0"]
KV_TYPES: tuple[KVType, ...] = get_args(KVType)
"""Types of keys and values that a user may choose, the most exact first; `edge.registry` says which an engine has."""

CacheHint = Literal["off", "memory", "disk", "keep"]
CACHE_HINTS: tuple[CacheHint, ...] = get_args(CacheHint)
"""Where the KV cache of a request stays: nowhere, in memory, also on disk, pinned there. The most private first."""

Priority = Literal["interactive", "background"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""Background work is prefilled only while no interactive reply runs, and gives up its sequence to those who wait for one."""

ANSWERS, IMPORTED = "answers", "import:"
"""Namespaces of the KV cache begin so that hold cached answers, or blocks of an imported conversation."""

NAMESPACE_PATTERN = r"^(?:(?!answers$)[A-Za-z0-9_.@+-]{1,64})?$"
"""Namespaces of the KV cache that a user or program may choose; "" is the usual one."""


def answer_namespace(namespace: str) -> str:
    """Return the namespace of cached answers to requests of a namespace."""
    return f"{ANSWERS}:{namespace}" if namespace else ANSWERS


def import_namespace(conversation_id: str) -> str:
    """Return the namespace of an imported conversation: no other reads the keys and values that came with it."""
    return f"{IMPORTED}{conversation_id}"


def is_answer_namespace(namespace: str) -> bool:
    """Return whether a namespace holds cached answers."""
    return namespace.partition(":")[0] == ANSWERS


def is_client_namespace(namespace: str) -> bool:
    """Return whether a program may choose this namespace."""
    return bool(namespace) and re.fullmatch(NAMESPACE_PATTERN, namespace) is not None


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
    "intel-gpu": "Intel GPU",
    "intel-npu": "Intel NPU",
    "cpu": "CPU",
}
"""Format or accelerator -> its name in messages."""
