"""The backends that the contract is tested on: an entry each, several where an engine has models of several kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edge.backends.base import Backend, open_backend
from edge.backends.fake import FakeBackend
from edge.backends.paired import PairedBackend, pair_with
from edge.device import probe
from edge.formats.artifact import Artifact, open_artifact
from edge.plan import MemoryEstimate, Plan
from edge.plan.receipt import PrefillPlan
from tests.contract.coreml import coreml_plan, open_coreml

N_CTX, N_SEQ, CHUNK = 256, 4, 32
HAS_AMX = pytest.mark.skipif("amx_bf16" not in probe().cpu.features, reason="needs a CPU with AMX")


@dataclass(frozen=True)
class Bench:
    """A backend under test.

    Attributes:
        backend: open, all sequences empty.
        tolerance: by how much logits may differ when the same tokens are computed in other chunks. 0 means not at all.
        can_chat: the model answers in ChatML.
    """

    backend: Backend
    tolerance: float
    can_chat: bool

    def tokens(self, n_tokens: int, seed: int) -> list[int]:
        """Random tokens below 256, which every vocabulary here has, without control tokens of SmolLM2."""
        return [int(token) for token in np.random.default_rng(seed).integers(20, 256, n_tokens)]


def make_plan(path: Path, **changes: object) -> Plan:
    """A small plan for a GGUF file."""
    values: dict[str, object] = {
        "backend": "llamacpp",
        "accelerator": "cpu",
        "artifact": Artifact(path=path, format="gguf", name=path.stem, size_bytes=path.stat().st_size),
        "n_ctx": N_CTX,
        "n_seq": N_SEQ,
        "n_threads": 1,
        "n_threads_batch": 1,
        "n_ubatch": CHUNK,
        "gpu_layers": 0,
        "kv_type_k": "f16",
        "kv_type_v": "f16",
        "flash_attention": True,
        "use_mmap": True,
        "use_extra_buffers": True,
        "memory": MemoryEstimate(0, 0, 0, 0, 0),
        "choices": (),
    }
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


def onnx_plan(path: Path, **changes: object) -> Plan:
    """A small plan for an ONNX folder."""
    values = {"backend": "onnx", "artifact": open_artifact(path), "kv_type_k": "f32", "kv_type_v": "f32"}
    return make_plan(path, **{**values, **changes})


def _openvino_kinds() -> list[str]:
    """The ONNX models once more on OpenVINO, where onnxruntime's build for it is installed instead of the usual one."""
    try:
        version("onnxruntime-openvino")
    except PackageNotFoundError:
        return []
    return [f"openvino {kind}" for kind in ("onnx", "onnx-int4", "onnx-plain")]


def open_fake(request: pytest.FixtureRequest, kind: str) -> Bench:
    return Bench(FakeBackend(n_ctx=N_CTX, n_seq=N_SEQ, chunk_size=CHUNK, drafts=True), tolerance=0.0, can_chat=True)


def open_llamacpp(request: pytest.FixtureRequest, kind: str) -> Bench:
    from edge.backends.llamacpp.backend import LlamaCppBackend

    is_tiny = kind == "tiny"
    path = request.getfixturevalue("tiny_model")("llama") if is_tiny else request.getfixturevalue("model_path")
    # Keys and values in float16, weights in 4 bits: another split of the prompt moves logits by a few tenths.
    return Bench(LlamaCppBackend(make_plan(path)), tolerance=0.05 if is_tiny else 1.0, can_chat=not is_tiny)


def open_onnx(request: pytest.FixtureRequest, kind: str) -> Bench:
    from edge.backends.onnx.backend import OnnxBackend

    provider, name = kind.split() if " " in kind else ("cpu", kind)
    # In int4 the activations are rounded to 8 bits, block by block.
    tolerance = 0.3 if name == "onnx-int4" else 1e-3
    plan = onnx_plan(request.getfixturevalue("tiny_onnx")(name), accelerator=provider)
    return Bench(OnnxBackend(plan), tolerance=tolerance, can_chat=False)


_OPENVINO = {
    "openvino-tiny": ("llama", "f32"),
    "openvino-stateful": ("llama", "f32"),
    "openvino-gemma3": ("gemma3", "u8"),
    "openvino-mistral": ("llama window", "f32"),
    "openvino-qwen2": ("qwen2", "f32"),
    "openvino-qwen3": ("qwen3", "f32"),
    "openvino-phi3": ("phi3", "f32"),
    "openvino-bfloat16": ("Q4_1", "bf16"),
}
"""Entry -> its tiny model, see architectures.py, and the type of keys and values."""


def open_openvino(request: pytest.FixtureRequest, kind: str) -> Bench:
    pytest.importorskip("openvino")
    from edge.backends.openvino.backend import OpenVINOBackend

    tiny, kv_type = _OPENVINO.get(kind, ("", "f32"))
    path = request.getfixturevalue("tiny_architecture")(tiny) if tiny else request.getfixturevalue("model_path")
    plan = make_plan(path, backend="openvino", kv_type_k=kv_type, kv_type_v=kv_type)
    # Inputs of a product with int4 weights are rounded to 8 bits.
    tolerance = {"f32": 0.05, "u8": 0.3, "bf16": 0.3}[kv_type] if tiny else 1.0
    with pytest.MonkeyPatch.context() as patch:
        if kind == "openvino-stateful":
            patch.delattr("openvino._offline_transformations.paged_attention_transformation")
        backend = OpenVINOBackend(plan)
    return Bench(backend, tolerance=tolerance, can_chat=not tiny)


def open_paired(request: pytest.FixtureRequest, kind: str) -> Bench:
    """Two engines, the first of which decodes: chunks of 16 tokens and more are prefilled by the second."""
    pytest.importorskip("openvino")
    engines = ("openvino", "llamacpp") if kind == "paired-reverse" else ("llamacpp", "openvino")
    is_tiny = kind != "paired-smollm2"
    path = request.getfixturevalue("tiny_model")("llama") if is_tiny else request.getfixturevalue("model_path")
    backend = open_pair(make_plan(path), *engines)
    return Bench(backend, tolerance=0.05 if is_tiny else 1.0, can_chat=not is_tiny)


def open_pair(plan: Plan, decoder: str, prefiller: str, *, least: int = 16) -> PairedBackend:
    """Open both engines of a pair by a plan."""
    other = PrefillPlan(replace(plan, backend=prefiller, n_seq=1), least)
    plan = replace(plan, backend=decoder, prefill=other)
    backend = pair_with(open_backend(plan), plan, open_backend)
    assert isinstance(backend, PairedBackend)
    return backend


def open_coreml_package(request: pytest.FixtureRequest, kind: str) -> Bench:
    package = request.getfixturevalue("coreml_package")(kind)
    backend = open_coreml(coreml_plan(make_plan, package), package.parent / "cache")
    return Bench(backend, tolerance=0.1, can_chat=False)  # logits of about 5, rounded to float16 like all before them


class Entry(NamedTuple):
    """A backend under test.

    Attributes:
        kind: name of the parameter of a test.
        engine: key in edge.registry.ENGINES.
        open: opens it, given the request of a fixture and the kind.
        marks: of its tests.
    """

    kind: str
    engine: str
    open: Callable[[pytest.FixtureRequest, str], Bench]
    marks: Any = ()


# A real model takes twenty times as long as a tiny one: each test runs on one of three, and on all of them in `make prove`.
REAL = (pytest.mark.model, pytest.mark.prove(one_of=3))

ENTRIES = [
    Entry("fake", "fake", open_fake),
    Entry("tiny", "llamacpp", open_llamacpp),
    Entry("openvino-tiny", "openvino", open_openvino),
    Entry("openvino-stateful", "openvino", open_openvino),  # a version without paged attention
    Entry("openvino-gemma3", "openvino", open_openvino),  # windows, and keys and values in 8 bits
    *(Entry(f"openvino-{kind}", "openvino", open_openvino) for kind in ("mistral", "qwen2", "qwen3", "phi3")),
    Entry("openvino-bfloat16", "openvino", open_openvino, HAS_AMX),
    Entry("paired", "llamacpp", open_paired),
    Entry("paired-reverse", "openvino", open_paired),
    Entry("coreml", "coreml", open_coreml_package),
    Entry("coreml-explicit", "coreml", open_coreml_package),
    *(Entry(kind, "onnx", open_onnx) for kind in ("onnx", "onnx-int4", "onnx-plain", *_openvino_kinds())),
    Entry("smollm2", "llamacpp", open_llamacpp, REAL),
    Entry("openvino-smollm2", "openvino", open_openvino, REAL),
    Entry("paired-smollm2", "llamacpp", open_paired, REAL),
]
