"""Runs the checkpoint over some text, layer by layer, to see what each matrix is fed with while it is being quantised.

Source: GPTQ (Frantar et al. 2022): each layer is fed by the layers before it as they were quantised, so their error is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ModelFileError, UsageError
from edge_convert.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .weights import Weight

__all__ = ["calibration_tokens", "load_reference", "walk_layers"]

N_TOKENS = 256
"""Tokens of one piece of calibration text."""
_N_PIECES = 16
_BATCH = 4
Quantise = Callable[[str, "NDArray[np.float32]", "NDArray[np.float32]"], "Weight"]


def load_reference(folder: Path) -> Any:
    """The checkpoint as a transformers model that computes in float32, for inference.

    Its weights stay in the type and in the file that they are in; each is widened for the moment in which it is used.

    Raises:
        ModelFileError: the checkpoint is damaged, or transformers cannot load it.
    """
    import torch

    dtypes = {info.dtype for info in open_checkpoint(folder).tensors.values()}
    own = {"BF16": torch.bfloat16, "F16": torch.float16}.get(dtypes.pop()) if len(dtypes) == 1 else None
    if own is not None:
        model = _load(folder, own)
        # Constants that a model computes for itself would be rounded to its weights' type (Gemma 3 has one).
        if all(buffer.dtype == torch.float32 for buffer in model.buffers() if buffer.is_floating_point()):
            return _widened(model)
    return _load(folder, torch.float32)


def _load(folder: Path, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{folder} cannot be loaded: {error}", "Download the checkpoint again.") from error
    return model.eval()


def _widened(model: Any) -> Any:
    """Let each module hold its weights in float32 while it computes, and only then."""
    narrow: dict[Any, list[Any]] = {}

    def widen(module: Any, _args: Any) -> None:
        narrow[module] = [parameter.data for parameter in module.parameters(recurse=False)]
        _to_float32(module, recurse=False)

    def restore(module: Any, _args: Any, _output: Any) -> None:
        for parameter, data in zip(module.parameters(recurse=False), narrow.pop(module), strict=True):
            parameter.data = data

    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(widen)
            module.register_forward_hook(restore)
    return model


def _to_float32(module: Any, *, recurse: bool) -> None:
    import torch

    with torch.inference_mode(False):  # what is made within it could not take the place of a weight
        for parameter in module.parameters(recurse=recurse):
            parameter.data = parameter.data.float()


def calibration_tokens(folder: Path, model: Any, text: Path | None) -> NDArray[np.int64]:
    """Pieces from all over a text, each with the tokens that its tokenizer begins a text with.

    Args:
        folder: the checkpoint, for its tokenizer.
        model: from `load_reference`.
        text: a file in UTF-8; the text that comes with edge where it is None.

    Returns:
        Token ids [pieces, tokens].

    Raises:
        UsageError: the file cannot be read, or is too short for one piece.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = resources.files("edge_convert") / "calibration.txt" if text is None else text
    try:
        content = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The calibration text {text} cannot be read: {error}.", "Give a text file in UTF-8.") from error
    ids = tokenizer(content, add_special_tokens=False)["input_ids"]
    opening = [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []
    n_tokens = min(N_TOKENS, model.config.max_position_embeddings) - len(opening)
    n_pieces = min(len(ids) // n_tokens, _N_PIECES)
    if n_pieces == 0:
        raise UsageError(
            f"The calibration text {text} has only {len(ids)} tokens.",
            f"Give one of {n_tokens} to {n_tokens * _N_PIECES} tokens.",
        )
    starts = np.linspace(0, len(ids) - n_tokens, n_pieces).astype(np.intp)
    return np.array([opening + ids[start : start + n_tokens] for start in starts], np.int64)


def walk_layers(model: Any, tokens: NDArray[np.int64], quantise: Quantise, on_progress: Callable[[float], None]) -> None:
    """Quantise the linear layers of a model in order, each with the second moments of what it is fed.

    Args:
        model: from `load_reference`; the matrices of its layers are gone afterwards.
        tokens: [pieces, tokens].
        quantise: (name of the matrix, float32 [rows, columns], second moments [columns, columns]) -> its encoding.
        on_progress: called with the share of layers done.
    """
    import torch

    with torch.inference_mode():
        batches = _layer_inputs(model, torch.from_numpy(tokens).split(_BATCH))
        for index, layer in enumerate(model.model.layers):
            _take(layer)
            moments = _second_moments(layer, batches, index)
            for name, module in layer.named_modules():
                if isinstance(module, torch.nn.Linear):
                    weight = quantise(f"model.layers.{index}.{name}", module.weight.numpy(), moments[_shared_input(name)])
                    module.weight.copy_(torch.from_numpy(weight.dequantise()))
            for batch in batches:
                batch.hidden = _hidden(layer(batch.hidden, **batch.arguments[index]))
                batch.arguments[index] = {}
            _drop(layer)
            on_progress((index + 1) / len(model.model.layers))


def _take(layer: Any) -> None:
    """Give a layer weights of its own, in float32: writing into those of the file would copy each page that is hit."""
    import torch

    with torch.inference_mode(False):
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(torch.float32, copy=True)


def _drop(layer: Any) -> None:
    """Let go of the matrices of a layer that nothing will run through any more."""
    import torch

    with torch.inference_mode(False):
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = torch.empty(0)


class _Batch:
    """Hidden states of some pieces on their way through the layers, and what else each layer is called with."""

    def __init__(self) -> None:
        self.hidden: Any = None
        self.arguments: list[dict[str, Any]] = []


def _layer_inputs(model: Any, batches: Any) -> list[_Batch]:
    """Run the model once and keep what its layers are called with: masks and rotary tables differ between layers and models."""
    found = []
    for tokens in batches:
        batch = _Batch()

        def keep(_module: Any, args: Any, kwargs: dict[str, Any], batch: _Batch = batch) -> None:
            if batch.hidden is None:
                batch.hidden = args[0] if args else kwargs["hidden_states"]
            batch.arguments.append({key: value for key, value in kwargs.items() if key != "hidden_states"})

        hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in model.model.layers]
        try:
            model.model(tokens, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        found.append(batch)
    return found


def _second_moments(layer: Any, batches: list[_Batch], index: int) -> dict[str, NDArray[np.float32]]:
    import torch

    sums: dict[str, Any] = {}
    n_seen: dict[str, int] = {}

    def add(key: str) -> Callable[[Any, Any], None]:
        def hook(_module: Any, args: Any) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            sums[key] = sums[key] + x.T @ x if key in sums else x.T @ x
            n_seen[key] = n_seen.get(key, 0) + len(x)

        return hook

    linears = {name: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
    first_of = {_shared_input(name): module for name, module in reversed(linears.items())}
    hooks = [module.register_forward_pre_hook(add(key)) for key, module in first_of.items()]
    try:
        for batch in batches:
            layer(batch.hidden, **batch.arguments[index])
    finally:
        for hook in hooks:
            hook.remove()
    return {key: (total / n_seen[key]).numpy() for key, total in sums.items()}


def _shared_input(name: str) -> str:
    """Linears that are fed with the same thing have the same key."""
    return {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}.get(
        name.rsplit(".", 1)[-1], name.rsplit(".", 1)[-1]
    )


def _hidden(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
