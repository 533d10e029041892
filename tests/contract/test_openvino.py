"""What is special about OpenVINO: the graph against llama.cpp's, and refusals. The rest is the contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from edge.backends.base import Backend, open_backend
from edge.errors import BackendError, CancelledError, UnsupportedError, UsageError
from tests.contract.conftest import FFN, HEAD_DIM, HEADS, KV_HEADS, WIDTH, TinyModel
from tests.contract.entries import make_plan

pytest.importorskip("openvino")
KINDS = ("llama", "llama tied", "llama scaled", "llama factors", "qwen2", "qwen3", "Q4_0", "Q4_1", "Q8_0", "mixed")


def write(path: Path, kind: str) -> Path:
    """A tiny random model: an architecture with something special about it, or the type of its weights."""
    architecture, _, special = kind.partition(" ")
    weights = architecture if architecture.startswith("Q") else ""
    model = TinyModel(path, "llama" if weights or kind == "mixed" else architecture)
    if weights:
        model.kind = gguf.GGMLQuantizationType[weights]
    model.add_attention(WIDTH // HEAD_DIM if architecture == "qwen2" else HEADS)
    model.add_tokenizer()
    model.writer.add_rope_freq_base(5000.0)
    if special == "scaled":
        model.writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        model.writer.add_rope_scaling_factor(4.0)
    if special == "factors":
        model.writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, HEAD_DIM // 2, dtype=np.float32))
    if special == "tied":
        model.tensor("token_embd.weight", 259, WIDTH)
        model.norm("output_norm.weight")
    else:
        model.add_ends()
    for layer in range(model.n_layer):
        if kind == "mixed":  # q, k and v of different types are three products
            model.kind = gguf.GGMLQuantizationType.Q4_0
            model.tensor(f"blk.{layer}.attn_q.weight", HEADS * HEAD_DIM, WIDTH)
            model.kind = gguf.GGMLQuantizationType.Q8_0
            model.tensor(f"blk.{layer}.attn_k.weight", KV_HEADS * HEAD_DIM, WIDTH)
            model.tensor(f"blk.{layer}.attn_v.weight", KV_HEADS * HEAD_DIM, WIDTH)
            model.kind = None
            model.norm(f"blk.{layer}.attn_norm.weight")
            model.tensor(f"blk.{layer}.attn_output.weight", WIDTH, HEADS * HEAD_DIM)
            model.norm(f"blk.{layer}.ffn_norm.weight")
            model.tensor(f"blk.{layer}.ffn_gate.weight", FFN, WIDTH)
            model.kind = gguf.GGMLQuantizationType.Q4_1
            model.tensor(f"blk.{layer}.ffn_up.weight", FFN, WIDTH)
            model.tensor(f"blk.{layer}.ffn_down.weight", WIDTH, FFN)
            continue
        model.add_ffn_tensors(layer)
        if architecture == "qwen2":  # its heads share the width
            model.norm(f"blk.{layer}.attn_norm.weight")
            for part in ("q", "k", "v", "output"):
                model.tensor(f"blk.{layer}.attn_{part}.weight", WIDTH, WIDTH)
                if part != "output":
                    model.tensor(f"blk.{layer}.attn_{part}.bias", WIDTH)
            continue
        model.add_attention_tensors(layer)
        if architecture == "qwen3":
            model.norm(f"blk.{layer}.attn_q_norm.weight", HEAD_DIM)
            model.norm(f"blk.{layer}.attn_k_norm.weight", HEAD_DIM)
    return model.write()


def logits(backend: Backend, tokens: list[int]) -> npt.NDArray[np.float32]:
    """Logits after every token."""
    backend.prefill(0, tokens[:1])
    found = [backend.logits(0)]
    for token in tokens[1:]:
        backend.decode([(0, token)])
        found.append(backend.logits(0))
    return np.array(found)


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    folder = tmp_path_factory.mktemp("openvino")

    def make(kind: str, **changes: object) -> Any:
        path = folder / f"{kind}.gguf"
        if not path.exists():
            write(path, kind)
        return make_plan(path, **{"kv_type_k": "f32", "kv_type_v": "f32", **changes})

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_llama_cpp(plan_of: Callable[..., Any], kind: str) -> None:
    tokens = [int(token) for token in np.random.default_rng(1).integers(20, 256, 80)]
    with open_backend(plan_of(kind, flash_attention=False)) as reference:
        expected = logits(reference, tokens)
    with open_backend(plan_of(kind, backend="openvino")) as backend:
        whole = logits(backend, tokens)
        backend.rewind(0, 0)
        backend.prefill(0, tokens)
        at_once = backend.logits(0)
    # Plain weights are kept as float16; inputs of compressed ones are rounded to 8 bits, by both engines in their own way.
    spread = expected.std()
    error = np.sqrt(((whole - expected) ** 2).mean()) / spread
    most = 0.003 if kind.partition(" ")[0] in ("llama", "qwen2", "qwen3") else 0.08
    assert error < most, error
    assert np.sqrt(((at_once - expected[-1]) ** 2).mean()) / spread < most
    assert (whole.argmax(1) == expected.argmax(1)).mean() > 0.9


def test_every_part_of_the_graph_is_recognised(plan_of: Callable[..., Any]) -> None:
    with open_backend(plan_of("Q4_1", backend="openvino")) as backend:
        kinds = backend.passes.kinds  # type: ignore[attr-defined]
    assert (kinds["PagedAttention"], kinds["RoPE"], kinds["RMS"], kinds["FullyConnected"]) == (2, 4, 5, 9)


@pytest.mark.parametrize("architecture", ["gemma3", "mamba", "lfm2", "llama longrope"])
def test_what_it_cannot_run_is_refused_with_a_way_out(
    tiny_model: Callable[[str], Path], plan_for: Callable[..., Any], architecture: str
) -> None:
    plan = plan_for(tiny_model(architecture), backend="openvino")
    with pytest.raises(UnsupportedError) as refused:
        open_backend(plan)
    assert "llamacpp" in refused.value.hint


def test_other_types_of_keys_and_values_are_refused(plan_of: Callable[..., Any]) -> None:
    for changes in ({"kv_type_k": "q8_0", "kv_type_v": "q8_0"}, {"kv_type_k": "f16", "kv_type_v": "f32"}):
        with pytest.raises(UsageError, match="cannot keep keys as"):
            open_backend(plan_of("llama", backend="openvino", **changes))


def test_loading_can_be_stopped(plan_of: Callable[..., Any]) -> None:
    with pytest.raises(CancelledError):
        open_backend(plan_of("llama", backend="openvino"), on_progress=lambda share, stage="": share < 0.5)


def test_parts_that_are_not_recognised_are_said(plan_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.backends.openvino.passes.count_kinds", lambda ov, compiled: {"PagedAttention": 2, "RoPE": 0})
    with pytest.raises(BackendError, match="recognises 0 of 4 operations of the model as RoPE"):
        open_backend(plan_of("llama", backend="openvino"))


def test_blocks_of_another_type_are_of_another_model(plan_of: Callable[..., Any]) -> None:
    plan = plan_of("llama", backend="openvino")
    with open_backend(plan) as one, open_backend(replace(plan, kv_type_k="f16", kv_type_v="f16")) as other:
        assert one.kv_identity() != other.kv_identity()
        one.prefill(0, [50] * 40)
        with pytest.raises(BackendError):
            other.import_kv(0, one.export_kv(0, 0, 40))
        assert other.length(0) == 0
