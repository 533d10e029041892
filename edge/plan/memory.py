"""Memory that a model takes, from what its files say, before anything is loaded.

Of a GGUF, weights, KV cache and recurrent state are exact: they follow the sizes that llama.cpp allocates. Its compute buffers
depend on how the allocator packs a graph; the formula follows the widest points of such a graph, and is compared with what
llama.cpp logs in tests/unit/plan/test_memory.py (docs/devices.md has the numbers).

Source: llama.cpp (of llama-cpp-python 0.3.36) `llama-kv-cache.cpp`, `llama-memory-recurrent.cpp`, `llama-hparams.cpp`,
`llama_context::output_reserve`, and `load_tensors` for which layers go to the accelerator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edge.formats.artifact import Artifact
    from edge.formats.facts import ModelFacts
    from edge.formats.gguf import GGUFHeader

__all__ = [
    "KV_BLOCKS",
    "KV_PAD",
    "FolderMemory",
    "Footprint",
    "GGUFMemory",
    "Layout",
    "MemoryModel",
    "Parts",
    "gguf_memory",
    "is_smaller",
    "memory_model",
]

KV_BLOCKS = {"f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q8_0": (32, 34), "u8": (32, 40), "q4_0": (32, 18)}
"""Type of keys and values that the engine can choose -> numbers in a block, bytes of a block."""

KV_PAD = 256
"""llama.cpp allocates cells of the KV cache in multiples of this."""

# Measured: the tables of the tokenizer take 15.9 MiB for 49,152 tokens, graphs and the rest of the library some 3 MiB.
_BYTES_PER_TOKEN = 340
_FIXED_BYTES = 4 << 20
# An accelerator's library before the first tensor. Not measured here (no such device): CUDA's context and cuBLAS commonly take
# 300 to 500 MB, Metal's share is small.
_DEVICE_FIXED_BYTES = {"cuda": 512 << 20, "metal": 64 << 20}
_RECURRENT_INTERVAL = 4  # Qwen3-Next and its kin attend in every fourth layer, unless the file says otherwise

# Folders. What onnxruntime takes besides weights, keys and values was measured with SmolLM2-135M in int4 on x86-64 (onnxruntime
# 1.32): 171 MiB without the pages of the mapped file, of which 108 are the weights, repacked for the CPU; 22 MiB more for a
# chunk of 512 tokens. OpenVINO 2025.4 took 16 times the bytes of the weights: 1.9 GiB at most for the same model. Core ML has
# not been measured.
_FOLDER_FIXED_BYTES = 32 << 20
_TOKENIZER_BYTES = 500  # a token, in the tables of the tokenizers package
_ACTIVATIONS = 20  # numbers a token and unit of width that are alive at the widest point of a pass
_UNKNOWN_WIDTH = 2048
_FOLDER_DEVICE_BYTES = 512 << 20  # CUDA's context and libraries; not measured here
_BITS = {"int2": 2, "int4": 4, "int8": 8, "f16": 16, "bf16": 16}  # of a weight; others are floats of 32
_OPENVINO_BITS = 64  # that a weight takes there, whatever its type in the file; measured with int4, not explained


@dataclass(frozen=True, slots=True)
class Layout:
    """The settings that memory depends on.

    Attributes:
        n_ctx: cells of the KV cache.
        n_seq: sequences; llama.cpp gets one more, for export and import.
        n_ubatch: tokens computed in one pass.
        kv_type_k, kv_type_v: types of keys and values.
        flash_attention: without it the scores of all heads are stored at once.
        gpu_layers: layers on the accelerator, the output counted as one.
        accelerator: its name.
    """

    n_ctx: int
    n_seq: int
    n_ubatch: int
    kv_type_k: str
    kv_type_v: str
    flash_attention: bool
    gpu_layers: int
    accelerator: str


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes in one kind of memory."""

    weights: int = 0
    kv: int = 0
    compute: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.kv + self.compute


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes in main memory and in the accelerator's. On a unified memory both come out of the same pool."""

    host: Parts
    device: Parts = Parts()

    @property
    def total(self) -> int:
        """All bytes."""
        return self.host.total + self.device.total


class MemoryModel(Protocol):
    """The memory of a model as a function of its settings."""

    @property
    def n_layer(self) -> int:
        """Number of layers, without the output; 0 where unknown."""

    def cell_bytes(self, kv_type_k: str, kv_type_v: str) -> int:
        """Return the bytes of one token in the KV cache."""

    def footprint(self, layout: Layout) -> Footprint:
        """Return the memory that the model takes with these settings."""


def memory_model(artifact: Artifact, *, n_spare: int = 0, weights_factor: float = 1.0) -> MemoryModel:
    """Return the memory model of an artifact.

    Args:
        artifact: the model.
        n_spare: KV buffers beside one a sequence, if its sequences have buffers of their own.
        weights_factor: memory that the weights of a GGUF take in this engine, as a multiple of the file's.
    """
    if artifact.header is None:
        return FolderMemory(artifact.facts, n_spare)
    return gguf_memory(artifact.header).scaled(weights_factor)


@dataclass(frozen=True, slots=True)
class FolderMemory:
    """A model that runs on one device, where each sequence has its own KV buffer.

    Attributes:
        facts: the model.
        n_spare: KV buffers beside one a sequence.
    """

    facts: ModelFacts
    n_spare: int = 0

    @property
    def n_layer(self) -> int:
        """Number of layers; 0 where only the size of the model is known."""
        return self.facts.n_layer

    def cell_bytes(self, kv_type_k: str, kv_type_v: str) -> int:
        """Return the bytes of one token in the KV cache, whose type the model fixes."""
        return self.facts.cell_bytes

    def footprint(self, layout: Layout) -> Footprint:
        """Return the memory that it takes with these settings. Any sequence may grow to the whole context."""
        facts = self.facts
        if not facts.n_layer:
            return Footprint(Parts(facts.weights_bytes))
        cells = facts.n_ctx_max or layout.n_ctx
        kv = (layout.n_seq + self.n_spare) * cells * facts.cell_bytes
        activations = layout.n_ubatch * 4 * _ACTIVATIONS * (facts.n_embd or _UNKNOWN_WIDTH)
        tables = _FOLDER_FIXED_BYTES + facts.n_vocab * (_TOKENIZER_BYTES + 4 * layout.n_seq)
        if not layout.gpu_layers:
            weights = facts.weights_bytes
            if layout.accelerator == "openvino":
                weights *= _OPENVINO_BITS // _BITS.get(facts.quantisation, 32)
            return Footprint(Parts(weights, kv, activations + tables))
        fixed = _FOLDER_DEVICE_BYTES if layout.accelerator != "metal" else 0
        return Footprint(Parts(0, 0, tables), Parts(facts.weights_bytes, kv, activations + fixed))


@dataclass(frozen=True, slots=True)
class GGUFMemory:
    """A GGUF model, layer by layer; the sequences share one KV cache.

    Attributes:
        weights: bytes of the tensors of every layer.
        input_bytes: tensors that stay in main memory (token embeddings).
        output_bytes: tensors of the output layer; with tied embeddings these are the embeddings again.
        is_tied: the output layer shares the embeddings, and takes memory of its own only on an accelerator.
        key_width, value_width: numbers of a cell in every layer; 0 for layers without a cache.
        state_bytes: of the recurrent state of one sequence, in every layer.
        n_embd, n_ff, attention_width, n_head, n_vocab: widths that the compute buffers depend on; n_ff counts all experts
            that are active at once.
        n_masks: attention masks: one, one more for sliding-window layers, none where nothing attends.
    """

    weights: tuple[int, ...]
    input_bytes: int
    output_bytes: int
    is_tied: bool
    key_width: tuple[int, ...]
    value_width: tuple[int, ...]
    state_bytes: tuple[int, ...]
    n_embd: int
    n_ff: int
    attention_width: int
    n_head: int
    n_vocab: int
    n_masks: int

    @property
    def n_layer(self) -> int:
        """Number of layers, without the output."""
        return len(self.weights)

    def scaled(self, factor: float) -> GGUFMemory:
        """Return the same model with weights that take so many times the memory."""
        return replace(
            self,
            weights=tuple(int(size * factor) for size in self.weights),
            input_bytes=int(self.input_bytes * factor),
            output_bytes=int(self.output_bytes * factor),
        )

    @property
    def total_weights(self) -> int:
        """Bytes of all tensors in the file."""
        return sum(self.weights) + self.input_bytes + (0 if self.is_tied else self.output_bytes)

    def cell_bytes(self, kv_type_k: str, kv_type_v: str, layers: slice = slice(None)) -> int:
        """Return the bytes of one token in the KV cache, of some or all layers."""
        return sum(
            _row_bytes(width, name)
            for widths, name in ((self.key_width, kv_type_k), (self.value_width, kv_type_v))
            for width in widths[layers]
        )

    def footprint(self, layout: Layout) -> Footprint:
        """Return the memory that the model takes with these settings."""
        cells = -(-layout.n_ctx // KV_PAD) * KV_PAD
        n_device = min(layout.gpu_layers, self.n_layer + 1)
        # llama.cpp counts from the back: the first layer that goes to the accelerator is the output.
        first = self.n_layer + 1 - n_device
        on_host, on_device = slice(0, first), slice(first, None)

        def cache(part: slice) -> int:
            states = sum(self.state_bytes[part]) * (layout.n_seq + 1)
            return cells * self.cell_bytes(layout.kv_type_k, layout.kv_type_v, part) + states

        masks, compute = self._compute_bytes(layout, cells)
        tables = self.n_vocab * (_BYTES_PER_TOKEN + 4 * (layout.n_seq + 1)) + _FIXED_BYTES
        if not n_device:
            return Footprint(Parts(self.total_weights, cache(on_host), tables + compute))
        device_weights = sum(self.weights[on_device]) + self.output_bytes
        host_weights = self.total_weights - device_weights + (self.output_bytes if self.is_tied else 0)
        host_compute = tables + (masks if n_device > self.n_layer else compute)
        device_compute = compute + _DEVICE_FIXED_BYTES.get(layout.accelerator, 0)
        return Footprint(
            Parts(host_weights, cache(on_host), host_compute), Parts(device_weights, cache(on_device), device_compute)
        )

    def _compute_bytes(self, layout: Layout, cells: int) -> tuple[int, int]:
        """Return the bytes of the attention masks, and of the widest point of one pass with them.

        That is the feed-forward, the attention or the output, each beside the residual. Masks have half precision with flash
        attention, single precision without.
        """
        tokens = layout.n_ubatch + layout.n_seq
        masks = self.n_masks * cells * layout.n_ubatch * (2 if layout.flash_attention else 4)
        feed_forward = tokens * 4 * (3 * self.n_ff + 4 * self.n_embd)
        attention = tokens * 4 * (3 * self.n_embd + 3 * self.attention_width)
        if not layout.flash_attention and self.n_masks:
            attention += cells * tokens * 4 * self.n_head
        output = (layout.n_seq + 1) * 4 * (self.n_vocab + 2 * self.n_embd)
        return masks, masks + max(feed_forward, attention, output)


def _row_bytes(width: int, kv_type: str) -> int:
    numbers, size_bytes = KV_BLOCKS[kv_type]
    return -(-width // numbers) * size_bytes


def gguf_memory(header: GGUFHeader) -> GGUFMemory:
    """Take a model apart into layers.

    Args:
        header: from `edge.formats.gguf.read_header`.
    """
    weights = [0] * header.n_layer
    input_bytes = output_bytes = 0
    for tensor in header.tensors:
        layer = _layer_of(tensor.name)
        if layer is not None and layer < header.n_layer:
            weights[layer] += tensor.size_bytes
        elif tensor.name.startswith("output"):
            output_bytes += tensor.size_bytes
        else:
            input_bytes += tensor.size_bytes
    is_tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    if is_tied:
        # output_norm stays in the file once; the embeddings are what the output layer doubles.
        input_bytes += output_bytes
        output_bytes = next((tensor.size_bytes for tensor in header.tensors if tensor.name == "token_embd.weight"), 0)
    keys, values = _widths(header)
    heads = header.n_head if isinstance(header.n_head, int) else max(header.n_head, default=0)
    experts = _number(header, "expert_used_count")
    n_ff = _number(header, "feed_forward_length")
    if experts:
        n_ff = max(n_ff, experts * (_number(header, "expert_feed_forward_length") or n_ff))
    # A state-space layer computes both halves of its gated input at once.
    inner = 2 * _number(header, "ssm.inner_size")
    return GGUFMemory(
        weights=tuple(weights),
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        is_tied=is_tied,
        key_width=keys,
        value_width=values,
        state_bytes=_states(header),
        n_embd=header.n_embd,
        n_ff=max(n_ff, inner),
        attention_width=heads * max(header.head_dim_k, header.head_dim_v),
        n_head=heads,
        n_vocab=header.n_vocab,
        n_masks=0 if not any(keys) else 2 if header.sliding_window else 1,
    )


def _layer_of(name: str) -> int | None:
    """ "blk.12.attn_q.weight" -> 12."""
    parts = name.split(".", 2)
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 2 and parts[1].isdecimal() else None


def _number(header: GGUFHeader, key: str) -> int:
    """Return a number of the architecture: the largest, where it differs by layer; 0 where it is missing."""
    value = header.metadata.get(f"{header.architecture}.{key}", 0)
    if isinstance(value, tuple):
        return max((item for item in value if isinstance(item, int)), default=0)
    return value if isinstance(value, int) else 0


def _per_layer(header: GGUFHeader, key: str) -> tuple[bool, ...] | None:
    """Return a yes or no for every layer, or None where the file has no such list."""
    value = header.metadata.get(f"{header.architecture}.{key}")
    return tuple(bool(item) for item in value) if isinstance(value, tuple) and len(value) == header.n_layer else None


def _recurrent_layers(header: GGUFHeader) -> tuple[bool, ...]:
    """Return for every layer whether it has a recurrent state."""
    if not (header.is_recurrent or header.is_hybrid):
        return (False,) * header.n_layer
    if header.is_recurrent or header.architecture == "falcon-h1":
        return (True,) * header.n_layer
    listed = _per_layer(header, "attention.recurrent_layers")
    if listed is not None:
        return listed
    if isinstance(header.n_head_kv, tuple):
        return tuple(heads == 0 for heads in header.n_head_kv)
    interval = _number(header, "full_attention_interval") or _RECURRENT_INTERVAL
    return tuple((layer + 1) % interval != 0 for layer in range(header.n_layer))


def _widths(header: GGUFHeader) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of one cell's key and value, layer by layer.

    Sliding-window layers count with their whole past: the backend asks llama.cpp for it, which makes them rewindable.
    """
    recurrent = _recurrent_layers(header)
    has_both = header.architecture == "falcon-h1"  # its layers attend and recur
    sliding = _per_layer(header, "attention.sliding_window_pattern") or (False,) * header.n_layer
    own = header.n_layer - _number(header, "attention.shared_kv_layers")
    if header.architecture == "gemma3n":
        own = min(header.n_layer, 20)  # fixed in llama.cpp; later layers look into the cache of earlier ones
    keys: list[int] = []
    values: list[int] = []
    for layer in range(header.n_layer):
        heads = header.n_head_kv[layer] if isinstance(header.n_head_kv, tuple) else header.n_head_kv
        if header.is_recurrent or layer >= own or (recurrent[layer] and not has_both):
            heads = 0
        short = sliding[layer]
        keys.append(heads * ((short and _number(header, "attention.key_length_swa")) or header.head_dim_k))
        values.append(heads * ((short and _number(header, "attention.value_length_swa")) or header.head_dim_v))
    return tuple(keys), tuple(values)


def _states(header: GGUFHeader) -> tuple[int, ...]:
    """Return the bytes of the recurrent state of one sequence, layer by layer (32-bit floats)."""
    heads = header.n_head if isinstance(header.n_head, int) else max(header.n_head, default=0)
    conv, inner = _number(header, "ssm.conv_kernel"), _number(header, "ssm.inner_size")
    state, groups = _number(header, "ssm.state_size"), _number(header, "ssm.group_count")
    wkv, kda, window = _number(header, "wkv.head_size"), _number(header, "kda.head_dim"), _number(header, "shortconv.l_cache")
    if wkv:
        numbers = (_number(header, "token_shift_count") or 2) * header.n_embd + header.n_embd * wkv
    elif window:
        numbers = header.n_embd * (window - 1)
    elif kda:
        numbers = 3 * max(conv - 1, 3 if not conv else 0) * heads * kda + kda * kda * heads
    else:
        numbers = max(conv - 1, 0) * (inner + 2 * groups * state) + state * inner
    return tuple(4 * numbers if recurrent else 0 for recurrent in _recurrent_layers(header))


def is_smaller(one: str, other: str) -> bool:
    """Return whether keys and values of one type take less memory than those of another."""
    (n_ours, ours), (n_theirs, theirs) = KV_BLOCKS[one], KV_BLOCKS[other]
    return ours * n_theirs < theirs * n_ours
