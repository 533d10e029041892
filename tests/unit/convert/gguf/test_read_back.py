"""GGUF to checkpoint: the way back gives the same weights, the same config where it matters, and the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

from edge.errors import ModelFileError
from edge_convert.checkpoint import open_checkpoint
from edge_convert.gguf.engine import run_task
from edge_convert.gguf.read_back import checkpoint_from_gguf
from edge_convert.gguf.tensors import write_gguf
from edge_convert.strings import varied_strings
from tests.checkpoints import GGUF_ONLY, KINDS
from tests.unit.convert.reference import logits_of_checkpoint, some_tokens

Make = Callable[[str], Path]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in GGUF_ONLY])
def test_there_and_back(kind: str, tiny_checkpoint: Make, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    original = open_checkpoint(tiny_checkpoint(kind))
    path = write_gguf(original, tmp_path / "model.gguf", "F32")
    shares: list[float] = []
    folder = checkpoint_from_gguf(path, tmp_path / "back", source="hf:a/b", on_progress=shares.append)
    again = open_checkpoint(folder)
    assert (again.source, again.licence, again.source_quantised) == ("hf:a/b", "apache-2.0", None)
    assert again.chat_template == original.chat_template
    if again.architecture == original.architecture:
        assert set(again.tensors) == set(original.tensors)
    for name in set(original.tensors) & set(again.tensors):  # a Granite 4 without experts comes back as a Granite 3
        # Gemma's norms are shifted by one and back.
        assert np.allclose(again.load_f32(name), original.load_f32(name), rtol=0, atol=1e-6), name
    tokens = some_tokens(100, original.config["vocab_size"])
    difference = logits_of_checkpoint(folder, tokens) - logits_of_checkpoint(original.folder, tokens)
    assert np.abs(difference).max() < 1e-3
    assert again.model.rope.kind == original.model.rope.kind
    assert again.model.layer_kinds == original.model.layer_kinds
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    tokenizers = [AutoTokenizer.from_pretrained(where) for where in (original.folder, folder)]
    texts = varied_strings(2_000, seed=3, specials=["<|im_start|>", "<|im_end|>"], has_ascii_spaces=kind.startswith("phi3"))
    ids, others = (tokenizer(texts)["input_ids"] for tokenizer in tokenizers)
    assert [text for text, a, b in zip(texts, ids, others, strict=True) if a != b] == []
    for text in texts[:50]:
        assert tokenizers[0].decode(tokenizers[0].encode(text)) == tokenizers[1].decode(tokenizers[1].encode(text))
    assert tokenizers[0].eos_token == tokenizers[1].eos_token


def test_an_architecture_that_is_not_converted(tmp_path: Path, tiny_checkpoint: Make) -> None:
    path = write_gguf(open_checkpoint(tiny_checkpoint("llama")), tmp_path / "model.gguf", "F16")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"llama", b"mamba"))
    with pytest.raises(ModelFileError, match="of the architecture 'mamba'"):
        checkpoint_from_gguf(path, tmp_path / "out")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError, match="cut off"):
        checkpoint_from_gguf(path, tmp_path / "out")


@pytest.mark.model
def test_the_real_model(model_path: Path, tmp_path: Path) -> None:
    """SmolLM2: weights as the `gguf` package dequantises them, ids as llama.cpp makes them from the same file."""
    from gguf import GGUFReader, dequantize
    from transformers import AutoTokenizer

    folder = checkpoint_from_gguf(model_path, tmp_path / "smollm2")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.source_quantised, checkpoint.licence, checkpoint.source) == ("Q4_1", "apache-2.0", model_path.name)
    assert checkpoint.n_params == 134_515_008
    stored = {tensor.name: tensor for tensor in GGUFReader(model_path).tensors}
    tensor = stored["blk.3.ffn_down.weight"]
    expected = dequantize(tensor.data, tensor.tensor_type)
    assert np.array_equal(checkpoint.load("model.layers.3.mlp.down_proj.weight"), expected)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = varied_strings(10_000, seed=5, specials=["<|im_start|>", "<|im_end|>"])
    ours = run_task("tokenise", {"model": str(model_path), "texts": texts})
    assert [text for text, a, b in zip(texts, ours, tokenizer(texts)["input_ids"], strict=True) if a != b] == []
