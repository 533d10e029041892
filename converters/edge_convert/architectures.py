"""Known model architectures: the formats that each can become, the tensors of a layer, and the defaults of its config.json.

docs/convert.md shows this table, and tests/unit/convert proves every cell of it with a tiny random checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge.errors import ModelFileError
from edge.names import FORMATS, TITLES, Format

__all__ = [
    "ARCHITECTURES",
    "ENCODERS",
    "REFUSED",
    "Architecture",
    "Refused",
    "check_reads_back",
    "find_architecture",
    "find_gguf_architecture",
    "markdown_table",
    "refusals_table",
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
        conv_tensors: of a layer with a convolution instead of attention (LFM2).
        has_experts: the feed-forward half is a router and experts.
        final_norm: before the head.
        biased: those with a bias.
        window_pattern: every n-th layer has full attention, the others a sliding window, where config.json does not say.
        n_wide_layers: layers of the variant whose attention is scaled by hidden size / heads; llama.cpp tells it by them.
        windows: layers that may have a sliding window: "none", "all" of them, the "upper" ones, the "unrotated" ones, by
            "layer_types", or all of them if use_sliding_window is on ("moe").
        has_attention_bias: attention_bias in config.json gives q, k, v and o a bias.
        has_mlp_bias: mlp_bias in config.json gives gate, up and down a bias.
        has_even_width: transformers wants a hidden size that is a multiple of the heads.
        is_tied: the head shares the embedding where config.json does not say.
        has_wide_norms: the norms of q and k are over all heads at once.
        has_multipliers: config.json scales embeddings, branches, scores and logits (Granite).
        unrotated_period: every n-th layer has no rotary embedding, where config.json does not say; 0 for none.
        head_dim, n_kv_heads, window, norm_eps, theta, local_theta, caps: transformers' defaults of keys that config.json leaves
            out; 0 and None are no default of its own.
    """

    name: str
    title: str
    gguf: str
    module: str
    formats: frozenset[Format]
    block_tensors: tuple[str, ...]
    conv_tensors: tuple[str, ...] = ()
    has_experts: bool = False
    final_norm: str = "model.norm"
    biased: tuple[str, ...] = ()
    window_pattern: int = 1
    n_wide_layers: int = 0
    windows: Literal["none", "all", "upper", "unrotated", "layer_types", "moe"] = "none"
    has_attention_bias: bool = False
    has_mlp_bias: bool = False
    has_even_width: bool = False
    is_tied: bool = False
    has_wide_norms: bool = False
    has_multipliers: bool = False
    unrotated_period: int = 0
    head_dim: int = 0
    n_kv_heads: int = 0
    window: int | None = None
    norm_eps: float = 1e-6
    theta: float = 10_000.0
    local_theta: float | None = None
    caps: tuple[tuple[str, float], ...] = ()

    @property
    def is_gemma(self) -> bool:
        """True for a Gemma: norms around both halves of a layer, norm weights stored minus one."""
        return self.gguf.startswith("gemma")

    @property
    def is_permuted(self) -> bool:
        """True where llama.cpp rotates neighbours, so that a GGUF interleaves the halves of each head of q and k."""
        return self.gguf in ("llama", "granite", "smollm3")

    @property
    def has_pre_norms(self) -> bool:
        """True where both halves of a layer begin with a norm."""
        return "input_layernorm" in self.block_tensors

    @property
    def has_post_norms(self) -> bool:
        """True where both halves of a layer end with a norm, before they are added."""
        return "post_feedforward_layernorm" in self.block_tensors

    @property
    def mlp_norm(self) -> str:
        """The norm that the feed-forward half begins with; "" for none."""
        if not self.has_pre_norms:
            return ""
        return "pre_feedforward_layernorm" if self.has_post_norms else "post_attention_layernorm"

    @property
    def gate_up(self) -> str:
        """The tensor that holds gate and up one above the other; "" where they are two."""
        return next((name for name in self.block_tensors if name.endswith(("gate_up_proj", "input_linear"))), "")

    @property
    def down(self) -> str:
        """The last matrix of the feed-forward half."""
        return next((name for name in self.block_tensors if name.endswith(("down_proj", "output_linear"))), "")

    @property
    def model_type(self) -> str:
        """The name of its configuration in transformers."""
        return "gemma3_text" if self.module == "gemma3" else self.module

    @property
    def classes(self) -> str:
        """The beginning of the names of its classes in transformers: "Llama" of LlamaDecoderLayer."""
        return self.name.removesuffix("ForCausalLM")

    def layer_tensors(self, kind: str) -> tuple[str, ...]:
        """Return the tensors of a layer of this kind, as `block_tensors`."""
        return self.conv_tensors if kind == "conv" else self.block_tensors

    def layer_kinds(self, n_layers: int, period: int | None = None) -> tuple[str, ...]:
        """Return the kind of attention of each layer, where a config does not list them; `period` replaces window_pattern."""
        n = period or self.window_pattern
        return tuple("sliding_attention" if (layer + 1) % n else "full_attention" for layer in range(n_layers))


_SPLIT_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_SPLIT_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_GEMMA_NORMS = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_LLAMA_BLOCK = (*_SPLIT_ATTENTION, *_SPLIT_MLP, *_NORMS)
_GEMMA_BLOCK = (*_SPLIT_ATTENTION, *_SPLIT_MLP, *_GEMMA_NORMS)
_LFM2_MLP = (*(f"feed_forward.w{number}" for number in (1, 2, 3)), "operator_norm", "ffn_norm")
_LFM2_ATTENTION = (*_SPLIT_ATTENTION[:3], "self_attn.out_proj", "self_attn.q_layernorm", "self_attn.k_layernorm")
_GGUF: frozenset[Format] = frozenset({"gguf"})
_ALL: frozenset[Format] = frozenset(FORMATS)

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="LlamaForCausalLM",
            title="Llama (SmolLM2, TinyLlama, Llama 2 and 3)",
            gguf="llama",
            module="llama",
            formats=_ALL,
            block_tensors=_LLAMA_BLOCK,
            has_attention_bias=True,
            has_mlp_bias=True,
            has_even_width=True,
        ),
        Architecture(
            name="SmolLM3ForCausalLM",
            title="SmolLM3",
            gguf="smollm3",
            module="smollm3",
            formats=_ALL,
            block_tensors=_LLAMA_BLOCK,
            windows="unrotated",
            has_attention_bias=True,
            has_mlp_bias=True,
            is_tied=True,
            unrotated_period=4,
            n_kv_heads=4,
            theta=2_000_000.0,
        ),
        Architecture(
            name="GraniteForCausalLM",
            title="Granite 3",
            gguf="granite",
            module="granite",
            formats=_ALL,
            block_tensors=_LLAMA_BLOCK,
            has_attention_bias=True,
            has_mlp_bias=True,
            has_multipliers=True,
        ),
        Architecture(
            name="GraniteMoeHybridForCausalLM",
            title="Granite 4 without Mamba layers and experts (350M, 1B, micro)",
            gguf="granite",
            module="granitemoehybrid",
            formats=_ALL,
            block_tensors=(*_SPLIT_ATTENTION, "shared_mlp.input_linear", "shared_mlp.output_linear", *_NORMS),
            has_attention_bias=True,
            has_multipliers=True,
        ),
        Architecture(
            name="Olmo2ForCausalLM",
            title="OLMo 2",
            gguf="olmo2",
            module="olmo2",
            formats=_ALL,
            block_tensors=(
                *_SPLIT_ATTENTION,
                *_SPLIT_MLP,
                "post_attention_layernorm",
                "post_feedforward_layernorm",
                *_QK_NORMS,
            ),
            has_attention_bias=True,
            has_wide_norms=True,
            norm_eps=1e-5,
        ),
        Architecture(
            name="Qwen2ForCausalLM",
            title="Qwen2, Qwen2.5",
            gguf="qwen2",
            module="qwen2",
            formats=_ALL,
            block_tensors=_LLAMA_BLOCK,
            biased=_SPLIT_ATTENTION[:3],
            windows="upper",
            n_kv_heads=32,
            window=4096,
        ),
        Architecture(
            name="Qwen3ForCausalLM",
            title="Qwen3",
            gguf="qwen3",
            module="qwen3",
            formats=_ALL,
            block_tensors=(*_LLAMA_BLOCK, *_QK_NORMS),
            windows="upper",
            has_attention_bias=True,
            head_dim=128,
            n_kv_heads=32,
            window=4096,
        ),
        Architecture(
            name="Qwen3MoeForCausalLM",
            title="Qwen3 with experts (30B-A3B)",
            gguf="qwen3moe",
            module="qwen3_moe",
            formats=_GGUF,
            block_tensors=(*_SPLIT_ATTENTION, *_NORMS, *_QK_NORMS, "mlp.gate"),
            has_experts=True,
            windows="moe",
            has_attention_bias=True,
            n_kv_heads=4,
            window=4096,
        ),
        Architecture(
            name="Lfm2ForCausalLM",
            title="LFM2, LFM2.5",
            gguf="lfm2",
            module="lfm2",
            formats=_GGUF,
            block_tensors=(*_LFM2_ATTENTION, *_LFM2_MLP),
            conv_tensors=("conv.conv", "conv.in_proj", "conv.out_proj", *_LFM2_MLP),
            final_norm="model.embedding_norm",
            is_tied=True,
            n_kv_heads=8,
            norm_eps=1e-5,
            theta=1_000_000.0,
        ),
        Architecture(
            name="MistralForCausalLM",
            title="Mistral",
            gguf="llama",
            module="mistral",
            formats=_ALL,
            block_tensors=_LLAMA_BLOCK,
            windows="all",
            n_kv_heads=8,
            window=4096,
        ),
        Architecture(
            name="Gemma2ForCausalLM",
            title="Gemma 2",
            gguf="gemma2",
            module="gemma2",
            formats=_ALL,
            block_tensors=_GEMMA_BLOCK,
            is_tied=True,
            window_pattern=2,
            n_wide_layers=46,
            windows="layer_types",
            has_attention_bias=True,
            has_even_width=True,
            head_dim=256,
            n_kv_heads=4,
            window=4096,
            caps=(("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)),
        ),
        Architecture(
            name="Gemma3ForCausalLM",
            title="Gemma 3 (text)",
            gguf="gemma3",
            module="gemma3",
            formats=_ALL,
            block_tensors=(*_GEMMA_BLOCK, *_QK_NORMS),
            is_tied=True,
            window_pattern=6,
            n_wide_layers=62,
            windows="layer_types",
            has_attention_bias=True,
            has_even_width=True,
            head_dim=256,
            n_kv_heads=4,
            window=4096,
            theta=1_000_000.0,
            local_theta=10_000.0,
        ),
        Architecture(
            name="Phi3ForCausalLM",
            title="Phi-3, Phi-4",
            gguf="phi3",
            module="phi3",
            formats=_ALL,
            block_tensors=("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", *_NORMS),
            windows="all",
            n_kv_heads=32,
            norm_eps=1e-5,
        ),
    )
}
"""Class name in config.json -> architecture."""

_ONNX: frozenset[Format] = frozenset({"onnx"})
ENCODERS: dict[str, Architecture] = {
    name: Architecture(name=name, title=title, gguf="bert", module=module, formats=_ONNX, block_tensors=())
    for name, module, title in (
        ("BertModel", "bert", "BERT for embeddings (MiniLM, BGE, E5, GTE)"),
        ("RobertaModel", "roberta", "RoBERTa for embeddings"),
        ("XLMRobertaModel", "xlm_roberta", "XLM-RoBERTa for embeddings (multilingual E5, BGE-M3)"),
    )
}
"""Class name in config.json -> model for embeddings, see edge_convert.encoder."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A family that users bring and that is not converted.

    Attributes:
        names: the classes in config.json's `architectures`.
        title: for people.
        why: it is not converted, as the end of a sentence.
        instead: what works, in a sentence.
    """

    names: tuple[str, ...]
    title: str
    why: str
    instead: str


REFUSED = (
    Refused(
        names=("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
        title="Gemma 3n",
        why="it has embeddings for each layer and hidden states in several streams",
        instead="edge runs it as GGUF: edge chat -m hf:ggml-org/gemma-3n-E2B-it-GGUF",
    ),
    Refused(
        names=("Gemma3ForConditionalGeneration",),
        title="Gemma 3 with images",
        why="it has a part for images",
        instead="Convert a text-only size (270M, 1B), or run a GGUF: edge chat -m hf:ggml-org/gemma-3-4b-it-GGUF",
    ),
    Refused(
        names=("Gemma3TextModel",),
        title="EmbeddingGemma",
        why="its attention looks both ways, and it has more matrices behind its pooling",
        instead='edge runs it as GGUF: edge embed -m hf:ggml-org/embeddinggemma-300M-GGUF "a text"',
    ),
)
"""Families that users ask for and that are refused by a sentence that says what works."""

_RUNS = "edge runs most other models as GGUF: look for a repository of that model whose name ends in -GGUF."


def find_architecture(config: Mapping[str, Any], where: str) -> Architecture:
    """Return the architecture that the config.json of a checkpoint names.

    Raises:
        ModelFileError: it names none or an unknown one, or is already quantised.
    """
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    known = ", ".join((*ARCHITECTURES, *ENCODERS))
    if name is None:
        raise ModelFileError(f"{where}: config.json names no architecture.", f"Known are: {known}.")
    refused = next((refused for refused in REFUSED if name in refused.names), None)
    if refused is not None:
        raise ModelFileError(f"{where} is a {refused.title}, which edge does not convert: {refused.why}.", refused.instead)
    if name not in ARCHITECTURES:
        raise ModelFileError(
            f"{where} is a {name[:80]}, an architecture that edge does not convert.", f"Known are: {known}. {_RUNS}"
        )
    quantised = config.get("quantization_config")
    if quantised:  # null, false and an empty table say that it is not
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise ModelFileError(
            f"{where} is already quantised ({str(method)[:40]}).",
            "Convert the checkpoint that it was made from, in 16 or 32 bits.",
        )
    architecture, kind = ARCHITECTURES[name], config.get("model_type")
    if kind != architecture.model_type:
        raise ModelFileError(
            f"{where}: config.json names the architecture {name}, and {str(kind)[:40]!r} as its model_type.",
            f"Download the checkpoint again, or correct config.json: that of a {name} is {architecture.model_type}.",
        )
    return architecture


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


def check_reads_back(architecture: Architecture, where: str) -> None:
    """Refuse to convert from a GGUF file of an architecture that is only written.

    Raises:
        ModelFileError: as said above.
    """
    if architecture.has_experts or architecture.conv_tensors:
        raise ModelFileError(
            f"{where} is a {architecture.title}, and edge does not read its GGUF back.",
            "Convert the checkpoint that it was made from, or run it as it is: edge chat -m FILE",
        )


def markdown_table() -> str:
    """Return the table in docs/convert.md."""
    lines = [
        "| architecture | in config.json | " + " | ".join(TITLES[form] for form in FORMATS) + " |",
        "|---|---|" + "---|" * len(FORMATS),
    ]
    for architecture in (*ARCHITECTURES.values(), *ENCODERS.values()):
        cells = " | ".join("yes" if form in architecture.formats else "no" for form in FORMATS)
        lines.append(f"| {architecture.title} | `{architecture.name}` | {cells} |")
    return "\n".join(lines) + "\n"


def refusals_table() -> str:
    """Return the table of refused families in docs/convert.md."""
    lines = ["| model | in config.json | not converted, since | what works |", "|---|---|---|---|"]
    for refused in REFUSED:
        names = ", ".join(f"`{name}`" for name in refused.names)
        sentence, colon, command = refused.instead.partition(": edge ")
        instead = f"{sentence}: `edge {command}`" if colon else sentence
        lines.append(f"| {refused.title} | {names} | {refused.why} | {instead} |")
    return "\n".join(lines) + "\n"
