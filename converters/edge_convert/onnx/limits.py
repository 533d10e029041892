"""Refuses what onnxruntime-genai's builder (0.18) or onnxruntime's kernels do not have, before anything is done."""

from __future__ import annotations

from edge.errors import ModelFileError
from edge_convert.architectures import Architecture
from edge_convert.model_config import ModelConfig

__all__ = ["check_config"]

_ROPE_KINDS = {
    "LlamaForCausalLM": ("default", "llama3", "linear"),
    "Phi3ForCausalLM": ("default", "longrope"),
}
_OTHER_ROPE_KINDS = ("default", "linear")
_ROTATED = 16


def check_config(model: ModelConfig, architecture: Architecture) -> None:
    """Refuse a model that cannot become ONNX.

    Raises:
        ModelFileError: the builder has no such rotary embedding for this architecture, or a kernel does not take its width.
    """
    if model.rope.kind not in _ROPE_KINDS.get(architecture.name, _OTHER_ROPE_KINDS):
        raise _cannot(f"the builder has no {model.rope.kind} positions for a {architecture.title}")
    if model.n_rotated % _ROTATED:
        raise _cannot(f"{model.n_rotated} numbers of a head are rotated, and the kernels take multiples of {_ROTATED}")


def _cannot(why: str) -> ModelFileError:
    return ModelFileError(f"This variant cannot become ONNX: {why}.", "Convert to another format: --to gguf or --to coreml")
