"""Checkpoints in 16 bits that compute in float32 without a second copy of their weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

import torch

from edge_convert.torch_models import load_float32, load_model

Make = Callable[[str], Path]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_narrow_weights_give_the_logits_of_wide_ones(kind: str, tiny_checkpoint: Make, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint(kind), tmp_path / kind)
    load_model(folder, torch.bfloat16).save_pretrained(folder)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        expected = load_model(folder, torch.float32)(tokens).logits
        model = load_float32(folder)
        assert torch.equal(model(tokens).logits, expected)
        assert torch.equal(model(tokens).logits, expected)
    # Gemma has a constant that its type would round, so it is widened as a whole.
    assert {weight.dtype for weight in model.parameters()} == {torch.float32 if kind == "gemma3" else torch.bfloat16}
