"""Runs a checkpoint over a calibration text, layer by layer, and measures the inputs of each matrix while it is quantised.

Source: GPTQ (Frantar et al. 2022): each layer gets its inputs from the quantised layers before it, so their error counts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import UsageError
from edge_convert.gguf.imatrix import read_calibration
from edge_convert.tokenizer_files import load_tokenizer
from edge_convert.torch_models import layer_calls, layer_output, layers_of, load_float32

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
    """Load a checkpoint as a transformers model that computes in float32 on the CPU, with attention that hooks can follow.

    Raises:
        ModelFileError: the checkpoint is damaged, or transformers cannot load it.
    """
    return load_float32(folder, attn_implementation="eager")


def calibration_tokens(folder: Path, model: Any, text: Path | None) -> NDArray[np.int64]:
    """Tokenise pieces from all over a text, each with the tokenizer's beginning tokens.

    Args:
        folder: the checkpoint, for its tokenizer.
        model: from `load_reference`.
        text: a file in UTF-8; None is the text that ships with edge.

    Returns:
        Token ids [pieces, tokens].

    Raises:
        UsageError: the file cannot be read, or is too short for one piece.
    """
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(read_calibration(text), add_special_tokens=False)["input_ids"]
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
    """Quantise the linear layers of a model in order, each with the second moments of its inputs.

    Args:
        model: from `load_reference`; the matrices of its layers are gone afterwards.
        tokens: [pieces, tokens].
        quantise: (name of the matrix, float32 [rows, columns], second moments [columns, columns]) -> its encoding.
        on_progress: called with the share of layers done.
    """
    import torch

    with torch.inference_mode():
        batches = [layer_calls(model, part) for part in torch.from_numpy(tokens).split(_BATCH)]
        hidden, calls = [first for first, _ in batches], [arguments for _, arguments in batches]
        for index, layer in enumerate(layers_of(model)):
            _own_weights(layer)
            arguments = [call[index] for call in calls]
            moments = _second_moments(layer, hidden, arguments)
            for name, module in layer.named_modules():
                if isinstance(module, torch.nn.Linear):
                    weight = quantise(f"model.layers.{index}.{name}", module.weight.numpy(), moments[_shared_input(name)])
                    module.weight.copy_(torch.from_numpy(weight.dequantise()))
            hidden = [layer_output(layer(part, **call)) for part, call in zip(hidden, arguments, strict=True)]
            for call in calls:
                call[index] = {}
            _drop_matrices(layer)
            on_progress((index + 1) / len(layers_of(model)))


def _own_weights(layer: Any) -> None:
    """Give a layer weights of its own, in float32: writing into those of the file would copy its pages."""
    import torch

    with torch.inference_mode(False):
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(torch.float32, copy=True)


def _drop_matrices(layer: Any) -> None:
    """Release the matrices of a finished layer."""
    import torch

    with torch.inference_mode(False):
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = torch.empty(0)


def _second_moments(layer: Any, hidden: list[Any], arguments: list[dict[str, Any]]) -> dict[str, NDArray[np.float32]]:
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
        for part, call in zip(hidden, arguments, strict=True):
            layer(part, **call)
    finally:
        for handle in hooks:
            handle.remove()
    return {key: (total / n_seen[key]).numpy() for key, total in sums.items()}


def _shared_input(name: str) -> str:
    """Return the same key for linears with the same input."""
    return {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}.get(
        name.rsplit(".", 1)[-1], name.rsplit(".", 1)[-1]
    )
