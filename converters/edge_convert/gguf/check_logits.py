"""Holds a GGUF file without loss to the logits that transformers computes from its checkpoint.

config.json and llama.cpp name the same arithmetic by different keys, and some variants llama.cpp does not have. Whatever is
lost between the two shows here. The reference reads one layer at a time, so models larger than the memory are checked, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edge.errors import ModelFileError
from edge_convert.checkpoint import Checkpoint
from edge_convert.gguf.engine import run_task
from edge_convert.gguf.limits import context_length
from edge_convert.shapes import EMBEDDING, HEAD
from edge_convert.tokenizer_files import library_reads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]

__all__ = ["check_logits", "reference_logits"]

_N_TOKENS = 64
_WINDOW_STEP = 256  # llama.cpp rounds a context up to a multiple
_MOST = {"F32": 0.005, "F16": 0.02, "BF16": 0.05}
"""Type of the matrices -> difference of the logits, as a share of their spread, that rounding explains, with room."""
_ROUNDED = {"F16": torch.float16, "BF16": torch.bfloat16}
_PIECE_BYTES = 64 << 20


def check_logits(gguf: Path, checkpoint: Checkpoint, precision: str, folder: Path) -> float:
    """Compare llama.cpp's logits with those of transformers.

    Args:
        gguf: the file, made from the checkpoint without loss.
        checkpoint: its source.
        precision: type of its matrices: "F32", "F16" or "BF16".
        folder: for a temporary file.

    Returns:
        The root mean square of their difference, as a share of the spread of the logits.

    Raises:
        ModelFileError: they differ by more than rounding, or transformers cannot read the checkpoint.
        BackendError: llama.cpp cannot compute.
    """
    tokens = _tokens(checkpoint)
    path = folder / "logits.npy"
    try:
        run_task("compute_logits", {"model": str(gguf), "tokens": tokens, "out": str(path)})
        ours = np.load(path)
    finally:
        path.unlink(missing_ok=True)
    theirs = reference_logits(checkpoint, tokens, precision)
    difference = _difference(ours, theirs)
    if not difference <= _MOST[precision]:
        raise ModelFileError(
            f"llama.cpp computes other logits from the GGUF than transformers from {checkpoint.name}: they differ by "
            f"{difference:.1%} of their spread, and rounding explains {_MOST[precision]:.1%}.",
            "Its config.json says something that a GGUF cannot. Convert to another format: --to onnx or --to coreml",
        )
    return difference


def reference_logits(checkpoint: Checkpoint, tokens: Sequence[int], precision: str = "F32") -> Logits:
    """Compute the logits of every token by transformers in float32, with one layer in memory at a time.

    Args:
        checkpoint: the model.
        tokens: ids.
        precision: type that the inputs of matrices are rounded to, as llama.cpp rounds them for weights of this type.

    Returns:
        float32 [n_tokens, n_vocab].

    Raises:
        ModelFileError: transformers cannot read the checkpoint.
    """
    import transformers

    with library_reads(f"config.json of {checkpoint.name}"):
        config = transformers.AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        config.pad_token_id, config.tie_word_embeddings = None, False
        config.vocab_size = len(tokens)  # an embedding with the rows of these tokens only
        layers = _Layers(checkpoint, config, precision)
        config.num_hidden_layers = 0
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    base = model.base_model
    del base.layers
    base.layers = layers
    base.config.num_hidden_layers = checkpoint.model.n_layers
    with torch.no_grad():
        base.embed_tokens.weight.copy_(torch.from_numpy(_rows(checkpoint, EMBEDDING, tokens)))
        final_norm = checkpoint.architecture.final_norm
        norm = getattr(base, final_norm.removeprefix("model."))
        norm.weight.copy_(torch.from_numpy(checkpoint.load_f32(f"{final_norm}.weight")))
        hidden = base(input_ids=torch.arange(len(tokens))[None], use_cache=False).last_hidden_state[0]
        if precision in _ROUNDED:
            hidden = hidden.to(_ROUNDED[precision]).float()
        logits = _project(checkpoint, hidden.numpy())
        logits /= np.float32(checkpoint.model.logit_divisor)
    cap = checkpoint.model.final_cap
    return cap * np.tanh(logits / cap) if cap else logits


class _Layers:
    """The layers of a model, each loaded when the forward pass comes to it."""

    def __init__(self, checkpoint: Checkpoint, config: Any, precision: str) -> None:
        import copy

        self._checkpoint, self._dtype = checkpoint, _ROUNDED.get(precision)
        self._config = copy.deepcopy(config)
        self._config._attn_implementation = "eager"
        self._kind = _layer_class(checkpoint)

    def __getitem__(self, index: slice) -> Iterator[Any]:
        return iter(self)

    def __iter__(self) -> Iterator[Any]:
        checkpoint = self._checkpoint
        for number in range(checkpoint.model.n_layers):
            prefix = f"model.layers.{number}."
            with torch.device("meta"):
                layer = self._kind(self._config, number)
            names = [name for name in checkpoint.tensors if name.startswith(prefix)]
            weights = {name.removeprefix(prefix): torch.from_numpy(checkpoint.load_f32(name)) for name in names}
            layer.load_state_dict(_with_joined_experts(weights, checkpoint.model.n_experts), assign=True)
            if self._dtype is not None:
                for module in layer.modules():
                    if isinstance(module, torch.nn.Linear):
                        module.register_forward_pre_hook(self._round)
            yield layer.eval()

    def _round(self, _module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].to(self._dtype).float(), *inputs[1:])


def _with_joined_experts(weights: dict[str, Any], n_experts: int) -> dict[str, Any]:
    """Return the weights of a layer with all experts in two tensors, as transformers computes them."""
    if not n_experts:
        return weights
    parts = {
        part: torch.stack([weights.pop(f"mlp.experts.{expert}.{part}.weight") for expert in range(n_experts)])
        for part in ("gate_proj", "up_proj", "down_proj")
    }
    joined = {"gate_up_proj": torch.cat([parts["gate_proj"], parts["up_proj"]], dim=1), "down_proj": parts["down_proj"]}
    return weights | {f"mlp.experts.{name}": tensor for name, tensor in joined.items()}


def _layer_class(checkpoint: Checkpoint) -> Any:
    import importlib

    architecture = checkpoint.architecture
    module = importlib.import_module(f"transformers.models.{architecture.module}.modeling_{architecture.module}")
    return getattr(module, f"{architecture.classes}DecoderLayer")


def _tokens(checkpoint: Checkpoint) -> list[int]:
    """Return ids for a comparison; LongRoPE's factors depend on the length of the text there, of the context here."""
    model = checkpoint.model
    count = min(_N_TOKENS, context_length(model, checkpoint.architecture))
    if model.rope.kind == "longrope" and model.rope.original_context < _WINDOW_STEP:
        count = min(model.n_positions, max(count, model.rope.original_context + 8))
    drawn = np.random.default_rng(1).integers(0, model.n_vocab, count)
    return [int(token) for token in drawn]


def _rows(checkpoint: Checkpoint, name: str, rows: Sequence[int]) -> Logits:
    """Read some rows of a matrix as float32."""
    wanted = np.asarray(rows)
    found = np.empty((len(rows), checkpoint.tensors[name].shape[1]), np.float32)
    for start, part in _pieces(checkpoint, name):
        inside = (wanted >= start) & (wanted < start + len(part))
        found[inside] = part[wanted[inside] - start]
    return found


def _project(checkpoint: Checkpoint, hidden: Logits) -> Logits:
    """Multiply hidden states by the head."""
    name = EMBEDDING if checkpoint.is_tied else HEAD
    return np.concatenate([hidden @ part.astype(np.float32).T for _, part in _pieces(checkpoint, name)], axis=1)


def _pieces(checkpoint: Checkpoint, name: str) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """Yield some rows of a matrix at a time, with the number of the first."""
    info = checkpoint.tensors[name]
    row_bytes = info.size_bytes // info.shape[0]
    step = max(1, _PIECE_BYTES // row_bytes)
    for number, part in enumerate(checkpoint.parts(name, step * row_bytes)):
        yield number * step, part.reshape(-1, info.shape[1])


def _difference(ours: Logits, theirs: Logits) -> float:
    """Return the root mean square of a difference of logits, as a share of their spread. What all share does not count."""
    one, other = (logits - logits.mean(axis=1, keepdims=True, dtype=np.float64) for logits in (ours, theirs))
    return float(np.sqrt(np.mean((one - other) ** 2) / max(float(np.mean(other**2)), 1e-30)))
