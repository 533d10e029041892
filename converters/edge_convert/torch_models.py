"""Checkpoints as torch models, for all that compute with them in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from edge_convert.checkpoint import open_checkpoint
from edge_convert.tokenizer_files import library_reads

__all__ = ["layer_calls", "layer_output", "layers_of", "load_float32", "load_model"]


def load_model(folder: Path, dtype: Any, **options: Any) -> Any:
    """Load a checkpoint as a transformers model for inference on the CPU; `options` are those of `from_pretrained`.

    Raises:
        ModelFileError: transformers cannot load it.
    """
    transformers.utils.logging.disable_progress_bar()
    with library_reads(f"The model {folder.name}"):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **options)
    return model.eval()


def load_float32(folder: Path, device: Any = None, **options: Any) -> Any:
    """Load a checkpoint as a transformers model that computes in float32.

    On the CPU, weights stay in their type and file; each is widened while it is used. A model that computes constants of its
    own (Gemma) is widened as a whole, since its type would round them.

    Args:
        folder: the checkpoint.
        device: to compute on; None is the CPU.
        options: those of `from_pretrained`.

    Raises:
        ModelFileError: the checkpoint is damaged, or transformers cannot load it.
    """
    is_host = device is None or device.type == "cpu"
    dtypes = {info.dtype for info in open_checkpoint(folder).tensors.values()} if is_host else set()
    own = {"BF16": torch.bfloat16, "F16": torch.float16}.get(dtypes.pop()) if len(dtypes) == 1 else None
    if own is not None:
        model = load_model(folder, own, **options)
        if all(buffer.dtype == torch.float32 for buffer in model.buffers() if buffer.is_floating_point()):
            return _widened(model)
    model = load_model(folder, torch.float32, **options)
    return model if is_host else model.to(device)


def _widened(model: Any) -> Any:
    """Let each module hold its weights in float32 only while it computes; of an embedding, only the rows that it gives."""
    narrow: dict[Any, list[Any]] = {}

    def widen(module: Any, _args: Any) -> None:
        narrow[module] = [parameter.data for parameter in module.parameters(recurse=False)]
        with torch.inference_mode(False):  # a tensor made within it could not replace a weight
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()

    def restore(module: Any, _args: Any, _output: Any) -> None:
        for parameter, data in zip(module.parameters(recurse=False), narrow.pop(module), strict=True):
            parameter.data = data

    for module in model.modules():
        if type(module) is torch.nn.Embedding:
            module.register_forward_hook(lambda _module, _args, output: output.float())
        elif next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(widen)
            module.register_forward_hook(restore)
    return model


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
