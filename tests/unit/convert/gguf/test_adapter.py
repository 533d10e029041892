"""Adapter folders as GGUF files, held against peft: the model with the adapter computes what peft computes."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

import torch
from safetensors.numpy import load_file, save_file

from edge.catalog.adapters import find_adapters
from edge.config import load_settings
from edge.config.schema import Settings
from edge.errors import ModelFileError
from edge.formats.artifact import open_artifact
from edge.formats.gguf import read_header
from edge_convert.checkpoint import open_checkpoint
from edge_convert.gguf.adapter import cached_gguf
from edge_convert.gguf.tensors import write_gguf
from edge_convert.smaller.models import open_model
from tests.checkpoints import make_checkpoint
from tests.unit.convert.reference import logits_of_gguf, some_tokens

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"]


def settings(tmp_path: Path) -> Settings:
    return load_settings({"paths.cache_dir": str(tmp_path / "cache"), "paths.models_dir": str(tmp_path / "models")})


def tuned(checkpoint: Path, folder: Path, **options: Any) -> Any:
    """Save a random adapter, and return the model that has it."""
    # Three seconds, in which only the worker that comes here would wait.
    peft = pytest.importorskip("peft", reason="needs the extra [distill]: pip install 'edge-assistant[distill]'")
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers for what has another name now
        config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "init_lora_weights": False, "target_modules": LINEAR, **options})
        wrapped = peft.get_peft_model(open_model(checkpoint, "float32"), config)
        wrapped.save_pretrained(folder)
    return wrapped


def logits(model: Any, tokens: list[int]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        found: np.ndarray[Any, Any] = model(torch.tensor([tokens])).logits[0].numpy()
    return found


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"use_rslora": True}),
        ("qwen3", {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"down_proj": 20}}),
        ("gemma3", {}),
        ("phi3", {}),
    ],
)
def test_a_model_with_its_adapter_computes_what_peft_computes(
    kind: str, options: dict[str, Any], tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(kind))
    model = write_gguf(checkpoint, tmp_path / "model.gguf", "F32")
    wrapped = tuned(checkpoint.folder, tmp_path / "tuned", **options)
    [adapter] = find_adapters([f"{tmp_path / 'tuned'}:0.5"], open_artifact(model), settings=settings(tmp_path))
    assert (adapter.name, adapter.scale, adapter.rank) == ("tuned", 0.5, 8 if "rank_pattern" in options else 4)
    tokens = some_tokens(24, checkpoint.model.n_vocab)
    expected, plain = logits(wrapped, tokens), logits_of_gguf(model, tokens, 64)
    found = logits_of_gguf(model, tokens, 64, {adapter.path: 1.0})
    effect = np.abs(expected - plain).max()
    assert effect > 1, "the adapter changes something"
    np.testing.assert_allclose(found, expected, atol=0.002 * effect)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight *= 0.5
    np.testing.assert_allclose(
        logits_of_gguf(model, tokens, 64, {adapter.path: 0.5}), logits(wrapped, tokens), atol=0.002 * effect
    )


def test_the_embedding_and_the_output_matrix_are_changed_apart(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "untied", "mistral"))
    model = write_gguf(checkpoint, tmp_path / "model.gguf", "F32")
    wrapped = tuned(checkpoint.folder, tmp_path / "tuned", target_modules=["embed_tokens", "lm_head"])
    [adapter] = find_adapters([str(tmp_path / "tuned")], open_artifact(model), settings=settings(tmp_path))
    tokens = some_tokens(24, checkpoint.model.n_vocab)
    np.testing.assert_allclose(logits_of_gguf(model, tokens, 64, {adapter.path: 1.0}), logits(wrapped, tokens), atol=2e-3)

    tied = open_checkpoint(make_checkpoint(tmp_path / "tied", "llama"))
    both = open_artifact(write_gguf(tied, tmp_path / "tied.gguf", "F32"))
    for name in ("embed_tokens", "lm_head"):
        tuned(tied.folder, tmp_path / name, target_modules=[name])
        with pytest.raises(ModelFileError, match="embedding") as error:
            find_adapters([str(tmp_path / name)], both, settings=settings(tmp_path))
        assert "edge convert MODEL --lora" in error.value.hint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "a bias"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
    ],
)
def test_what_is_more_than_lora_is_refused(
    options: dict[str, Any], said: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama"))
    model = write_gguf(checkpoint, tmp_path / "model.gguf", "F32")
    tuned(checkpoint.folder, tmp_path / "tuned", **options)
    with pytest.raises(ModelFileError, match=said) as error:
        cached_gguf(tmp_path / "tuned", read_header(model), tmp_path)
    assert "edge convert MODEL --lora" in error.value.hint


@pytest.mark.parametrize(
    ("config", "said"),
    [({"alpha_pattern": {"(": 3}}, "alpha_pattern"), ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"), ({}, "no fitting pair")],
)
def test_a_damaged_folder_is_refused(
    config: dict[str, Any], said: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama"))
    header = read_header(write_gguf(checkpoint, tmp_path / "model.gguf", "F32"))
    tuned(checkpoint.folder, tmp_path / "tuned")
    about, weights = tmp_path / "tuned" / "adapter_config.json", tmp_path / "tuned" / "adapter_model.safetensors"
    about.write_text(json.dumps({**json.loads(about.read_text()), **config}))
    if not config:  # of rank 0
        kept = {name: value[:0] if "lora_A" in name else value[:, :0] for name, value in load_file(weights).items()}
        save_file({name: np.ascontiguousarray(value) for name, value in kept.items()}, weights)
    with pytest.raises(ModelFileError, match=said):
        cached_gguf(tmp_path / "tuned", header, tmp_path)


def test_a_folder_is_converted_once_until_it_changes(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama"))
    header = read_header(write_gguf(checkpoint, tmp_path / "model.gguf", "F32"))
    tuned(checkpoint.folder, tmp_path / "tuned")
    first = cached_gguf(tmp_path / "tuned", header, tmp_path)
    written = first.stat().st_mtime_ns
    shutil.copytree(tmp_path / "tuned", tmp_path / "copy")
    assert cached_gguf(tmp_path / "copy", header, tmp_path) == first
    assert first.stat().st_mtime_ns == written
    config = json.loads((tmp_path / "tuned" / "adapter_config.json").read_text())
    (tmp_path / "tuned" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 12}))
    second = cached_gguf(tmp_path / "tuned", header, tmp_path)
    assert second != first
    assert sorted(first.parent.iterdir()) == sorted([first, second]), "and nothing half-written is left"
