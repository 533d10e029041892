"""LoRA adapters made up for tests: files with random matrices, and values for fake models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import gguf
import numpy as np

from edge.adapters import Adapter
from edge.formats.gguf import read_header

__all__ = ["fake_adapters", "write_adapter"]


def fake_adapters(*names: str, scale: float = 1.0) -> tuple[Adapter, ...]:
    """Return adapters of a fake model, which needs no files."""
    return tuple(
        Adapter(name, Path(f"{name}.gguf"), scale, f"{number:064x}", 1000, 8, 2) for number, name in enumerate(names, 1)
    )


def write_adapter(
    path: Path,
    model: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    size: float = 0.3,
    targets: Iterable[str] = ("attn_q", "attn_v"),
    architecture: str = "",
    change: Callable[[gguf.GGUFWriter, dict[str, np.ndarray]], object] = lambda writer, tensors: None,
) -> Path:
    """Write an adapter with random matrices for a model.

    Args:
        path: the file.
        model: a GGUF file.
        seed, size: of the numbers: their standard deviation.
        rank: of the matrices.
        targets: parts of the names of the model's matrices that it changes.
        architecture: instead of the model's.
        change: changes metadata and tensors before they are written.
    """
    header, chance = read_header(model), np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for tensor in header.tensors:
        if tensor.name.endswith(".weight") and any(target in tensor.name for target in targets):
            columns, rows = tensor.shape
            tensors[f"{tensor.name}.lora_a"] = chance.normal(0, size, (rank, columns)).astype(np.float32)
            tensors[f"{tensor.name}.lora_b"] = chance.normal(0, size, (rows, rank)).astype(np.float32)
    writer = gguf.GGUFWriter(path, architecture or header.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * rank)
    change(writer, tensors)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
