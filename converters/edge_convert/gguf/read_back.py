"""Reads a GGUF file back into a checkpoint folder: the inverse of tensors.py.

Weights are dequantised by the `gguf` package, one tensor at a time. The loss of the quantisation stays; the folder records it
(`source_quantised`).

transformers can load a GGUF too, but loses the Llama 3 scaling of positions and the rule that splits digits, and holds the
whole model in float32: it is the oracle in the tests.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, dequantize

from edge.errors import ModelFileError
from edge.formats.gguf import GGUFHeader, read_header
from edge.formats.gguf import TensorInfo as GGUFTensor
from edge_convert.architectures import Architecture, check_reads_back, find_gguf_architecture
from edge_convert.checkpoint import SOURCE_NOTE, open_checkpoint
from edge_convert.gguf.blocks import map_tensors
from edge_convert.gguf.engine import run_task
from edge_convert.gguf.from_header import checkpoint_tensors, header_config
from edge_convert.gguf.quantise import FLOATS, check_tokenizer, type_of_weights
from edge_convert.gguf.tokenizer_json import build_tokenizer
from edge_convert.gguf.vocabulary import CONTROL, LOOKS_SPECIAL, NORMAL
from edge_convert.model_config import ModelConfig, read_model_config
from edge_convert.tokenizer_files import library_reads

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["checkpoint_from_gguf", "tokenizer_from_gguf"]

_OTHERWISE = "Convert the checkpoint that it was made from."

_SHARD_BYTES = 4 << 30
_PART_ELEMENTS = 1 << 20
"""Weights that are dequantised at a time: a whole embedding would take a dozen bytes for each of its weights."""


class _Entry(NamedTuple):
    """A tensor to write: its name in a checkpoint, the header's entry, its bytes [n_rows, ...], "F32", "F16" or "BF16"."""

    name: str
    info: GGUFTensor
    data: NDArray[np.uint8]
    dtype: str

    @property
    def shape(self) -> list[int]:
        return list(reversed(self.info.shape))

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * (4 if self.dtype == "F32" else 2)


def checkpoint_from_gguf(
    path: Path,
    out: Path,
    *,
    source: str | None = None,
    licence: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Path:
    """Write a GGUF file as a checkpoint folder, and compare its tokenizer with llama.cpp's on varied strings.

    Args:
        path: the file.
        out: the folder; made if needed.
        source: the reference it came from; None is its file name.
        licence: overrides the one in the file.
        on_progress: called with the share that is done.

    Returns:
        `out`.

    Raises:
        ModelFileError: the file is damaged, edge does not convert its architecture or tokenizer, or that gives other tokens.
        BackendError: llama.cpp cannot read the file's tokenizer.
    """
    header, architecture, model, names = _write_parts(path, out)
    stored = map_tensors(path, header)
    entries = [
        _Entry(name, info, stored[info.name], info.type if info.type in ("F16", "BF16") else "F32")  # 16 bits stay as they are
        for name, info in names.items()
    ]
    _write_weights(entries, architecture, model, out, on_progress)
    in_file, kind = header.metadata.get("general.license"), type_of_weights(header)
    note = {
        "source": source or path.name,
        "licence": licence or (in_file if isinstance(in_file, str) else None),
        "source_quantised": None if kind in FLOATS else kind,
    }
    _write_json(out / SOURCE_NOTE, note)
    open_checkpoint(out)  # complete, as the next step will find it
    check_tokenizer(path, out, model.n_vocab, name=path.name, hint=_OTHERWISE)
    return out


def tokenizer_from_gguf(path: Path, out: Path) -> Path:
    """Write a GGUF file as a checkpoint folder without weights, and compare its tokenizer; see `checkpoint_from_gguf`."""
    _, _, model, _ = _write_parts(path, out)
    check_tokenizer(path, out, model.n_vocab, name=path.name, is_own=True, hint=_OTHERWISE)
    return out


def _write_parts(path: Path, out: Path) -> tuple[GGUFHeader, Architecture, ModelConfig, Mapping[str, GGUFTensor]]:
    """Write everything but the weights. Returns what the file says, and its tensors by their names in a checkpoint."""
    header = read_header(path)  # refuses damage that would trip the library below
    architecture = find_gguf_architecture(header.architecture, path.name)
    check_reads_back(architecture, path.name)
    logging.getLogger("gguf").setLevel(logging.ERROR)
    config = header_config(path, header, architecture)
    model = read_model_config(config, architecture, path.name)
    names = checkpoint_tensors(header, architecture, model)
    _write_tokenizer(path, out, model)
    _write_json(out / "config.json", config)
    if header.chat_template:
        (out / "chat_template.jinja").write_text(header.chat_template, encoding="utf-8")
    return header, architecture, model, names


def _write_tokenizer(path: Path, out: Path, model: ModelConfig) -> None:
    """Write the tokenizer's files. What a large vocabulary takes in Python objects is released at the end."""
    with library_reads(f"The tokenizer of {path.name}"):
        fields = _read_fields(path)
        tokenizer, tokenizer_config = build_tokenizer(fields, path.name)
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "tokenizer.json", tokenizer)
    _write_json(out / "tokenizer_config.json", tokenizer_config)
    _write_json(out / "generation_config.json", {"eos_token_id": _end_ids(path, fields, model)})


def _read_fields(path: Path) -> dict[str, Any]:
    """Return the metadata that make the tokenizer. The reader takes ten times their size, and is released."""
    reader = GGUFReader(path)
    wanted = [name for name in reader.fields if name.startswith("tokenizer.ggml.") or name == "general.name"]
    return {name: reader.fields[name].contents() for name in wanted}


def _end_ids(path: Path, fields: Mapping[str, Any], model: ModelConfig) -> list[int]:
    """Return the ids that end a reply: the file's own first, then what llama.cpp takes for one by its text."""
    tokens = fields["tokenizer.ggml.tokens"]
    kinds = fields.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    known = run_task("find_ends", {"model": str(path)})
    # llama.cpp also takes a comma where a byte-level file names no end, and </s> where that is an HTML tag.
    marked = [token for token in known if kinds[token] == CONTROL or LOOKS_SPECIAL.fullmatch(tokens[token])]
    return list(dict.fromkeys([*model.eos, *marked]))


def _write_weights(
    entries: list[_Entry],
    architecture: Architecture,
    model: ModelConfig,
    out: Path,
    on_progress: Callable[[float], None] | None,
) -> None:
    """Write the weights as safetensors, one tensor in memory at a time, in files of at most 4 GB."""
    shards: list[list[_Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.n_bytes > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.n_bytes
    before = 0
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map.update({entry.name: file for entry in shard})
        for done in _write_shard(out / file, shard, architecture, model):
            if on_progress:
                on_progress((before + done) / len(entries))
        before += len(shard)
    if len(shards) > 1:
        _write_json(out / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_shard(path: Path, entries: list[_Entry], architecture: Architecture, model: ModelConfig) -> Iterator[int]:
    """Write one safetensors file: a JSON header, then the tensors end to end. The library itself wants all of them at once.

    Yields:
        The number of tensors written so far.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.n_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, entry in enumerate(entries, 1):
            for part in _weights(entry, architecture, model):
                file.write(part.data)
            yield done


def _weights(entry: _Entry, architecture: Architecture, model: ModelConfig) -> Iterator[NDArray[np.generic]]:
    """Yield a tensor in transformers' layout, some rows at a time where their order stays."""
    shape = entry.shape
    found = re.search(r"self_attn\.([qk])_proj\.", entry.name) if architecture.is_permuted else None
    n_rows = len(entry.data)
    step = n_rows if found else max(1, _PART_ELEMENTS * n_rows // math.prod(shape))
    for start in range(0, n_rows, step):
        data = entry.data[start : start + step]
        if entry.dtype == "F32":
            values = dequantize(data, GGMLQuantizationType[entry.info.type])
        else:
            values = data.view(np.float16 if entry.dtype == "F16" else np.uint16)
        if entry.dtype != "BF16" and not np.isfinite(values).all():
            raise ModelFileError(f"The tensor {entry.info.name} holds values that are not numbers.", "Download it again.")
        if architecture.is_gemma and entry.name.endswith("norm.weight"):
            values = values - np.float32(1.0)
        if found:
            heads = model.n_heads if found[1] == "q" else model.n_kv_heads
            values = values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2)
        yield np.ascontiguousarray(values)


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=2)  # piece by piece: a large vocabulary has 35 MB
        file.write("\n")
