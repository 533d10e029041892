"""Merges a LoRA adapter into its checkpoint with peft, after a check that the two belong together.

Only safetensors: an adapter that is a pickle could run any code when it is opened.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import msgspec

from edge import files
from edge.errors import BackendUnavailableError, ModelFileError, ModelNotFoundError
from edge.units import one_line, short_name
from edge_convert.checkpoint import PICKLES, Checkpoint, check_path, open_checkpoint
from edge_convert.smaller.lora_targets import AdapterConfig, changed_modules, whole_tensors

__all__ = ["Adapter", "merge", "open_adapter"]

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_MATRICES = {"A.weight", "embedding_A"}
_PREFIX = "base_model.model."
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter folder.

    Attributes:
        folder: its path.
        rank: of its matrices.
        shapes: tensor name in the file -> shape.
        n_bytes: of its weights.
        name: for people.
        config: what it says of the modules that it changes.
    """

    folder: Path
    rank: int
    shapes: dict[str, tuple[int, ...]]
    n_bytes: int
    name: str
    config: AdapterConfig = AdapterConfig()

    @property
    def files(self) -> tuple[Path, ...]:
        """Its files."""
        return self.folder / _CONFIG, self.folder / _WEIGHTS


def open_adapter(folder: Path, name: str = "") -> Adapter:
    """Open an adapter without loading its weights.

    Args:
        folder: that peft saved.
        name: for people; "" is the folder's.

    Raises:
        ModelNotFoundError: there is no such folder.
        ModelFileError: it is not a LoRA adapter, a pickle, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not files.exists(folder) or not folder.is_dir():
        raise ModelNotFoundError(
            f"There is no folder {folder}.", f"Give the folder of an adapter, with its {_CONFIG}, or hf:owner/repo."
        )
    check_path(folder)
    name = short_name(name or folder.resolve().name) or "adapter"
    if not (folder / _CONFIG).is_file():
        raise ModelFileError(f"{folder} has no {_CONFIG}, so it is not an adapter.", "Give the folder that peft saved.")
    config = files.read_json(folder / _CONFIG, AdapterConfig)
    if config.peft_type != "LORA":
        kind = one_line(str(config.peft_type))[:40]
        raise ModelFileError(f"{name} is an adapter of the type {kind}.", "Only LoRA adapters can be merged.")
    if not (folder / _WEIGHTS).is_file():
        if any(path.suffix in PICKLES for path in folder.iterdir()):
            raise ModelFileError(
                f"{name} holds its weights as pickle, which can run any code when it is opened.",
                "Save the adapter as safetensors: model.save_pretrained(FOLDER)",
            )
        raise ModelFileError(f"{name} lacks {_WEIGHTS}.", "Give the folder that peft saved.")
    try:
        with safe_open(str(folder / _WEIGHTS), framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{name}/{_WEIGHTS} is damaged: {error}.", "Copy or save the adapter again.") from error
    if not shapes:
        raise ModelFileError(f"{name}/{_WEIGHTS} holds nothing.", "Save the adapter again.")
    return Adapter(
        folder=folder,
        rank=config.r or 0,
        shapes=shapes,
        n_bytes=(folder / _WEIGHTS).stat().st_size,
        name=name,
        config=config,
    )


def check_fit(adapter: Adapter, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse an adapter of another model, whose tensors have these shapes.

    Raises:
        ModelFileError: it changes a matrix that the model does not have, or one of another shape, or it is incomplete.
    """
    _check_complete(adapter, shapes)
    for name, shape in adapter.shapes.items():
        module, part = _module_of(name)
        target = f"{module}.weight" if part else module
        if "trainable_tokens_" in name:
            raise ModelFileError(
                f"{adapter.name} replaces single tokens of the vocabulary (trainable_token_indices).",
                "Merge it with the tool that trained it: model.merge_and_unload(), then save_pretrained(FOLDER).",
            )
        theirs = shapes.get(target)
        if theirs is None and target == "lm_head.weight":
            theirs = shapes.get("model.embed_tokens.weight")
        if theirs is None:
            raise ModelFileError(
                f"{adapter.name} was trained on another model: it changes {module}, which this one does not have.",
                "Name the model that it was trained on.",
            )
        fits = {
            "A.weight": len(theirs) == 2 and shape[-1] == theirs[-1],
            "B.weight": shape[0] == theirs[0],
            "embedding_A": shape[-1] == theirs[0],
            "embedding_B": len(theirs) == 2 and shape[0] == theirs[1],
        }.get(part, bool(part) or shape == theirs)
        if not fits:
            raise ModelFileError(
                f"{adapter.name} was trained on another model: its change of {module} is of the shape {list(shape)}, "
                f"and the matrix here is {list(theirs)}.",
                "Name the model that it was trained on.",
            )


def _module_of(name: str) -> tuple[str, str]:
    """Return the module that a tensor of an adapter belongs to, and which of its matrices it is, "" for a whole module.

    peft saves the changed embedding or head with an adapter on it, as its base_layer.
    """
    module, _, part = name.removeprefix(_PREFIX).partition(".lora_")
    return module.replace(".base_layer", ""), part


def _check_complete(adapter: Adapter, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse an adapter that lacks tensors, which peft would merge in part."""
    parts: dict[str, set[str]] = {}
    for name in adapter.shapes:
        module, part = _module_of(name)
        parts.setdefault(module, set()).add(part)
    for module, found in parts.items():
        for one, other in (("A.weight", "B.weight"), ("embedding_A", "embedding_B")):
            if (one in found) != (other in found):
                lacks = other if one in found else one
                raise ModelFileError(f"{adapter.name} lacks the matrix {lacks} of {module}.", "Save the adapter again.")
    wanted = [(module, _MATRICES) for module in changed_modules(adapter.config, shapes, adapter.name)]
    wanted += [(name, {""}) for name in whole_tensors(adapter.config, shapes)]
    for module, kinds in wanted:
        if not parts.get(module, set()) & kinds:
            raise ModelFileError(
                f"{adapter.name} lacks its change of {module}, which its {_CONFIG} names.", "Save or download it again."
            )


def merge(source: Checkpoint, adapter: Adapter, folder: Path, on_progress: Callable[[float], None]) -> Checkpoint:
    """Merge an adapter into a checkpoint, in float32, and save it in the type of the source.

    Args:
        source: the adapter's model.
        adapter: from `open_adapter`.
        folder: for the result.
        on_progress: called with the share that is done.

    Raises:
        BackendUnavailableError: peft is not installed.
        ModelFileError: the adapter does not fit, or peft cannot merge it.
    """
    import torch

    from edge_convert.smaller.models import save_model
    from edge_convert.torch_models import load_model

    try:
        from peft import PeftModel
    except ImportError as error:
        raise BackendUnavailableError(
            "Merging an adapter needs the package peft, which is not installed.", "pip install 'edge-assistant[distill]'"
        ) from error
    check_fit(adapter, {name: info.shape for name, info in source.tensors.items()})
    model = load_model(source.folder, torch.float32)
    changed = {_module_of(name)[0] for name in adapter.shapes}
    if source.is_tied and changed & {"lm_head", "model.embed_tokens"}:
        # The adapter changes one of the two, and peft would merge it into both.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    on_progress(0.3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses an old name of transformers
            wrapped = PeftModel.from_pretrained(model, str(adapter.folder), torch_device="cpu", local_files_only=True)
        merged = wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"peft cannot merge {adapter.name}: {error}.", "Merge it with the tool that trained it."
        ) from error
    damaged = next((name for name, weight in merged.named_parameters() if not torch.isfinite(weight).all()), None)
    if damaged:
        raise ModelFileError(f"With {adapter.name}, {damaged} is not a number.", "Save or download the adapter again.")
    on_progress(0.7)
    dtype = source.tensors["model.norm.weight"].dtype
    save_model(merged.to(getattr(torch, _DTYPES[dtype])), folder, source, f"{source.name}+{adapter.name}")
    return open_checkpoint(folder)
