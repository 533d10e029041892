"""The engines: a row each, with all that edge knows of one without importing it.

Adding a backend takes its package below edge/backends/, a row here and its entry in tests/contract/entries.py; a test of the
plan (tests/unit/plan/test_new_engine.py) does just that.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edge.errors import BUILD_HINT
from edge.names import Accelerator, Format, KVType

__all__ = ["ADAPTER_CONVERTER", "ENGINES", "TALK", "EnginePackage", "EngineRow", "Option", "load_entry"]

Option = Literal[
    "threads", "threads_batch", "n_ubatch", "kv_type", "flash_attention", "gpu_layers", "use_mmap", "use_extra_buffers"
]
"""A setting of a Plan that some engines let one choose."""


@dataclass(frozen=True, slots=True)
class EnginePackage:
    """The installation that an engine needs.

    Attributes:
        module: looked for, never imported.
        distributions: names in the package index that bring it, the usual one first.
        libraries: accelerator -> part of the name of a shared library that a build with it contains.
        on_mac: what every build for macOS can use; () where its libraries tell there, too.
        is_mac_only: it runs models on a Mac only; elsewhere it can just convert them.
        install: command or page that brings it.
        rebuild: advice where the installed build lacks an accelerator.
    """

    module: str
    distributions: tuple[str, ...]
    install: str
    libraries: Mapping[str, str] = field(default_factory=dict)
    on_mac: tuple[str, ...] = ()
    is_mac_only: bool = False
    rebuild: str = ""


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One engine.

    Attributes:
        title: its name in messages.
        backend: "module:class" of its `edge.backends.base.Backend`.
        formats: model formats that it reads.
        accelerators: what it computes on, the best first.
        on_request: accelerators that must be required, since how much of a model they can take depends on the model.
        on_trial: of those, what `edge tune` tries where it is, so that the plan may take it unasked once it has won.
        options: settings that it lets one choose.
        kv_types: of keys and values, where it lets one choose; the usual one first.
        kv_needs: of those, type -> instruction set of the CPU that it needs.
        kv_mixed: keys may have another type than values.
        package: what has to be installed; None if nothing.
        n_seq: sequences side by side, unless asked otherwise.
        n_spare: KV buffers beside one a sequence, for engines whose sequences have buffers of their own.
        weights_factor: memory that the weights of a GGUF take while it is loaded, as a multiple of the file's.
        repacked: weight types that it stores in a faster layout for a CPU; () where all are equal.
        is_automatic: the plan may choose it unasked.
        safety: "module:function" of (cache directory) that says how the engine may be loaded here; "" if it loads anywhere.
        build_id: "module:function" that names the installed build; "" where its version is enough.
        why_not: "module:function" of (artifact) that says why the engine cannot run a model in a format that it reads; "" for
            an engine that finds out when it loads it.
        why_failed: "module:function" of (artifact, accelerator, cache directory) that says what went wrong when the engine
            tried a model on an accelerator; "" for an engine that does not try models when it loads them.
        takes_adapters: LoRA adapters can be applied to a model while it runs.
        try_file: "module:function" of (plan, cache directory, progress) that refuses a model file on which the engine would end
            the process; "" for an engine that ends none.
    """

    name: str
    title: str
    backend: str
    formats: tuple[Format, ...]
    accelerators: tuple[Accelerator, ...]
    on_request: tuple[Accelerator, ...] = ()
    on_trial: tuple[Accelerator, ...] = ()
    options: tuple[Option, ...] = ()
    kv_types: tuple[KVType, ...] = ()
    kv_needs: Mapping[str, str] = field(default_factory=dict)
    kv_mixed: bool = True
    package: EnginePackage | None = None
    n_seq: int = 2
    n_spare: int = 0
    weights_factor: float = 1.0
    repacked: tuple[str, ...] = ()
    is_automatic: bool = True
    safety: str = ""
    build_id: str = ""
    why_not: str = ""
    why_failed: str = ""
    try_file: str = ""
    takes_adapters: bool = False


ENGINES: dict[str, EngineRow] = {
    row.name: row
    for row in (
        EngineRow(
            name="llamacpp",
            title="llama.cpp",
            backend="edge.backends.llamacpp.backend:LlamaCppBackend",
            formats=("gguf",),
            accelerators=("cuda", "metal", "cpu"),
            options=(
                "threads", "threads_batch", "n_ubatch", "kv_type", "flash_attention", "gpu_layers", "use_mmap",
                "use_extra_buffers",
            ),
            kv_types=("f16", "q8_0", "q4_0"),
            n_seq=4,
            takes_adapters=True,
            repacked=("Q4_0", "IQ4_NL", "Q4_K_M", "Q4_K_S", "Q8_0"),
            safety="edge.backends.llamacpp.canary:load_safety",
            build_id="edge.backends.llamacpp.canary:library_identity",
            try_file="edge.backends.llamacpp.trial:try_file",
            package=EnginePackage(
                module="llama_cpp",
                distributions=("llama-cpp-python",),
                libraries={
                    "cuda": "ggml-cuda", "metal": "ggml-metal", "vulkan": "ggml-vulkan", "hip": "ggml-hip", "sycl": "ggml-sycl",
                },
                install=f"Install it: {BUILD_HINT}",
                rebuild=f"Build llama.cpp for this machine: {BUILD_HINT}",
            ),
        ),
        EngineRow(
            name="onnx",
            title="ONNX Runtime",
            backend="edge.backends.onnx.backend:OnnxBackend",
            formats=("onnx",),
            accelerators=("cuda", "cpu"),
            on_request=("tensorrt", "openvino", "qnn", "ane"),
            options=("threads", "n_ubatch"),
            package=EnginePackage(
                module="onnxruntime",
                distributions=("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn"),
                libraries={name: f"providers_{name}" for name in ("cuda", "tensorrt", "openvino", "qnn")},
                on_mac=("ane", "cpu"),
                install='Install it: pip install "edge-assistant[onnx]"',
                rebuild="Install onnxruntime's build for it in the place of onnxruntime; see docs/onnx.md.",
            ),
        ),
        EngineRow(
            name="openvino",
            title="OpenVINO",
            backend="edge.backends.openvino.backend:OpenVINOBackend",
            formats=("gguf",),
            accelerators=("cpu",),
            on_request=("intel-gpu",),  # has not been run
            on_trial=("intel-gpu",),
            options=("threads", "n_ubatch", "kv_type"),
            kv_types=("f16", "u8", "bf16", "f32"),
            kv_needs={"bf16": "amx_bf16"},
            kv_mixed=False,
            n_seq=4,
            weights_factor=3.5,  # those of the graph and the plug-in's own copy, both with four bits more a weight for a Q4_1
            why_not="edge.backends.openvino.support:why_not",
            try_file="edge.backends.llamacpp.trial:try_file",
            package=EnginePackage(
                module="openvino",
                distributions=("openvino",),
                libraries={"intel-gpu": "intel_gpu_plugin"},
                install='Install it: pip install "edge-assistant[openvino]"',
            ),
        ),
        EngineRow(
            name="coreml",
            title="Core ML",
            backend="edge.backends.coreml.backend:CoreMLBackend",
            formats=("coreml",),
            accelerators=("ane", "metal", "cpu"),
            n_spare=1,
            why_failed="edge.backends.coreml.trial:why_failed",
            package=EnginePackage(
                module="coremltools",
                distributions=("coremltools",),
                on_mac=("ane", "metal", "cpu"),
                is_mac_only=True,
                install='Install it on a Mac: pip install "edge-assistant[coreml]"',
            ),
        ),
        EngineRow(
            name="fake",
            title="fake",
            backend="edge.backends.fake:FakeBackend",
            formats=("gguf", "onnx", "coreml"),
            accelerators=("cpu",),
            options=("threads", "n_ubatch", "kv_type", "flash_attention"),
            kv_types=("f16", "q8_0", "q4_0"),
            n_seq=4,
            takes_adapters=True,
            is_automatic=False,
        ),
    )
}  # fmt: skip
"""Name of an engine, as users write it -> its row. The plan prefers them in this order."""


ADAPTER_CONVERTER = "edge_convert.gguf.adapter:cached_gguf"
"""What makes a GGUF file of an adapter folder, of (folder, header of the model, cache directory). The runtime knows only its
name: without the converter's packages, only GGUF files can be applied."""


TALK = "edge_voice.talk:open_talk"
"""What holds a conversation by voice, of (conversation, options). The runtime knows only its name."""


def load_entry(path: str) -> Any:
    """Import "module:name" and return what it names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
