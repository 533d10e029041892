"""Opens teachers and students, cuts them to some of their layers, and saves them as checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edge_convert.checkpoint import SOURCE_NOTE, Checkpoint
from edge_convert.smaller.loss import Head
from edge_convert.smaller.vocabulary import trim_checkpoint
from edge_convert.tokenizer_files import remove_rowless
from edge_convert.torch_device import compute_device
from edge_convert.torch_models import layers_of, load_model

__all__ = ["copy_student", "head_of", "keep_layers", "keep_tokens", "layer_kinds", "open_model", "save_model"]


def open_model(folder: Path, dtype: str = "bfloat16") -> Any:
    """Load a checkpoint as a frozen transformers model that keeps no KV, on the device of this process.

    What meets the model has to be on `model.device`.

    Raises:
        ModelFileError: transformers cannot load it.
        BackendUnavailableError: the device that was asked for is not there.
    """
    model = load_model(folder, getattr(torch, dtype)).to(compute_device())
    model.config.use_cache = False
    model.requires_grad_(False)
    return model


def head_of(model: Any) -> Head:
    """Return the head of a model."""
    head = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)
    divisor = getattr(model.config, "logits_scaling", None) or 1.0
    weight = head.weight.detach()
    return Head(weight if divisor == 1.0 else weight / divisor, cap=cap, bias=None if head.bias is None else head.bias.detach())


def layer_kinds(config: Any) -> tuple[str, ...]:
    """Return the kind of attention of each layer."""
    kinds = getattr(config, "layer_types", None)
    return tuple(kinds) if kinds else ("full_attention",) * int(config.num_hidden_layers)


def keep_layers(model: Any, kept: Sequence[int]) -> Any:
    """Cut a model in place to the layers of these numbers, ascending."""
    kinds = layer_kinds(model.config)
    layers = layers_of(model)
    model.base_model.layers = torch.nn.ModuleList([layers[index] for index in kept])
    for place, layer in enumerate(layers_of(model)):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[index] for index in kept]
    return model


def keep_tokens(model: Any, kept: Sequence[int]) -> Any:
    """Cut the embedding and the head of a model in place to the tokens of these numbers, ascending."""
    modules = {id(module): module for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    rows = torch.tensor(list(kept), device=model.device)
    cut: dict[int, Any] = {}
    for module in modules.values():
        old = module.weight
        if id(old) not in cut:  # a head may be tied to the embedding
            cut[id(old)] = torch.nn.Parameter(old[rows].clone(), requires_grad=False)
        module.weight = cut[id(old)]
        if getattr(module, "bias", None) is not None:
            module.bias = torch.nn.Parameter(module.bias[rows].clone(), requires_grad=False)
    model.get_input_embeddings().num_embeddings = model.get_output_embeddings().out_features = len(kept)
    model.get_input_embeddings().padding_idx = None
    model.config.vocab_size = len(kept)
    return model


def copy_student(source: Path, folder: Path) -> None:
    """Copy a student that `save_model` wrote, with the choice of its layers, into another folder."""
    for path in source.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def save_model(model: Any, folder: Path, source: Checkpoint, name: str, kept_tokens: Sequence[int] | None = None) -> None:
    """Save a model as a checkpoint folder, with the tokenizer and template of its source.

    Args:
        model: saved in its dtype.
        folder: made if needed.
        source: for tokenizer, template and licence.
        name: of the new model.
        kept_tokens: ids of the source's tokens that stay, ascending; None if all do.
    """
    model.save_pretrained(folder, max_shard_size="4GB")
    config = json.loads((folder / "config.json").read_bytes())
    if kept_tokens is None:
        for file in source.tokenizer_files:
            shutil.copyfile(source.folder / file, folder / file)
        remove_rowless(folder, source.model.n_vocab)
    else:
        config = trim_checkpoint(source.folder, folder, source.tokenizer_files, config, kept_tokens)
    config["architectures"] = [source.architecture.name]  # the class that loaded it may be a parent of that
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    note = {"source": name, "licence": source.licence, "source_quantised": None}
    (folder / SOURCE_NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
