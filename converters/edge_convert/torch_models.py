"""Checkpoints as torch models, for all that compute with them in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from edge_convert.tokenizer_files import library_reads

__all__ = ["layer_calls", "layer_output", "layers_of", "load_model"]


def load_model(folder: Path, dtype: Any, **options: Any) -> Any:
    """Load a checkpoint as a transformers model for inference; `options` are those of `from_pretrained`.

    Raises:
        ModelFileError: transformers cannot load it.
    """
    transformers.utils.logging.disable_progress_bar()
    with library_reads(f"The model {folder.name}"):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **options)
    return model.eval()


def layers_of(model: Any) -> Any:
    """Return the list of a model's layers."""
    return model.base_model.layers


def layer_calls(model: Any, tokens: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Run a model once to record how it calls its layers: masks and rotary tables differ between layers and models.

    Args:
        model: from `load_model`.
        tokens: int64 [n, window].

    Returns:
        The hidden state before the first layer, and the other arguments of each layer.
    """
    hidden: list[Any] = []
    arguments: list[dict[str, Any]] = []

    def hook(_module: Any, args: Any, keywords: dict[str, Any]) -> None:
        if not hidden:
            hidden.append(args[0] if args else keywords["hidden_states"])
        arguments.append({name: value for name, value in keywords.items() if name != "hidden_states"})

    hooks = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers_of(model)]
    try:
        model.base_model(input_ids=tokens, use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    return hidden[0], arguments


def layer_output(output: Any) -> Any:
    """Return the hidden state out of a layer's output, a tuple in some versions of transformers."""
    return output[0] if isinstance(output, tuple) else output
