"""A LoRA adapter that peft saved as a GGUF file, which llama.cpp applies while it runs.

Names and layout follow those of the model's own conversion, so that the product of the two matrices is laid out like the
matrix that it is added to: where rows of that are reordered, so are those of B. Scales that peft has per module, or by the
root of the rank (rsLoRA), are multiplied into B, because llama.cpp has one alpha for all.

Source: `convert_lora_to_gguf.py` of llama.cpp.
"""

from __future__ import annotations

import logging
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from edge import files
from edge.errors import ModelFileError, StorageError
from edge.files import make_private_dir
from edge.formats.gguf_header import GGUFHeader
from edge.hashes import files_sha256
from edge.units import reason
from edge_convert.architectures import find_gguf_architecture
from edge_convert.gguf.config import name_map
from edge_convert.gguf.tensors import PERMUTED, pair_up
from edge_convert.smaller.lora import Adapter, open_adapter

__all__ = ["cached_gguf", "write_adapter"]

_FORMAT = 1  # raise it when the same folder gives another file
_PARTS = {"A.weight": "a", "B.weight": "b", "embedding_A": "a", "embedding_B": "b"}
_PREFIX = re.compile(r"^(base_model\.)?model\.(?=model\.|lm_head)")
_MERGE = "Merge it into the model instead: edge convert MODEL --lora FOLDER"


@dataclass(frozen=True, slots=True)
class _Pair:
    """The matrices of one module, in float32: a is [rank, columns], b is [rows, rank]."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]


def cached_gguf(folder: Path, model: GGUFHeader, cache_dir: Path) -> Path:
    """Return the GGUF file of an adapter, which is written unless that was done before.

    Args:
        folder: that peft saved.
        model: header of the model that it was trained on.
        cache_dir: the file is in `adapters` below it.

    Raises:
        ModelNotFoundError, ModelFileError: as `write_adapter`.
        StorageError: it cannot be written.
    """
    adapter = open_adapter(folder)
    digest = files_sha256(adapter.files, cache_dir=cache_dir)
    out = cache_dir / "adapters" / f"{digest[:32]}-{_shape_of(model)}-{_FORMAT}.gguf"
    if out.is_file():
        return out
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        make_private_dir(out.parent)
        write_adapter(adapter, model, part)
        files.sync_file(part)
        part.replace(out)
    except OSError as error:
        raise StorageError(f"{adapter.name} cannot be written as GGUF: {reason(error)}.", f"Check {out.parent}.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return out


def write_adapter(adapter: Adapter, model: GGUFHeader, out: Path) -> None:
    """Write an adapter as a GGUF file in float32.

    Args:
        adapter: from `open_adapter`.
        model: header of the model that it was trained on.
        out: the file; replaced if it exists.

    Raises:
        ModelFileError: it does more than LoRA, is for another architecture, or is damaged.
    """
    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)
    architecture = find_gguf_architecture(model.architecture, "The model")
    config = _config(adapter)
    names = name_map(model.architecture, model.n_layer)
    writer = GGUFWriter(out, model.architecture)
    try:
        writer.add_type("adapter")
        writer.add_name(adapter.name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 0.0)  # all of the scale is in B
        for module, pair in sorted(_pairs(adapter).items()):
            name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
            if name is None:
                raise ModelFileError(
                    f"{adapter.name} changes {module}, which has no place in a GGUF file.", "Name the model it was trained on."
                )
            a, b = pair.a, pair.b * np.float32(_scale(config, module, pair.a.shape[0]))
            if (found := PERMUTED.search(f"{module}.weight")) and architecture.is_permuted:
                n_heads = model.n_head if found[1] == "q" else model.n_head_kv
                b = _paired(b, n_heads, module, adapter.name)
            if name == "token_embd.weight":  # its rows are looked up
                a = np.ascontiguousarray(a.T)
            writer.add_tensor(f"{name}.lora_a", a)
            writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _config(adapter: Adapter) -> dict[str, Any]:
    """Return the adapter's configuration, after a check that it is one of LoRA and nothing else."""
    path = adapter.folder / "adapter_config.json"
    config = files.read_json(path, dict[str, Any])
    more = {
        "DoRA": config.get("use_dora"),
        "a bias": config.get("bias") not in (None, "none"),
        "whole modules (modules_to_save)": config.get("modules_to_save"),
        "single tokens (trainable_token_indices)": config.get("trainable_token_indices"),
        "parameters of experts (target_parameters)": config.get("target_parameters"),
        "matrices stored transposed (fan_in_fan_out)": config.get("fan_in_fan_out"),
        "an invocation text (aLoRA)": config.get("alora_invocation_tokens"),
        "layers that it repeats (layer_replication)": config.get("layer_replication"),
    }
    for what, value in more.items():
        if value:
            raise ModelFileError(f"{adapter.name} has {what}, which llama.cpp cannot apply at run time.", _MERGE)
    return config


def _pairs(adapter: Adapter) -> dict[str, _Pair]:
    """Return the matrices by module, as the checkpoint names it."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, dict[str, NDArray[np.float32]]] = {}
    try:
        with safe_open(str(adapter.folder / "adapter_model.safetensors"), framework="np") as file:
            for name in adapter.shapes:
                module, _, part = _PREFIX.sub("", name).partition(".lora_")
                if part not in _PARTS:
                    if name.endswith(".base_layer.weight"):  # peft saves the embedding itself beside its change
                        continue
                    raise ModelFileError(f"{adapter.name} changes {name[:100]} as a whole.", _MERGE)
                found.setdefault(module, {})[_PARTS[part]] = file.get_tensor(name).astype(np.float32)
    except (OSError, SafetensorError, TypeError) as error:
        raise ModelFileError(f"{adapter.name} cannot be read: {error}.", "Save or download the adapter again.") from error
    pairs = {}
    for module, parts in found.items():
        shapes = [part.shape for part in parts.values()]
        if (
            set(parts) != {"a", "b"}
            or any(len(shape) != 2 or 0 in shape for shape in shapes)
            or parts["a"].shape[0] != parts["b"].shape[1]
        ):
            raise ModelFileError(f"{adapter.name} has no fitting pair of matrices for {module}.", "Save the adapter again.")
        if not all(np.isfinite(part).all() for part in parts.values()):
            raise ModelFileError(f"{adapter.name} has values for {module} that are not numbers.", "Save the adapter again.")
        pairs[module] = _Pair(parts["a"], parts["b"])
    return pairs


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """Return the factor of the product of a module's matrices.

    Source: `LoraLayer.update_layer` of peft, and `get_pattern_key` for alphas by module.
    """
    alpha: Any = config.get("lora_alpha", rank)
    patterns = config.get("alpha_pattern") or {}
    try:
        alpha = next((own for pattern, own in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), alpha)
    except (AttributeError, re.error) as error:
        raise ModelFileError(f"The adapter's alpha_pattern cannot be used: {error}.", "Save the adapter again.") from error
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelFileError(f"The adapter's lora_alpha is {str(alpha)[:40]!r}, not a number.", "Save the adapter again.")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _paired(b: NDArray[np.float32], n_heads: int | tuple[int, ...], module: str, where: str) -> NDArray[np.float32]:
    """Reorder the rows of B as those of the model's matrix were."""
    if not isinstance(n_heads, int) or n_heads < 1 or b.shape[0] % (2 * n_heads):
        raise ModelFileError(
            f"{where} was trained on another model: {module} has {b.shape[0]:,} rows there.",
            "Name the model it was trained on.",
        )
    paired: NDArray[np.float32] = pair_up(b, n_heads)  # type: ignore[assignment]
    return paired


def _shape_of(model: GGUFHeader) -> str:
    """Return what a converted adapter depends on of a model."""
    heads = (model.n_head, model.n_head_kv)
    return f"{model.architecture}-{model.n_layer}-" + "-".join(str(one) if isinstance(one, int) else "x" for one in heads)
