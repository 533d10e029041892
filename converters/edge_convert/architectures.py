"""Known model architectures: the formats that each can become, and the tensors that it must hold.

docs/convert.md shows this table, and tests/unit/convert proves every cell of it with a tiny random checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.errors import ModelFileError
from edge.names import FORMATS, TITLES, Format

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "expected_tensors",
    "find_architecture",
    "find_gguf_architecture",
    "is_tied",
    "markdown_table",
]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family of models that share their arithmetic.

    Attributes:
        name: the class in config.json's `architectures`.
        title: for people, with well-known members.
        gguf: llama.cpp's name.
        module: the package in `transformers.models`.
        formats: that it can become.
        block_tensors: of a layer, without "model.layers.N." and ".weight".
        biased: those with a bias.
        window_pattern: every n-th layer has full attention, the others a sliding window; llama.cpp takes it for granted.
        n_wide_layers: layers of the variant whose attention is scaled by hidden size / heads; llama.cpp tells it by them.
    """

    name: str
    title: str
    gguf: str
    module: str
    formats: frozenset[Format]
    block_tensors: tuple[str, ...]
    biased: tuple[str, ...] = ()
    window_pattern: int = 1
    n_wide_layers: int = 0

    @property
    def is_gemma(self) -> bool:
        """True for a Gemma: norms around both halves of a layer, norm weights stored minus one."""
        return self.gguf.startswith("gemma")

    def layer_kinds(self, n_layers: int) -> tuple[str, ...]:
        """Return the kind of attention of each layer, where a config does not list them."""
        n = self.window_pattern
        return tuple("sliding_attention" if (layer + 1) % n else "full_attention" for layer in range(n_layers))


_SPLIT_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_SPLIT_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_GEMMA_NORMS = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_LLAMA_BLOCK = (*_SPLIT_ATTENTION, *_SPLIT_MLP, *_NORMS)
_GEMMA_BLOCK = (*_SPLIT_ATTENTION, *_SPLIT_MLP, *_GEMMA_NORMS)
_ALL: frozenset[Format] = frozenset(FORMATS)

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("LlamaForCausalLM", "Llama (SmolLM2, TinyLlama, Llama 2 and 3)", "llama", "llama", _ALL, _LLAMA_BLOCK),
        Architecture("Qwen2ForCausalLM", "Qwen2, Qwen2.5", "qwen2", "qwen2", _ALL, _LLAMA_BLOCK, _SPLIT_ATTENTION[:3]),
        Architecture("Qwen3ForCausalLM", "Qwen3", "qwen3", "qwen3", _ALL, (*_LLAMA_BLOCK, *_QK_NORMS)),
        Architecture("MistralForCausalLM", "Mistral", "llama", "mistral", _ALL, _LLAMA_BLOCK),
        Architecture(
            "Gemma2ForCausalLM", "Gemma 2", "gemma2", "gemma2", _ALL, _GEMMA_BLOCK, window_pattern=2, n_wide_layers=46
        ),
        Architecture(
            "Gemma3ForCausalLM",
            "Gemma 3 (text)",
            "gemma3",
            "gemma3",
            _ALL,
            (*_GEMMA_BLOCK, *_QK_NORMS),
            window_pattern=6,
            n_wide_layers=62,
        ),
        Architecture(
            "Phi3ForCausalLM",
            "Phi-3, Phi-4",
            "phi3",
            "phi3",
            _ALL,
            ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", *_NORMS),
        ),
    )
}
"""Class name in config.json -> architecture."""

_NUMBERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


def find_architecture(config: Mapping[str, Any], where: str) -> Architecture:
    """Return the architecture that the config.json of a checkpoint names.

    Raises:
        ModelFileError: it names none or an unknown one, is already quantised, or lacks a size.
    """
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    known = ", ".join(ARCHITECTURES)
    if name is None:
        raise ModelFileError(f"{where}: config.json names no architecture.", f"Known are: {known}.")
    if name not in ARCHITECTURES:
        raise ModelFileError(f"{where} is a {name}, an architecture that edge does not convert.", f"Known are: {known}.")
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ModelFileError(
            f"{where} is already quantised ({method}).", "Convert the checkpoint that it was made from, in 16 or 32 bits."
        )
    for key in _NUMBERS:
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise ModelFileError(f"{where}: config.json has no usable {key} ({value!r}).", "Download the checkpoint again.")
    return ARCHITECTURES[name]


def find_gguf_architecture(name: str, where: str) -> Architecture:
    """Return the architecture that a GGUF file names; checkpoints of Mistral, which it calls "llama", are read as Llama.

    Raises:
        ModelFileError: edge does not convert it.
    """
    by_name = {architecture.gguf: architecture for architecture in reversed(ARCHITECTURES.values())}
    if name not in by_name:
        known = ", ".join(sorted(by_name))
        raise ModelFileError(f"{where} is of the architecture {name!r}, which edge does not convert.", f"Known: {known}.")
    return by_name[name]


def expected_tensors(architecture: Architecture, config: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors that a checkpoint must hold, without lm_head.weight, which tied checkpoints may omit."""
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    has_attention_bias = bool(config.get("attention_bias", False)) and architecture.gguf == "llama"
    for layer in range(config["num_hidden_layers"]):
        names += [f"model.layers.{layer}.{part}.weight" for part in architecture.block_tensors]
        biased = _SPLIT_ATTENTION if has_attention_bias else architecture.biased
        names += [f"model.layers.{layer}.{part}.bias" for part in biased]
    return names


def is_tied(architecture: Architecture, config: Mapping[str, Any]) -> bool:
    """Return whether the head shares the embedding's weights; config.json omits the default of an architecture."""
    return bool(config.get("tie_word_embeddings", architecture.is_gemma))


def markdown_table() -> str:
    """Return the table in docs/convert.md."""
    lines = [
        "| architecture | in config.json | " + " | ".join(TITLES[form] for form in FORMATS) + " |",
        "|---|---|" + "---|" * len(FORMATS),
    ]
    for architecture in ARCHITECTURES.values():
        cells = " | ".join("yes" if form in architecture.formats else "no" for form in FORMATS)
        lines.append(f"| {architecture.title} | `{architecture.name}` | {cells} |")
    return "\n".join(lines) + "\n"
