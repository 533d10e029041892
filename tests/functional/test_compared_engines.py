"""Engines compared on the real model: their distributions and the cost of passes, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.bench.measure import PASSES
from edge.bench.process import Worker
from edge.device.detection import probe
from edge.errors import BackendError
from edge.formats.artifact import open_artifact
from edge.plan import PlanRequest, make_plan
from edge.plan.speed import LOSSLESS_NATS


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
