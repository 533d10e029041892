"""What is special about OpenVINO: the graph against llama.cpp's, and refusals. The rest is the contract."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.backends.base import Backend, open_backend
from edge.backends.llamacpp.unpack import unpack
from edge.backends.openvino import library
from edge.errors import BackendError, BackendUnavailableError, CancelledError, UnsupportedError, UsageError
from edge.formats.artifact import open_artifact
from edge.plan.memory import memory_model
from tests.contract.architectures import write
from tests.contract.entries import HAS_AMX, make_plan

pytest.importorskip("openvino")
PLAIN = (
    "llama", "llama tied", "llama scaled", "llama factors", "llama yarn", "llama longrope", "qwen2", "qwen3", "phi3",
    "phi3 partial", "gemma3", "gemma3 scaled", "smollm3", "granite", "olmo2",
)  # fmt: skip
PACKED = ("Q4_0", "Q4_1", "Q8_0", "mixed")
KINDS = (*PLAIN, *PACKED)
PARTS = {  # of the compiled model: paged attention, rotations, norms, products with weights
    "llama": (2, 4, 5, 9), "llama yarn": (2, 4, 5, 9), "qwen2": (2, 4, 5, 9), "qwen3": (2, 4, 9, 9), "phi3": (2, 4, 5, 9),
    "phi3 partial": (2, 4, 5, 9), "gemma3": (6, 12, 37, 25), "Q4_1": (2, 4, 5, 9), "smollm3": (4, 6, 9, 17),
    "olmo2": (2, 4, 9, 9),
}  # fmt: skip


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
    types = {} if kind in PLAIN else {"kv_type_k": "f16", "kv_type_v": "f16"}
    with open_backend(plan_of(kind, backend="openvino", **types)) as backend:
        whole = logits(backend, tokens)
        backend.rewind(0, 0)
        backend.prefill(0, tokens)
        at_once = backend.logits(0)
    # Plain weights are kept as float16; inputs of compressed ones are rounded to 8 bits, by both engines in their own way.
    spread = expected.std()
    error = np.sqrt(((whole - expected) ** 2).mean()) / spread
    most = 0.005 if kind in PLAIN else 0.08
    assert error < most, error
    assert np.sqrt(((at_once - expected[-1]) ** 2).mean()) / spread < most
    assert (whole.argmax(1) == expected.argmax(1)).mean() > 0.9


@pytest.mark.parametrize("kind", [*PACKED, "llama"])
@pytest.mark.parametrize("kv_type", ["f32", pytest.param("bf16", marks=HAS_AMX)])
def test_in_floats_logits_are_those_of_the_weights_unpacked(
    plan_of: Callable[..., Any], tmp_path: Path, kind: str, kv_type: str
) -> None:
    tokens = [int(token) for token in np.random.default_rng(1).integers(20, 256, 80)]
    plan = plan_of(kind, backend="openvino", kv_type_k=kv_type, kv_type_v=kv_type)
    path = plan.artifact.path
    if kind in PACKED:  # of those llama.cpp rounds inputs of products to 8 bits
        path = tmp_path / "unpacked.gguf"
        unpack(plan.artifact.path, path, 1)
    with open_backend(make_plan(path, flash_attention=False, kv_type_k="f32", kv_type_v="f32")) as backend:
        expected = logits(backend, tokens)
    with open_backend(plan) as backend:
        found = logits(backend, tokens)
        backend.rewind(0, 0)
        backend.prefill(0, tokens)
        at_once = backend.logits(0)
        blocks = [backend.export_kv(0, start, end) for start, end in ((0, 33), (33, 80))]
        for block in blocks:
            backend.import_kv(1, block)
        assert [backend.export_kv(1, start, end) for start, end in ((0, 33), (33, 80))] == blocks
        assert backend.neutral is None, "no other engine reads these"
    for ours, theirs in ((found, expected), (at_once, expected[-1])):
        assert np.sqrt(((ours - theirs) ** 2).mean()) / expected.std() < (0.008 if kv_type == "f32" else 0.05)
    assert (found.argmax(1) == expected.argmax(1)).mean() > (0.98 if kv_type == "f32" else 0.9)


@pytest.mark.parametrize("kind", [*PARTS, "Q4_1 in floats"])
def test_every_part_of_the_graph_is_recognised(plan_of: Callable[..., Any], kind: str) -> None:
    kind, _, in_floats = kind.partition(" in ")
    kv_type = "f32" if in_floats or kind in PLAIN else "f16"
    with open_backend(plan_of(kind, backend="openvino", kv_type_k=kv_type, kv_type_v=kv_type)) as backend:
        kinds = backend.passes.kinds  # type: ignore[attr-defined]
    *parts, n_products = PARTS[kind]
    n_products += 2 if in_floats else 0  # gate and up are two, in both layers
    assert tuple(kinds[part] for part in ("PagedAttention", "RoPE", "RMS", "FullyConnected")) == (*parts, n_products)


@pytest.mark.parametrize("architecture", ["mamba", "lfm2"])
def test_what_it_cannot_run_is_refused_with_a_way_out(
    tiny_model: Callable[[str], Path], plan_for: Callable[..., Any], architecture: str
) -> None:
    plan = plan_for(tiny_model(architecture), backend="openvino")
    with pytest.raises(UnsupportedError) as refused:
        open_backend(plan)
    assert "llamacpp" in refused.value.hint


def test_blocks_of_short_and_long_rope_are_told_apart(plan_of: Callable[..., Any]) -> None:
    identities = []
    for n_ctx in (32, 64, 96):  # its rotation changes beyond 64
        with open_backend(plan_of("llama longrope", backend="openvino", n_ctx=n_ctx)) as backend:
            identities.append(backend.kv_identity())
    assert identities[0] == identities[1] != identities[2]


def test_other_types_of_keys_and_values_are_refused(plan_of: Callable[..., Any]) -> None:
    for changes in ({"kv_type_k": "q8_0", "kv_type_v": "q8_0"}, {"kv_type_k": "f16", "kv_type_v": "f32"}):
        with pytest.raises(UsageError, match="cannot keep keys as"):
            open_backend(plan_of("llama", backend="openvino", **changes))


def test_loading_can_be_stopped(plan_of: Callable[..., Any]) -> None:
    with pytest.raises(CancelledError):
        open_backend(plan_of("llama", backend="openvino"), on_progress=lambda share, stage="": share < 0.5)


def test_without_paged_attention_keys_and_values_are_a_state(
    plan_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [int(token) for token in np.random.default_rng(4).integers(20, 256, 70)]
    plan = plan_of("gemma3", backend="openvino", kv_type_k="f16", kv_type_v="f16")
    with open_backend(plan) as paged:
        expected, identity = logits(paged, tokens), paged.kv_identity()
        assert paged.info.details["attention"] == "paged"

    def fail(model: object) -> None:
        raise RuntimeError("no such pattern")

    monkeypatch.setattr("openvino._offline_transformations.paged_attention_transformation", fail)
    with open_backend(plan) as backend:
        assert backend.info.details["attention"].startswith("stateful: ")
        assert "no such pattern" in backend.info.details["attention"]  # which the receipt says after loading
        assert backend.kv_identity() != identity
        found = logits(backend, tokens)
        blocks = [backend.export_kv(0, start, end) for start, end in ((0, 33), (33, 70))]
        for block in blocks:
            backend.import_kv(1, block)
        assert [backend.export_kv(1, start, end) for start, end in ((0, 33), (33, 70))] == blocks
    assert np.sqrt(((found - expected) ** 2).mean()) / expected.std() < 0.005
    with pytest.raises(UsageError, match="cannot store a KV cache as u8"):
        open_backend(replace(plan, kv_type_k="u8", kv_type_v="u8"))


def test_attention_or_windows_that_are_not_recognised_end_in_the_state(
    plan_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {"RMS": 37, "RoPE": 12, "FullyConnected": 25, "ScaledDotProductAttention": 6, "PagedAttention": 5}
    with monkeypatch.context() as patch:
        for module in ("passes", "stateful"):
            patch.setattr(f"edge.backends.openvino.{module}.count_kinds", lambda ov, compiled: whole)
        with open_backend(plan_of("gemma3", backend="openvino")) as backend:
            assert "recognises 5 of 6 operations of the model as PagedAttention" in backend.info.details["attention"]
    monkeypatch.setattr("edge.backends.openvino.graph._WINDOW_INPUT", 13)  # an empty constant there
    with open_backend(plan_of("gemma3", backend="openvino")) as backend:
        assert "recognises the windows of 0 of 5 layers" in backend.info.details["attention"]


def test_a_device_of_another_name_runs_the_state(plan_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [int(token) for token in np.random.default_rng(4).integers(20, 256, 40)]
    plan = plan_of("qwen3", backend="openvino")
    with open_backend(plan) as backend:
        expected, identity = logits(backend, tokens), backend.kv_identity()
    plan = replace(plan, accelerator="intel-gpu")
    ov = importlib.import_module("openvino")
    if not any(name.startswith("GPU") for name in ov.Core().available_devices):
        with pytest.raises(BackendUnavailableError, match=r"OpenVINO finds no Intel GPU here, only: .*CPU"):
            open_backend(plan)
    monkeypatch.setitem(library.DEVICES, "intel-gpu", "CPU")  # stands in for the GPU, with what the GPU is asked for
    with open_backend(plan) as backend:
        assert "which has not been tested" in backend.info.details["attention"]
        assert backend.kv_identity()["processor"] != identity["processor"]
        error = np.sqrt(((logits(backend, tokens) - expected) ** 2).mean()) / expected.std()
    assert error < 0.05, error  # of the precision that the device chooses: bfloat16, where the CPU has it


@pytest.mark.model
def test_gemma_beyond_its_window_is_that_of_llama_cpp() -> None:
    path = Path(os.environ.get("EDGE_TEST_GEMMA", ""))
    if not path.is_file():
        pytest.fail("EDGE_TEST_GEMMA does not name the model file. Run the tests with: make test")
    plan = make_plan(path, n_ctx=1024, n_seq=1, n_ubatch=512, n_threads=2, n_threads_batch=2)
    text, found = Path(__file__).with_name("test_openvino.py").read_text(), {}
    for engine in ("llamacpp", "openvino"):
        with open_backend(replace(plan, backend=engine)) as backend:
            tokens = backend.tokenizer.tokenize(text)[:608]
            backend.prefill(0, tokens[:600])  # the window has 512
            found[engine] = logits(backend, tokens[600:]).astype(np.float64)
    theirs, ours = (rows - np.logaddexp.reduce(rows, axis=1, keepdims=True) for rows in found.values())
    divergence = (np.exp(theirs) * (theirs - ours)).sum(1)
    assert np.median(divergence) < 0.1, divergence


def test_parts_that_are_not_recognised_are_said(plan_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"PagedAttention": 2, "RMS": 5, "FullyConnected": 9}
    monkeypatch.setattr("edge.backends.openvino.passes.count_kinds", lambda ov, compiled: {**whole, "RoPE": 0})
    with pytest.raises(BackendError, match="recognises 0 of 4 operations of the model as RoPE"):
        open_backend(plan_of("llama", backend="openvino"))


def test_blocks_of_another_type_are_of_another_model(plan_of: Callable[..., Any]) -> None:
    plan = plan_of("llama", backend="openvino")
    with open_backend(plan) as one:
        one.prefill(0, [50] * 40)
        for kv_type in ("f16", "u8"):
            with open_backend(replace(plan, kv_type_k=kv_type, kv_type_v=kv_type)) as other:
                assert one.kv_identity() != other.kv_identity()
                with pytest.raises(BackendError):
                    other.import_kv(0, one.export_kv(0, 0, 40))
                assert other.length(0) == 0


@pytest.mark.parametrize("kv_type", ["f16", "u8"])
def test_a_token_takes_the_memory_that_the_plan_counts(plan_of: Callable[..., Any], kv_type: str) -> None:
    plan = plan_of("llama", backend="openvino", kv_type_k=kv_type, kv_type_v=kv_type)
    with open_backend(plan) as backend:
        found = backend.passes.blocks.row_bytes()  # type: ignore[attr-defined]
    planned = memory_model(open_artifact(plan.artifact.path)).cell_bytes(kv_type, kv_type)
    assert found == planned


def test_keys_and_values_in_8_bits_lose_little(plan_of: Callable[..., Any]) -> None:
    tokens = [int(token) for token in np.random.default_rng(2).integers(20, 256, 80)]
    found = {}
    for kv_type in ("f32", "u8"):
        with open_backend(plan_of("llama", backend="openvino", kv_type_k=kv_type, kv_type_v=kv_type)) as backend:
            found[kv_type] = logits(backend, tokens)
    error = np.sqrt(((found["u8"] - found["f32"]) ** 2).mean()) / found["f32"].std()
    assert 0 < error < 0.02, error
