"""An ONNX folder in the layout of onnxruntime-genai, read without its package and without trusting it.

genai_config.json names the model file and its inputs and outputs; the model file has the sizes of keys, values and weights.
Session options, provider options and libraries that the configuration may name are ignored: placement is up to the plan.

Source: the config reference of onnxruntime-genai (0.18) and what its model builder writes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec

from edge.errors import ModelFileError
from edge.files import read_json
from edge.formats.onnx_graph import Graph, Port, check_external_files, read_graph

__all__ = ["CONFIG", "OnnxFolder", "find_decoder", "read_onnx_folder"]

CONFIG = "genai_config.json"
_Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_LAYER = re.compile(r"%d")
_KV_TYPES = {"f32": 4, "f16": 2, "bf16": 2}
_HINT = "Convert it again with: edge convert MODEL --to onnx"


class _Inputs(msgspec.Struct, frozen=True):
    input_ids: str = "input_ids"
    attention_mask: str = "attention_mask"
    position_ids: str = "position_ids"
    past_key_names: str = "past_key_values.%d.key"
    past_value_names: str = "past_key_values.%d.value"


class _Outputs(msgspec.Struct, frozen=True):
    logits: str = "logits"
    present_key_names: str = "present.%d.key"
    present_value_names: str = "present.%d.value"


class _Decoder(msgspec.Struct, frozen=True):
    filename: str
    num_hidden_layers: _Count
    num_key_value_heads: _Count
    num_attention_heads: _Count
    head_size: _Count
    hidden_size: _Count = 1
    inputs: _Inputs = _Inputs()
    outputs: _Outputs = _Outputs()
    pipeline: Any = None
    sliding_window: Any = None


class _Model(msgspec.Struct, frozen=True):
    decoder: _Decoder
    vocab_size: _Count
    context_length: _Count
    type: str = ""
    vision: Any = None
    speech: Any = None
    encoder: Any = None


class _Search(msgspec.Struct, frozen=True):
    past_present_share_buffer: bool = False


class _Config(msgspec.Struct, frozen=True):
    model: _Model
    search: _Search = _Search()


@dataclass(frozen=True, slots=True)
class OnnxFolder:
    """A decoder that edge can run.

    Attributes:
        model: the model file.
        files: it and the files with its weights.
        architecture: onnxruntime-genai's name of it: "llama", "qwen2", ...
        n_layer, n_head, n_head_kv, head_dim, n_embd, n_vocab, n_ctx_train: sizes; head_dim of keys and of values alike.
        kv_type: type of keys and values: "f32", "f16" or "bf16".
        logits_type: likewise.
        shares_buffer: one buffer may be past and present at once, so that nothing of it is copied.
        has_last_logits: the model computes the logits of the last position only.
        has_branches: it branches while it runs, for all rows of a batch alike: Phi's rotation of long texts.
        has_position_ids, has_attention_mask: inputs besides the tokens and the past.
        input_ids, attention_mask, position_ids, logits: names.
        past_key, past_value, present_key, present_value: names, layer by layer.
        weights_bytes: size of all weights.
        quantisation: "int4", "f16", ...
    """

    model: Path
    files: tuple[Path, ...]
    architecture: str
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    kv_type: str
    logits_type: str
    shares_buffer: bool
    has_last_logits: bool
    has_branches: bool
    has_position_ids: bool
    has_attention_mask: bool
    input_ids: str
    attention_mask: str
    position_ids: str
    logits: str
    past_key: tuple[str, ...]
    past_value: tuple[str, ...]
    present_key: tuple[str, ...]
    present_value: tuple[str, ...]
    weights_bytes: int
    quantisation: str

    @property
    def kv_item_bytes(self) -> int:
        """Bytes of one number of a key or value."""
        return _KV_TYPES[self.kv_type]

    @property
    def cell_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.n_layer * self.n_head_kv * self.head_dim * self.kv_item_bytes


def read_onnx_folder(folder: Path) -> OnnxFolder:
    """Read a folder and check that everything an engine needs is there. Weights are not read.

    Args:
        folder: with genai_config.json.

    Raises:
        ModelFileError: a file is missing, damaged, truncated or outside of the folder, or edge cannot run this kind of model.
    """
    config = _read_config(folder)
    where, decoder = folder / CONFIG, config.model.decoder
    path = folder / _inside(where, decoder.filename)
    if not path.is_file():
        raise ModelFileError(f"{path} is missing.", "Download or convert the model again.")
    graph = read_graph(path)
    inputs, outputs = ({port.name: port for port in ports} for ports in (graph.inputs, graph.outputs))
    names = _layer_names(where, decoder)
    past, present = [*names[0], *names[1]], [*names[2], *names[3]]
    known = {decoder.inputs.input_ids, decoder.inputs.attention_mask, decoder.inputs.position_ids, *past}
    unknown = [name for name in inputs if name not in known]
    if unknown:
        raise ModelFileError(f"{path} wants the input {unknown[0]!r}, which edge does not know.", _HINT)
    missing = [name for name in (decoder.inputs.input_ids, *past) if name not in inputs]
    missing += [name for name in (decoder.outputs.logits, *present) if name not in outputs]
    if missing:
        raise ModelFileError(f"{path} has no {missing[0]!r}, which {CONFIG} promises.", _HINT)
    kv_type = _check_kv(path, [inputs[name] for name in past] + [outputs[name] for name in present], decoder)
    logits = outputs[decoder.outputs.logits]
    if len(logits.dims) != 3 or logits.dims[2] not in (None, config.model.vocab_size) or logits.type not in _KV_TYPES:
        raise ModelFileError(f"{path} gives logits of the shape {logits.dims}, not of {config.model.vocab_size} tokens.", _HINT)
    return OnnxFolder(
        model=path,
        files=(path, *(path.parent / name for name in sorted({weight.file for weight in graph.weights} - {""}))),
        architecture=config.model.type,
        n_layer=decoder.num_hidden_layers,
        n_head=decoder.num_attention_heads,
        n_head_kv=decoder.num_key_value_heads,
        head_dim=decoder.head_size,
        n_embd=decoder.hidden_size,
        n_vocab=config.model.vocab_size,
        n_ctx_train=config.model.context_length,
        kv_type=kv_type,
        logits_type=logits.type,
        # Only this operator writes the new keys and values into the buffer of the old ones.
        shares_buffer=config.search.past_present_share_buffer and graph.ops["GroupQueryAttention"] == decoder.num_hidden_layers,
        has_last_logits=logits.dims[1] == 1,
        has_branches=any(graph.ops[op] for op in ("If", "Loop", "Scan")),
        has_position_ids=decoder.inputs.position_ids in inputs,
        has_attention_mask=decoder.inputs.attention_mask in inputs,
        input_ids=decoder.inputs.input_ids,
        attention_mask=decoder.inputs.attention_mask,
        position_ids=decoder.inputs.position_ids,
        logits=decoder.outputs.logits,
        past_key=names[0],
        past_value=names[1],
        present_key=names[2],
        present_value=names[3],
        weights_bytes=check_external_files(path, graph),
        quantisation=_quantisation(graph),
    )


def find_decoder(folder: Path) -> str:
    """Return the model file that genai_config.json names, relative to the folder. Nothing else has to be there.

    Raises:
        ModelFileError: the configuration is missing or damaged, or names a kind of model that edge cannot run.
    """
    return str(_inside(folder / CONFIG, _read_config(folder).model.decoder.filename))


def _read_config(folder: Path) -> _Config:
    config = read_json(folder / CONFIG, _Config)
    for part in ("vision", "speech", "encoder"):
        if getattr(config.model, part) is not None:
            raise ModelFileError(
                f"{folder} also has a part for {part}; edge runs models of text only.", "Choose another model."
            )
    if config.model.decoder.pipeline is not None or not config.model.decoder.filename:
        raise ModelFileError(f"{folder} is split into several models that run after each other, which edge does not do.", _HINT)
    return config


def _inside(where: Path, name: str) -> PurePosixPath:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name:
        raise ModelFileError(
            f"{where} names the model file {name!r}, which is not in its own folder.", "Get the model from a source you trust."
        )
    return relative


def _layer_names(where: Path, decoder: _Decoder) -> list[tuple[str, ...]]:
    """Return the names of past keys, past values, present keys and present values, one a layer."""
    if decoder.num_hidden_layers > 4096:
        raise ModelFileError(f"{where} promises {decoder.num_hidden_layers:,} layers.", "Download or convert the model again.")
    patterns = (
        decoder.inputs.past_key_names,
        decoder.inputs.past_value_names,
        decoder.outputs.present_key_names,
        decoder.outputs.present_value_names,
    )
    for pattern in patterns:
        if len(_LAYER.findall(pattern)) != 1:
            raise ModelFileError(f"{where} has the name {pattern!r} without a place for the layer.", _HINT)
    return [tuple(_LAYER.sub(str(layer), pattern) for layer in range(decoder.num_hidden_layers)) for pattern in patterns]


def _check_kv(path: Path, ports: list[Port], decoder: _Decoder) -> str:
    """Check that all keys and values have one type and the shape (batch, heads, tokens, width), and return the type."""
    expected = (None, decoder.num_key_value_heads, None, decoder.head_size)
    for port in ports:
        fits = len(port.dims) == 4 and all(
            dim is None or want in (None, dim) for dim, want in zip(port.dims, expected, strict=True)
        )
        if not fits or port.type not in _KV_TYPES or port.type != ports[0].type:
            raise ModelFileError(
                f"{path} stores {port.name} as {port.type or 'an unknown type'} of the shape {port.dims}, and {CONFIG} "
                f"promises {decoder.num_key_value_heads} heads of {decoder.head_size} numbers.",
                _HINT,
            )
    return ports[0].type


def _quantisation(graph: Graph) -> str:
    """Return the type of most of the weights."""
    if graph.bits:
        return f"int{graph.bits.most_common(1)[0][0]}"
    sizes: dict[str, int] = {}
    for weight in graph.weights:
        sizes[weight.type] = sizes.get(weight.type, 0) + weight.size_bytes
    return max(sizes, key=lambda name: sizes[name], default="")
