"""The numbers of a model, from the metadata of its GGUF file. The file is not trusted: numbers that cannot be are refused."""

from __future__ import annotations

import math
from pathlib import Path

from edge.errors import ModelFileError
from edge.formats.gguf_header import ArrayInfo, GGUFHeader, TensorInfo, Value, quote
from edge.formats.gguf_tables import FILE_TYPE_GUESSED, FILE_TYPES

__all__ = ["Facts"]

_MAX_HYPERPARAMETER = 2**31 - 1
# More than llama.cpp allows (512 and 1,024); the plan loops over layers, and llama.cpp allocates a name for every token.
_MAX_LAYERS = 4096
_MAX_EXPERTS = 65_536
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_NORM_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.group_norm_epsilon")


class Facts:
    """The model's dimensions, extracted from the metadata, and checked for what a plan and llama.cpp do with them.

    Args:
        path: the file, for messages.
        file_bytes: its size.
        metadata, tensors: as in `GGUFHeader`.
        max_tokens: more than the vocabulary of any model has.

    Raises:
        ModelFileError: the file does not say which architecture it is.
    """

    def __init__(
        self, path: Path, file_bytes: int, metadata: dict[str, Value], tensors: list[TensorInfo], max_tokens: int
    ) -> None:
        self._path, self._file_bytes, self._max_tokens = path, file_bytes, max_tokens
        self.metadata = metadata
        self.tensors = tensors
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise self.error("does not say which architecture it is (general.architecture)", "It is not a language model.")
        self.architecture = architecture

    def error(self, what: str, hint: str = "Download it again.") -> ModelFileError:
        """Return the error for a header that says what cannot be, or what edge cannot use."""
        return ModelFileError(f"{self._path.name} {what}.", hint)

    def header(self, version: int, data_offset: int) -> GGUFHeader:
        """Return the header.

        Args:
            version, data_offset: as in `GGUFHeader`.

        Raises:
            ModelFileError: a number is one that no model has.
        """
        n_layer = self._n_layer()
        self._check_values(n_layer)
        n_embd = self._number("embedding_length")
        n_head = self._per_layer("attention.head_count", n_layer, 0)
        n_head_kv = self._per_layer("attention.head_count_kv", n_layer, n_head)
        most_heads = max(n_head) if isinstance(n_head, tuple) else n_head
        head_dim = n_embd // most_heads if most_heads else 0
        template = self.metadata.get("tokenizer.chat_template")
        name = self.metadata.get("general.name")
        has_state = any(self._has(part) for part in ("ssm.", "wkv.", "shortconv.", "kda."))
        has_attention = not self._has("wkv.") and (any(n_head_kv) if isinstance(n_head_kv, tuple) else n_head_kv > 0)
        return GGUFHeader(
            version=version,
            metadata=self.metadata,
            tensors=tuple(self.tensors),
            data_offset=data_offset,
            file_bytes=self._file_bytes,
            architecture=self.architecture,
            name=name if isinstance(name, str) else "",
            n_layer=n_layer,
            n_head=n_head,
            n_head_kv=n_head_kv,
            head_dim_k=self._number("attention.key_length", head_dim),
            head_dim_v=self._number("attention.value_length", head_dim),
            n_embd=n_embd,
            n_ctx_train=self._number("context_length"),
            n_vocab=self._n_vocab(),
            sliding_window=self._number("attention.sliding_window") or None,
            chat_template=template if isinstance(template, str) and template else None,
            file_type=self._file_type(),
            n_params=sum(math.prod(tensor.shape) for tensor in self.tensors),
            tensors_bytes=sum(tensor.size_bytes for tensor in self.tensors),
            is_recurrent=has_state and not has_attention,
            is_hybrid=has_state and has_attention,
        )

    def _has(self, part: str) -> bool:
        prefix = f"{self.architecture}.{part}"
        return any(key.startswith(prefix) for key in self.metadata)

    def _n_layer(self) -> int:
        """Return the number of blocks. Each has a tensor at least, unless the file holds a vocabulary only."""
        n_layer, n_tensors = self._number("block_count"), len(self.tensors)
        if n_layer > (min(n_tensors, _MAX_LAYERS) if n_tensors else _MAX_LAYERS):
            raise self.error(f"claims {n_layer:,} layers, and has {n_tensors:,} tensors: it is damaged")
        return n_layer

    def _check_values(self, n_layer: int) -> None:
        """Refuse numbers that cannot be: llama.cpp ends the process at them, or allocates by them."""
        for key in _NORM_EPSILONS:
            value = self.metadata.get(f"{self.architecture}.{key}")
            if isinstance(value, float) and not 0 <= value < math.inf:
                raise self.error(f"has {value} as {self.architecture[:40]}.{key}, which no norm can be computed with")
        scaling = self.metadata.get(f"{self.architecture}.rope.scaling.type", "none")
        if isinstance(scaling, str) and scaling not in _ROPE_SCALINGS:
            raise self.error(
                f"scales its positions by {quote(scaling)}, which is not known here",
                f"Known are {', '.join(_ROPE_SCALINGS)}. A newer edge may know it; otherwise choose another model.",
            )
        nextn = self._number("nextn_predict_layers")
        if nextn > n_layer:
            raise self.error(f"claims {nextn:,} layers that predict further tokens, and has {n_layer} layers: it is damaged")
        for what, count, limit in (
            ("tokens", self._number("vocab_size"), self._max_tokens),
            ("experts", self._number("expert_count"), _MAX_EXPERTS),
        ):
            if count > limit:
                raise self.error(f"claims {count:,} {what}, more than any model has: it is damaged")
        self._check_experts(n_layer)

    def _check_experts(self, n_layer: int) -> None:
        n_experts, used = self._number("expert_count"), self._per_layer("expert_used_count", n_layer, 0)
        most_used = max(used, default=0) if isinstance(used, tuple) else used
        if self.architecture.startswith("hunyuan") and n_experts <= 1:
            return  # llama.cpp reads these as models without experts
        if most_used > n_experts or (n_experts and not most_used):
            raise self.error(f"uses {most_used:,} of {n_experts:,} experts, which is not possible: it is damaged")

    def _number(self, key: str, default: int = 0) -> int:
        return self._checked(key, self.metadata.get(f"{self.architecture}.{key}", default))

    def _checked(self, key: str, value: Value) -> int:
        if type(value) is not int or not 0 <= value <= _MAX_HYPERPARAMETER:
            raise self.error(
                f"has {quote(value)} as {self.architecture[:40]}.{key}, which is not a usable number: it is damaged"
            )
        return value

    def _per_layer(self, key: str, n_layer: int, default: int | tuple[int, ...]) -> int | tuple[int, ...]:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, tuple):
            return self._checked(key, value)
        if len(value) != n_layer:
            raise self.error(f"has {len(value)} values of {key} for {n_layer} layers: it is damaged")
        return tuple(self._checked(key, item) for item in value)

    def _n_vocab(self) -> int:
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, ArrayInfo):
            return tokens.length
        if isinstance(tokens, tuple) and tokens:
            return len(tokens)
        embedding = next((tensor for tensor in self.tensors if tensor.name == "token_embd.weight"), None)
        default = embedding.shape[1] if embedding and len(embedding.shape) > 1 else 0
        return self._number("vocab_size", default)

    def _file_type(self) -> str:
        code = self.metadata.get("general.file_type")
        if type(code) is int and code & ~FILE_TYPE_GUESSED in FILE_TYPES:
            return FILE_TYPES[code & ~FILE_TYPE_GUESSED]
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size_bytes
        return max(sizes, key=lambda name: sizes[name]) if sizes else ""
