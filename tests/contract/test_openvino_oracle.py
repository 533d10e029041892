"""OpenVINO's graph against transformers: llama.cpp ignores the windows of Mistral and Phi-3, and is no oracle there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from edge.backends.base import open_backend
from tests.contract.conftest import TinyModel
from tests.contract.entries import make_plan

pytest.importorskip("openvino")
WIDTH, FFN, HEADS, KV_HEADS, VOCAB, WINDOW = 64, 128, 2, 1, 259, 24
COMMON = {
    "hidden_size": WIDTH, "intermediate_size": FFN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "pad_token_id": 0, "initializer_range": 0.15,
    "tie_word_embeddings": False,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 5000.0}
KINDS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "mistral": ("llama", "Mistral", 2, {"sliding_window": WINDOW, "head_dim": 32, "rope_parameters": ROPE}),
    "phi3": ("phi3", "Phi3", 2, {"sliding_window": WINDOW, "rope_parameters": ROPE}),
    "gemma3": (
        "gemma3",
        "Gemma3",
        6,
        {
            "sliding_window": WINDOW, "head_dim": 32, "query_pre_attn_scalar": 32, "tie_word_embeddings": True,
            "layer_types": [*["sliding_attention"] * 5, "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    ),
}  # fmt: skip
"""Model -> architecture in GGUF, name in transformers, layers, configuration."""


def write(kind: str, model: Any, path: Path) -> Path:
    """Write a model of transformers as GGUF: names from gguf-py's own table, numbers as llama.cpp's converter stores them."""
    architecture, _, n_layer, config = KINDS[kind]
    made = TinyModel(path, architecture, n_layer=n_layer)
    writer = made.writer
    writer.kv_data[0].pop("general.name")
    writer.add_name("tiny")  # llama.cpp expects special tokens of a model that is called phi3
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(WIDTH // HEADS)
    writer.add_sliding_window(config["sliding_window"])
    rope = config["rope_parameters"].get("full_attention", config["rope_parameters"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if "factor" in rope:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    made.add_tokenizer()
    known = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(known, n_layer)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        values, new = tensor.numpy().astype(np.float32), names.get_name(name, try_suffixes=(".weight",))
        assert new is not None, name
        if kind == "gemma3" and values.ndim == 1:
            values = values + 1
        if kind == "mistral" and ("q_proj" in name or "k_proj" in name):  # Llama's pairs are neighbours there
            n_head = values.shape[0] // 32
            values = values.reshape(n_head, 2, 16, WIDTH).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(new, values)
    return made.write()


@pytest.fixture
def oracle() -> Callable[[str, list[int]], tuple[Any, npt.NDArray[np.float32]]]:
    """Makes a random model of transformers, and its logits after every token."""
    torch = pytest.importorskip("torch", reason="needs the extra [convert]")
    transformers = pytest.importorskip("transformers", reason="needs the extra [convert]")

    def make(kind: str, tokens: list[int]) -> tuple[Any, npt.NDArray[np.float32]]:
        _, name, n_layer, config = KINDS[kind]
        torch.manual_seed(3)
        kind_of_config = getattr(transformers, f"{name}{'Text' if name == 'Gemma3' else ''}Config")
        values = kind_of_config(num_hidden_layers=n_layer, attn_implementation="eager", **{**COMMON, **config})
        model = getattr(transformers, f"{name}ForCausalLM")(values).eval()
        with torch.no_grad():
            return model, model(torch.tensor([tokens])).logits[0].float().numpy()

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(oracle: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    tokens = [int(token) for token in np.random.default_rng(5).integers(20, 256, 80)]
    model, expected = oracle(kind, tokens)
    plan = make_plan(write(kind, model, tmp_path / f"{kind}.gguf"), backend="openvino", kv_type_k="f32", kv_type_v="f32")
    found = []
    with open_backend(plan) as backend:
        backend.prefill(0, tokens[:40])  # longer than the window
        found.append(backend.logits(0))
        for token in tokens[40:]:
            backend.decode([(0, token)])
            found.append(backend.logits(0))
    error = np.sqrt(((np.array(found) - expected[39:]) ** 2).mean()) / expected.std()
    assert error < 0.005, error
