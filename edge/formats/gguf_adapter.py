"""LoRA adapters as GGUF files, read without trust and compared with the model that they are to change.

llama.cpp asserts some of this and ignores the rest, so everything is checked before it sees the file.

Source: `llama_adapter_lora_init_impl` of llama.cpp, whose refusals are kept.
"""

from __future__ import annotations

from pathlib import Path

from edge.adapters import Adapter
from edge.errors import ModelFileError
from edge.formats.gguf import read_header
from edge.formats.gguf_header import GGUFHeader, TensorInfo, quote

__all__ = ["check_fit", "check_is_adapter", "read_adapter"]

_A, _B, _NORM = ".lora_a", ".lora_b", "_norm.weight"
_ALPHA, _INVOCATION = "adapter.lora.alpha", "adapter.alora.invocation_tokens"
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_MAX_RANK = 8192  # more than a matrix of any model here could use
_TRAINED_ON = "Give the model that it was trained on."


def read_adapter(path: Path, model: GGUFHeader, *, name: str, scale: float, sha256: str = "") -> Adapter:
    """Read the header of an adapter, and check that the model can be computed with it.

    Args:
        path: a GGUF file. It is not trusted.
        model: header of the model.
        name, scale, sha256: as in `Adapter`.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelFileError: it is damaged, not a LoRA adapter, or one of another model.
    """
    header = read_header(path)
    check_is_adapter(header, path.name)
    pairs = check_fit(header, model, path.name)
    return Adapter(
        name=name,
        path=path,
        scale=scale,
        sha256=sha256,
        size_bytes=sum(one.size_bytes for pair in pairs.values() for one in pair),
        rank=max(_rank(target, a) for target, (a, _) in pairs.items()),
        n_changed=len(pairs),
    )


def check_is_adapter(header: GGUFHeader, where: str) -> None:
    """Refuse a GGUF file that is not a LoRA adapter, or of a kind that is applied in another way.

    Args:
        header: of the file.
        where: its name, for messages.

    Raises:
        ModelFileError: it is.
    """
    if header.kind != "adapter":
        raise ModelFileError(
            f"{where} is not an adapter: it calls itself a {quote(header.kind)}.", "To run a model, give it with --model."
        )
    kind = header.metadata.get("adapter.type", "")
    if kind != "lora":
        raise ModelFileError(f"{where} is an adapter of the type {quote(kind)}.", "Only LoRA adapters can be applied.")
    if _INVOCATION in header.metadata:
        raise ModelFileError(
            f"{where} is an activated LoRA (aLoRA), which works from a certain text on; edge applies adapters to all of it.",
            "Run it with llama.cpp's own server.",
        )
    alpha = header.metadata.get(_ALPHA, 0.0)
    if not isinstance(alpha, float) or not abs(alpha) < 1e6:  # llama.cpp ends the process where it is not a float
        raise ModelFileError(f"{where} has the alpha {quote(alpha)}, which is not a number for one.", "Convert it again.")


def check_fit(header: GGUFHeader, model: GGUFHeader, where: str) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """Return the pairs of matrices of an adapter by the matrix of the model that they change.

    Args:
        header: of the adapter.
        model: header of the model.
        where: the adapter's name, for messages.

    Raises:
        ModelFileError: it is of another model, lacks a matrix, or changes one that llama.cpp cannot change.
    """
    if header.architecture != model.architecture:
        raise ModelFileError(
            f"{where} is for models of the architecture {quote(header.architecture)}; this one is {quote(model.architecture)}.",
            _TRAINED_ON,
        )
    pairs = _pairs(header, where)
    theirs = {tensor.name: tensor for tensor in model.tensors}
    for target, (a, b) in pairs.items():
        if target not in theirs:
            if target == _OUTPUT and _EMBEDDING in theirs:
                raise ModelFileError(
                    f"{where} changes the output matrix, which is the embedding itself in this model.",
                    "Merge it: edge convert MODEL --lora FOLDER",
                )
            raise ModelFileError(f"{where} changes {quote(target)}, which this model does not have.", _TRAINED_ON)
        if target == _EMBEDDING and _OUTPUT not in theirs:
            raise ModelFileError(
                f"{where} changes the embedding, which is also the output matrix of this model; llama.cpp cannot compute that.",
                "Merge it: edge convert MODEL --lora FOLDER",
            )
        _check_shapes(target, a, b, theirs[target].shape, where)
    return pairs


def _pairs(header: GGUFHeader, where: str) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    found: dict[str, dict[str, TensorInfo]] = {}
    for tensor in header.tensors:
        end = next((end for end in (_A, _B) if tensor.name.endswith(end)), "")
        if end:
            found.setdefault(tensor.name.removesuffix(end), {})[end] = tensor
        elif not tensor.name.endswith(_NORM):
            raise ModelFileError(
                f"{where} has the tensor {quote(tensor.name)}, which is not part of a LoRA adapter.", "Convert it again."
            )
    if not found:
        raise ModelFileError(f"{where} changes nothing: it holds no matrices.", "Convert it again.")
    for target, pair in found.items():
        if len(pair) != 2:
            raise ModelFileError(f"{where} lacks one of the two matrices for {quote(target)}.", "Convert it again.")
    return {target: (pair[_A], pair[_B]) for target, pair in found.items()}


def _rank(target: str, a: TensorInfo) -> int:
    return a.shape[0] if target == _EMBEDDING else a.shape[1]


def _check_shapes(target: str, a: TensorInfo, b: TensorInfo, shape: tuple[int, ...], where: str) -> None:
    """Compare a pair with the matrix that it changes. All shapes are in ggml's order: [columns, rows, experts]."""
    is_flat = len(shape) >= 2 and len(a.shape) == len(b.shape) == len(shape)
    if is_flat and target == _EMBEDDING:  # its rows are looked up, so that one is stored transposed
        is_fitting = (a.shape[1], b.shape[1]) == (shape[1], shape[0]) and a.shape[0] == b.shape[0]
    else:
        is_fitting = is_flat and (a.shape[0], b.shape[1]) == shape[:2] and a.shape[1] == b.shape[0]
    if not is_fitting or a.shape[2:] != shape[2:] or b.shape[2:] != shape[2:]:
        made_for = f"{list(a.shape)} and {list(b.shape)}"
        raise ModelFileError(
            f"{where} has matrices of {made_for} for {quote(target)}, which is {list(shape)} in this model.", _TRAINED_ON
        )
    if not 0 < _rank(target, a) <= _MAX_RANK:
        rank = f"a rank of {_rank(target, a):,} for {quote(target)}"
        raise ModelFileError(f"{where} claims {rank}: it is damaged.", "Convert it again.")
