"""Reads the checkpoint of an encoder, in the layout of sentence-transformers, and refuses what its graph would not compute.

Source: `transformers.models.bert.modeling_bert` and `modeling_xlm_roberta`; `sentence_transformers.models`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edge import files
from edge.errors import ModelFileError
from edge.units import reason
from edge_convert.architectures import ENCODERS, Architecture
from edge_convert.checkpoint import Checkpoint, find_tensors, licence_in_card, read_json
from edge_convert.rope import wrong_config

__all__ = ["COPIED", "EncoderConfig", "is_encoder", "open_encoder", "tensor_shapes"]

COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
"""Files that `edge embed` reads beside the graph, and those of the tokenizer."""

_MODULES = (".Transformer", ".Pooling", ".Normalize")
_UNUSED = ("embeddings.position_ids", "embeddings.token_type_ids", "pooler.dense.weight", "pooler.dense.bias")
_PREFIXES = ("bert.", "roberta.")
_Size = Annotated[int, Meta(ge=1, le=1 << 24)]
_AS_GGUF = "edge runs most embedding models as GGUF: look for a repository of that model whose name ends in -GGUF."
_KINDS = ("absolute", None)


class _Fields(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of config.json that decide the arithmetic."""

    vocab_size: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: Annotated[int, Meta(ge=1, le=10_000)]
    num_attention_heads: _Size
    max_position_embeddings: Annotated[int, Meta(ge=2, le=1 << 20)] = 512
    type_vocab_size: Annotated[int, Meta(ge=1, le=1024)] = 2
    layer_norm_eps: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-12
    hidden_act: str = "gelu"
    pad_token_id: Annotated[int, Meta(ge=0)] | None = None
    position_embedding_type: str | None = None
    is_decoder: bool = False


class _Pooling(msgspec.Struct, frozen=True, kw_only=True):
    """The ways of pooling that `edge embed` has."""

    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_lasttoken: bool = False


class _Window(msgspec.Struct, frozen=True, kw_only=True):
    """The longest text, in tokens."""

    max_seq_length: Annotated[int, Meta(ge=2, le=1 << 20)] | None = None


class EncoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An encoder's sizes and constants.

    Attributes:
        n_vocab, n_positions, n_types: rows of the three embeddings.
        first_position: row of the first token; RoBERTa counts from behind its padding.
        width: of the hidden state.
        inner: width of the feed-forward matrices.
        n_layers, n_heads: of the model.
        norm_eps: of the layer norms.
    """

    n_vocab: int
    n_positions: int
    n_types: int
    first_position: int
    width: int
    inner: int
    n_layers: int
    n_heads: int
    norm_eps: float


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json names an encoder that edge converts."""
    named = config.get("architectures")
    return isinstance(named, list) and bool(named) and isinstance(named[0], str) and named[0] in ENCODERS


def open_encoder(folder: Path, *, source: str, licence: str | None = None) -> tuple[Checkpoint, EncoderConfig]:
    """Open a checkpoint folder and check that it is complete, without reading the weights.

    Raises:
        ModelFileError: it is damaged or incomplete, or computes something else than the graph would.
    """
    config = read_json(folder / "config.json")
    architecture = ENCODERS[config["architectures"][0]]
    model = _read_config(config, architecture, folder.name)
    if not (folder / "tokenizer.json").is_file():
        raise ModelFileError(
            f"{folder} has no tokenizer.json.",
            "Make it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    _check_modules(folder)
    _check_pooling(folder)
    stored = find_tensors(folder, _UNUSED + tuple(prefix + name for prefix in _PREFIXES for name in _UNUSED))
    tensors = {_usual_name(name): info for name, info in stored.items()}
    if len(tensors) < len(stored):
        usual = [_usual_name(name) for name in stored]
        twice = next(name for name in usual if usual.count(name) > 1)
        raise ModelFileError(f"The model holds {twice} twice, under different names.", "Download it again.")
    tensors = {name: info for name, info in tensors.items() if name not in _UNUSED}
    _check_tensors({name: info.shape for name, info in tensors.items()}, model, architecture)
    checkpoint = Checkpoint(
        folder=folder,
        source=source,
        architecture=architecture,
        config=config,
        tensors=tensors,
        tokenizer_files=tuple(name for name in COPIED if (folder / name).is_file()),
        chat_template=None,
        licence=licence or licence_in_card(folder / "README.md"),
        source_quantised=None,
    )
    return checkpoint, model


def tensor_shapes(model: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a checkpoint with their shapes, rows first."""
    width, inner = model.width, model.inner
    rows = {"word": model.n_vocab, "position": model.n_positions, "token_type": model.n_types}
    found: dict[str, tuple[int, ...]] = {f"embeddings.{name}_embeddings.weight": (n, width) for name, n in rows.items()}
    norms = ["embeddings.LayerNorm"]
    for layer in range(model.n_layers):
        name = f"encoder.layer.{layer}"
        matrices = {f"attention.self.{part}": (width, width) for part in ("query", "key", "value")}
        matrices |= {
            "attention.output.dense": (width, width),
            "intermediate.dense": (inner, width),
            "output.dense": (width, inner),
        }
        for part, shape in matrices.items():
            found |= {f"{name}.{part}.weight": shape, f"{name}.{part}.bias": shape[:1]}
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    return found | {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}


def _read_config(config: Mapping[str, Any], architecture: Architecture, where: str) -> EncoderConfig:
    try:
        fields = msgspec.convert(dict(config), _Fields)
    except msgspec.ValidationError as error:
        raise wrong_config(where, reason(error)) from error
    if config.get("quantization_config"):
        raise wrong_config(where, "it is already quantised", "Convert the checkpoint that it was made from.")
    if fields.hidden_size % fields.num_attention_heads:
        raise wrong_config(where, f"hidden_size is not a multiple of num_attention_heads ({fields.num_attention_heads})")
    if fields.hidden_act != "gelu":
        raise wrong_config(where, f"its activation is {fields.hidden_act[:40]}, which edge does not convert for an encoder")
    if fields.position_embedding_type not in _KINDS or fields.is_decoder:
        raise wrong_config(where, "its positions are not absolute, or it looks at earlier tokens only")
    first = 0
    if architecture.module != "bert":
        first = 1 + (1 if fields.pad_token_id is None else fields.pad_token_id)
    if first >= fields.max_position_embeddings:
        raise wrong_config(where, f"pad_token_id is {first - 1}, and there are {fields.max_position_embeddings} positions")
    return EncoderConfig(
        n_vocab=fields.vocab_size,
        n_positions=fields.max_position_embeddings,
        n_types=fields.type_vocab_size,
        first_position=first,
        width=fields.hidden_size,
        inner=fields.intermediate_size,
        n_layers=fields.num_hidden_layers,
        n_heads=fields.num_attention_heads,
        norm_eps=fields.layer_norm_eps,
    )


def _check_modules(folder: Path) -> None:
    """Refuse a model that computes more than an encoder, pooling and a norm."""
    path = folder / "modules.json"
    modules = files.read_json(path, list[dict[str, Any]]) if path.is_file() else []
    others = [str(module.get("type")) for module in modules if not str(module.get("type")).endswith(_MODULES)]
    if others:
        raise ModelFileError(
            f"{folder.name} has a module {others[0][:80]!r} behind its encoder, which edge does not convert.",
            _AS_GGUF,
        )


def _check_pooling(folder: Path) -> None:
    """Refuse what `edge embed` could not read beside the graph, or a way of pooling that it does not have."""
    window = folder / "sentence_bert_config.json"
    if window.is_file():
        files.read_json(window, _Window)
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return
    ways = [name for name, is_on in msgspec.structs.asdict(files.read_json(path, _Pooling)).items() if is_on]
    if len(ways) != 1:
        what = f"joins {len(ways)} ways of pooling" if ways else "names no way of pooling that edge has"
        raise ModelFileError(f"1_Pooling/config.json of {folder.name} {what}.", _AS_GGUF)


def _usual_name(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _check_tensors(tensors: Mapping[str, tuple[int, ...]], model: EncoderConfig, architecture: Architecture) -> None:
    expected = tensor_shapes(model)
    missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing:
        raise ModelFileError(f"The model lacks the tensor {missing[0]}.", "Download it again.")
    if unknown:
        raise ModelFileError(
            f"The model holds {unknown[0]}, which a {architecture.name} for embeddings does not have.",
            "It is a variant that edge does not know. " + _AS_GGUF,
        )
    for name, shape in expected.items():
        if tuple(tensors[name]) != shape:
            raise ModelFileError(
                f"{name} has the shape {tuple(tensors[name])}, and the model's configuration says {shape}.",
                "They belong to different models, or one was changed: download the model again.",
            )
