"""The canary's child process: a tiny model of zeros, through every kind of kernel that could kill it.

Run by canary.py only. It dies, or ends with 0.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import struct
import sys
import types
from pathlib import Path
from typing import Any

__all__ = ["load_binding", "main", "without_core_dump", "write_model"]

_WIDTH = 256  # K-quants need rows of 256
_N_VOCAB = 64
_N_LAYER = 2
_N_THREADS = 2
_BATCHES = (80, 17, 1)  # AMX and repacked kernels branch on how many rows they get
_ALIGNMENT = 32

# ggml type -> (bytes of a block, weights in it): all types with special kernels or a repacked layout in llama.cpp.
_TYPES = {
    2: (18, 32),  # Q4_0
    3: (20, 32),  # Q4_1
    8: (34, 32),  # Q8_0
    12: (144, 256),  # Q4_K
    13: (176, 256),  # Q5_K
    14: (210, 256),  # Q6_K
    23: (136, 256),  # IQ4_XS
    20: (18, 32),  # IQ4_NL
    10: (84, 256),  # Q2_K
    11: (110, 256),  # Q3_K
    1: (2, 1),  # F16
    6: (22, 32),  # Q5_0
    30: (2, 1),  # BF16
    0: (4, 1),  # F32
}
_F32, _Q8_0 = 0, 8


def write_model(path: Path) -> None:
    """Write a llama model of two layers whose 14 matrices have 14 different types. All weights are zero, in a sparse file."""
    metadata: list[tuple[str, str | int | float]] = [
        ("general.architecture", "llama"),
        ("llama.block_count", _N_LAYER),
        ("llama.context_length", 256),
        ("llama.embedding_length", _WIDTH),
        ("llama.feed_forward_length", _WIDTH),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 4),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5),
        ("llama.rope.dimension_count", _WIDTH // 4),
        ("llama.vocab_size", _N_VOCAB),
        ("tokenizer.ggml.model", "no_vocab"),
    ]
    square, vector = (_WIDTH, _WIDTH), (_WIDTH,)
    tensors: list[tuple[str, tuple[int, ...], int]] = [
        ("token_embd.weight", (_WIDTH, _N_VOCAB), _F32),
        ("output_norm.weight", vector, _F32),
        ("output.weight", (_WIDTH, _N_VOCAB), _Q8_0),
    ]
    types_left = list(_TYPES)
    for layer in range(_N_LAYER):
        tensors += [(f"blk.{layer}.{name}_norm.weight", vector, _F32) for name in ("attn", "ffn")]
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            tensors.append((f"blk.{layer}.{name}.weight", square, types_left.pop(0)))
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata)
    offset = 0
    for name, shape, kind in tensors:
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        block_bytes, block_weights = _TYPES[kind]
        n_weights = shape[0] * (shape[1] if len(shape) > 1 else 1)
        offset += _aligned(n_weights // block_weights * block_bytes)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(_aligned(len(head)) + offset)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _value(value: str | int | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def load_binding() -> Any:
    """Import llama_cpp.llama_cpp without the package around it, which takes ten times as long."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("llama_cpp is not installed")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def without_core_dump() -> None:
    """Write no core file when this process dies, which is part of its job."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(path: str, use_extra_buffers: str) -> None:
    """Compute a few batches.

    Args:
        path: the model that `write_model` wrote.
        use_extra_buffers: "True" tries them.

    Raises:
        RuntimeError: llama.cpp refused the model or a batch.
    """
    without_core_dump()
    library = load_binding()
    quiet = library.llama_log_callback(lambda level, text, user_data: None)
    library.llama_log_set(quiet, None)
    library.llama_backend_init()
    params = library.llama_model_default_params()
    no_devices = (ctypes.c_void_p * 1)(None)
    params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    params.n_gpu_layers = 0
    params.use_extra_bufts = use_extra_buffers == "True"
    model = library.llama_model_load_from_file(path.encode(sys.getfilesystemencoding()), params)
    if not model:
        raise RuntimeError("llama.cpp refused the canary's model")
    settings = library.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 256, 128, 128
    settings.n_threads = settings.n_threads_batch = _N_THREADS
    context = library.llama_init_from_model(model, settings)
    if not context:
        raise RuntimeError("llama.cpp could not make a context for the canary's model")
    for n_tokens in _BATCHES:
        tokens = (ctypes.c_int32 * n_tokens)(*range(1, n_tokens % _N_VOCAB))
        code = library.llama_decode(context, library.llama_batch_get_one(tokens, n_tokens))
        library.llama_synchronize(context)
        if code != 0:
            raise RuntimeError(f"llama.cpp failed on a batch of {n_tokens} (code {code})")
