"""Engines compared on the real model: their distributions and the cost of passes, in processes of their own."""

from __future__ import annotations

import ctypes
import os
from contextlib import ExitStack
from pathlib import Path

import gguf
import numpy as np
import pytest

from edge.backends.llamacpp.library import load_library
from edge.bench.losses import Losses, exact_plan
from edge.bench.measure import PASSES
from edge.bench.process import Worker, setting_of
from edge.bench.values import Setting
from edge.device.detection import probe
from edge.errors import BackendError
from edge.formats.artifact import open_artifact
from edge.plan import PlanRequest, make_plan
from edge.plan.speed import LOSSLESS_NATS
from tests.tiny_gguf import TOKENS, write_gguf

_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def test_openvino_is_apart_from_llamacpp_by_rounding_alone(model_path: Path, tmp_path: Path) -> None:
    device, artifact = probe(), open_artifact(model_path)
    llamacpp, openvino = (
        make_plan(device, artifact, PlanRequest(backend=backend, context=1024, n_seq=1)) for backend in ("llamacpp", "openvino")
    )
    logits = tmp_path / "logits.npz"
    with Worker(llamacpp) as worker:
        worker.write_logits(logits)
        same = worker.compare_logits(logits)
        with pytest.raises(BackendError, match="exists"):
            worker.write_logits(logits)
    assert (same.mean, same.agreement) == (pytest.approx(0.0, abs=1e-6), 1.0)
    with Worker(openvino) as worker:
        found = worker.compare_logits(logits)
        assert 0 < found.mean < LOSSLESS_NATS and found.agreement > 0.9
        times = worker.pass_ms()
    assert tuple(times) == PASSES and times[16] < 16 * times[1], "a draft costs less than a pass for each of its tokens"


def write_k_quant(folder: Path) -> Path:
    """Write a Llama of random Q6_K weights, whose logits are so large that rounding shows."""
    sizes = {"embedding_length": 256, "feed_forward_length": 256}
    square = {f"blk.0.{name}.weight": (256, 256) for name in _MATRICES}
    others = {"token_embd.weight": (len(TOKENS), 256), "output.weight": (len(TOKENS), 256)}
    norms = {f"{name}.weight": (256,) for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")}
    plain, packed = folder / "plain.gguf", folder / "packed.gguf"
    write_gguf(plain, numbers=sizes, extra_tensors={**square, **others, **norms})
    scale = next(one for one in gguf.GGUFReader(plain, "r+").tensors if one.name == "output_norm.weight")
    np.multiply(scale.data, 30, out=scale.data)
    scale.data.flush()  # type: ignore[attr-defined]
    library = load_library()
    params = library.llama_model_quantize_default_params()
    params.ftype, params.pure = library.LLAMA_FTYPE_MOSTLY_Q6_K, True
    assert library.llama_model_quantize(os.fsencode(plain), os.fsencode(packed), ctypes.byref(params)) == 0
    return packed


def test_an_engine_nearer_to_the_weights_than_the_usual_one_loses_nothing(tmp_path: Path) -> None:
    """With K-quants llama.cpp rounds inputs in groups of 256; of Q6_K OpenVINO computes with floats."""
    path = write_k_quant(tmp_path)
    device, artifact = probe(), open_artifact(path)
    plans = {
        setting_of(plan): plan
        for plan in (make_plan(device, artifact, PlanRequest(backend=name, n_seq=1)) for name in ("llamacpp", "openvino"))
    }
    usual, openvino = plans
    unpacked = tmp_path / "exact.gguf"
    workers: dict[Setting, Worker] = {}

    def write_exact(out: Path) -> None:
        with Worker(exact_plan(device, artifact, usual.n_ctx, None, tmp_path), unpacked=unpacked) as worker:
            worker.write_logits(out)

    with ExitStack() as stack:
        for setting, plan in plans.items():
            workers[setting] = stack.enter_context(Worker(plan))
        losses = Losses(tmp_path / "logits.npz", ask=lambda who, question: question(workers[who]), write_exact=write_exact)
        losses.usual = usual
        assert losses.measure(openvino).exact is None, "not before an engine is faster"
        assert losses.refusal(openvino, "llamacpp on cpu") == ""
    ours, theirs = losses.known(openvino), losses.known(usual)
    assert ours.divergence is not None and ours.divergence > LOSSLESS_NATS, "by the usual engine it would be refused"
    assert ours.exact is not None and theirs.exact is not None
    assert 10 * ours.exact < theirs.exact < 0.1 and theirs.divergence == 0.0
    files = [{one.name: one for one in gguf.GGUFReader(file).tensors} for file in (path, unpacked)]
    for name, one in files[0].items():
        assert np.array_equal(gguf.quants.dequantize(one.data, one.tensor_type), files[1][name].data), name
    assert {one.tensor_type.name for one in files[1].values()} == {"F32"} != {one.tensor_type.name for one in files[0].values()}
