"""The ONNX backend beyond the contract: kinds of buffers, providers, placement, and onnxruntime itself as an oracle."""

from __future__ import annotations

import ctypes
import gc
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import edge.backends.onnx.backend
import edge.backends.onnx.passes
from edge.backends.onnx.backend import OnnxBackend
from edge.backends.onnx.kv import DeviceBuffers, Layout, SeparateBuffers
from edge.backends.onnx.session import PROVIDERS
from edge.errors import BackendUnavailableError, ModelFileError, UsageError
from tests.checkpoints import add_tokens
from tests.contract.entries import CHUNK, onnx_plan
from tests.tiny_onnx import N_VOCAB, write_onnx

ort = pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
pytest.importorskip("onnx", reason="needs the extra [convert]")

PROMPT = [int(token) for token in np.random.default_rng(5).integers(20, 256, 75)]
Tiny = Callable[[str], Path]


def bare_logits(folder: Path, tokens: list[int]) -> npt.NDArray[np.float32]:
    """All at once, by onnxruntime and nothing of ours."""
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {}
    for port in session.get_inputs():
        if port.name.startswith("past"):
            kind = np.float16 if port.type == "tensor(float16)" else np.float32
            feeds[port.name] = np.zeros((1, port.shape[1], 0, port.shape[3]), kind)
    feeds |= {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, len(tokens)), np.int64)}
    if any(port.name == "position_ids" for port in session.get_inputs()):
        feeds["position_ids"] = np.arange(len(tokens))[None]
    logits: npt.NDArray[np.float32] = session.run(["logits"], feeds)[0][0, -1].astype(np.float32)
    return logits


def on_device(folder: Any, n_rows: int, n_seq: int, runtime: Any, device: str) -> SeparateBuffers:
    """In an accelerator's memory: the same objects on the CPU stand for it."""
    return SeparateBuffers(lambda: DeviceBuffers(Layout(folder), n_rows, runtime, device))


class CopyingSession:
    """onnxruntime's session as it is with a device of its own: what a pass reads is copied there when it is bound."""

    def __init__(self, native: Any) -> None:
        self._native = native

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def io_binding(self) -> Any:
        binding = self._native.io_binding()
        bind, copies = binding.bind_input, {}

        def bind_copy(name: str, device: str, number: int, element: Any, shape: Any, address: int) -> None:
            copies[name] = ctypes.create_string_buffer(ctypes.string_at(address, 8 * int(np.prod(shape))))
            bind(name, device, number, element, shape, ctypes.addressof(copies[name]))

        binding.bind_input = bind_copy
        return binding


def live(backend: OnnxBackend) -> list[npt.NDArray[np.float32]]:
    """Everything that touches buffers, and the logits on the way."""
    seen = []
    backend.prefill(0, PROMPT)
    seen.append(backend.logits(0))
    for token in (50, 51, 52):
        backend.decode([(0, token)])
    seen.append(backend.logits(0))
    backend.rewind(0, CHUNK)
    backend.prefill(0, PROMPT[:20])
    seen.append(backend.logits(0))
    backend.copy(0, 1, 40)
    block = backend.export_kv(0, 0, 32)
    tail = backend.export_kv(0, 32, 45)
    backend.import_kv(2, block)
    backend.import_kv(2, tail)
    for seq_id in (1, 2):
        backend.prefill(seq_id, PROMPT[50:70])
        seen.append(backend.logits(seq_id))
    backend.rewind(2, 45)
    seen.append(np.frombuffer(backend.export_kv(2, 32, 45)[24:], np.float32))
    backend.decode([(0, 60), (1, 61), (2, 62)])
    seen += [backend.logits(seq_id) for seq_id in range(3)]
    return seen


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": "int4"},
        {"attention": "plain"},
        {"shares": False},
        {"kv": "f16"},
        {"soft_cap": True},
        {"positions": True},
        {"external": False},
    ],
    ids=str,
)
def test_logits_are_those_of_a_bare_session(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_onnx(tmp_path, **changes)
    kv = changes.get("kv", "f32")
    with OnnxBackend(onnx_plan(tmp_path, kv_type_k=kv, kv_type_v=kv)) as backend:
        backend.prefill(0, PROMPT[:50])
        for token in PROMPT[50:]:
            backend.decode([(0, token)])
        tolerance = 2e-2 if kv == "f16" else 0.2 if changes.get("kind") == "int4" else 1e-4
        np.testing.assert_allclose(backend.logits(0), bare_logits(tmp_path, PROMPT), atol=tolerance)


def test_all_kinds_of_buffers_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx(tmp_path / "shared")
    write_onnx(tmp_path / "turned", shares=False)
    with OnnxBackend(onnx_plan(tmp_path / "shared")) as backend:
        expected = live(backend)
        assert backend.info.details["KV buffers"] == "in place"
    with OnnxBackend(onnx_plan(tmp_path / "turned")) as backend:
        turned = live(backend)
        assert backend.info.details["KV buffers"] == "two that take turns"
    monkeypatch.setattr(edge.backends.onnx.passes, "open_buffers", on_device)
    session = edge.backends.onnx.backend.Session

    def on_copies(*arguments: Any) -> Any:
        opened = session(*arguments)
        opened.native, opened.reads_in_place = CopyingSession(opened.native), False
        return opened

    monkeypatch.setattr(edge.backends.onnx.backend, "Session", on_copies)
    with OnnxBackend(onnx_plan(tmp_path / "shared")) as backend:
        device = live(backend)
    for before, after in zip(expected, device, strict=True):
        np.testing.assert_array_equal(before, after)
    for before, after in zip(expected, turned, strict=True):
        np.testing.assert_allclose(before, after, atol=1e-5)


def test_an_emptied_sequence_leaves_nothing_in_an_accelerators_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx(tmp_path)
    monkeypatch.setattr(edge.backends.onnx.passes, "open_buffers", on_device)
    bindings: weakref.WeakSet[Any] = weakref.WeakSet()  # each holds its buffers in onnxruntime's own memory
    real = ort.InferenceSession.io_binding

    def io_binding(session: Any) -> Any:
        binding = real(session)
        bindings.add(binding)
        return binding

    monkeypatch.setattr(ort.InferenceSession, "io_binding", io_binding)
    with OnnxBackend(onnx_plan(tmp_path)) as backend:
        backend.prefill(0, PROMPT)
        backend.decode([(0, 50)])
        assert len(bindings) == 2, "one for prompts and one for replies"
        backend.rewind(0, 0)
        gc.collect()
        assert not bindings


def test_an_error_in_should_stop_ends_the_pass_and_reaches_the_caller(tiny_onnx: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            while not options.terminate:
                time.sleep(0.001)
            raise RuntimeError("terminated")

    with OnnxBackend(onnx_plan(tiny_onnx("onnx"))) as backend:
        monkeypatch.setattr(backend.passes.session, "native", Endless())
        with pytest.raises(ZeroDivisionError):
            backend.passes.run(None, lambda: bool(1 / 0))
        assert not backend.passes.run(None, lambda: True)


def test_logits_of_every_position_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose output layer is not known computes them all; a pass then is short enough for them."""
    write_onnx(tmp_path)
    monkeypatch.setattr("edge.backends.onnx.session.only_last_logits", lambda *about: None)
    monkeypatch.setattr(edge.backends.onnx.backend, "_MOST_LOGITS_BYTES", 10 * 4 * N_VOCAB)
    with OnnxBackend(onnx_plan(tmp_path)) as backend:
        assert backend.info.details["logits"] == "of every position"
        assert backend.chunk_size == 10
        backend.prefill(0, PROMPT)
        np.testing.assert_allclose(backend.logits(0), bare_logits(tmp_path, PROMPT), atol=1e-4)


def test_what_runs_where_is_told_by_either_way_of_asking(tiny_onnx: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = onnx_plan(tiny_onnx("onnx"))
    with OnnxBackend(plan) as backend:
        placement = backend.info.details["placement"]
    assert placement.startswith("CPU 100 % (") and placement.endswith(" nodes)")
    for kind in ort.InferenceSession.__mro__:  # onnxruntime 1.23 has no such method
        if "get_provider_graph_assignment_info" in vars(kind):
            monkeypatch.delattr(kind, "get_provider_graph_assignment_info")
    with OnnxBackend(plan) as backend:
        assert backend.info.details["placement"].startswith("CPU 100 % (")


def test_a_provider_that_is_not_built_in_is_refused(tiny_onnx: Tiny) -> None:
    for accelerator in set(PROVIDERS) - {"cpu"}:
        with pytest.raises(BackendUnavailableError, match=f"has no .*ExecutionProvider, which {accelerator} needs"):
            OnnxBackend(onnx_plan(tiny_onnx("onnx"), accelerator=accelerator))


def test_a_provider_that_takes_nothing_is_refused(tiny_onnx: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = "AzureExecutionProvider"  # in every build, and for calls over the network only
    assert idle in ort.get_available_providers()
    monkeypatch.setitem(PROVIDERS, "openvino", ((idle, {}),))
    with pytest.raises(BackendUnavailableError, match="cannot compute any part of"):
        OnnxBackend(onnx_plan(tiny_onnx("onnx"), accelerator="openvino"))


def test_the_model_decides_how_keys_and_values_are_kept(tiny_onnx: Tiny) -> None:
    with pytest.raises(UsageError, match="keeps its keys and values as f32"):
        OnnxBackend(onnx_plan(tiny_onnx("onnx"), kv_type_k="f16"))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    write_onnx(tmp_path, n_vocab=N_VOCAB - 1)
    with pytest.raises(ModelFileError, match="belongs to another model"):
        OnnxBackend(onnx_plan(tmp_path))
    write_onnx(tmp_path / "padded", n_vocab=N_VOCAB + 5)
    with OnnxBackend(onnx_plan(tmp_path / "padded")) as backend:
        assert backend.info.n_vocab == N_VOCAB + 5
        assert backend.tokenizer.token_bytes(N_VOCAB + 4) == b""
    write_onnx(tmp_path / "larger")
    add_tokens(tmp_path / "larger", {"<picture>": True})
    with OnnxBackend(onnx_plan(tmp_path / "larger")) as backend:
        assert backend.info.n_vocab == N_VOCAB
        assert max(backend.tokenizer.tokenize("a <picture>")) < N_VOCAB
        with pytest.raises(UsageError, match="'<picture>', which this model does not know"):
            backend.tokenizer.tokenize("a <picture>", parse_special=True)
        with pytest.raises(UsageError, match=f"no token {N_VOCAB}"):
            backend.prefill(0, [N_VOCAB])


def test_what_onnxruntime_refuses_is_an_error_of_ours(tmp_path: Path) -> None:
    import onnx

    write_onnx(tmp_path)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    model.graph.node[3].op_type = "NoSuchOperator"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"onnxruntime cannot use .*NoSuchOperator"):
        OnnxBackend(onnx_plan(tmp_path))


def test_blocks_tell_what_they_rest_on(tiny_onnx: Tiny) -> None:
    with OnnxBackend(onnx_plan(tiny_onnx("onnx"))) as one, OnnxBackend(onnx_plan(tiny_onnx("onnx-plain"))) as other:
        assert one.kv_identity() != other.kv_identity()
        assert one.kv_identity()["version"] == ort.__version__
        assert one.kv_identity()["shape"] == "2x2x32"
    with OnnxBackend(onnx_plan(tiny_onnx("onnx"), n_ubatch=16)) as smaller:
        assert smaller.kv_identity()["chunk_size"] == 16
