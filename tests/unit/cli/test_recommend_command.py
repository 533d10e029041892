"""`edge models recommend`: what is printed, for people and for programs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.bench.recommend import Roof

ROOF = Roof(bytes_per_s=40e9, flops_per_s=400e9, n_threads=4)


def test_the_command(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.bench.recommend.measure_roof", lambda n_threads, available: ROOF)
    result = call("models", "recommend")
    assert result.code == 0
    rows = result.out.splitlines()
    assert rows[0].split()[:2] == ["model", "size"]
    assert any(row.startswith("qwen3-0.6b") and "Apache-2.0" in row and "~" in row for row in rows)
    assert "gemma3-270m " not in result.out, "a base model does not chat"
    assert "40.0 GB/s and 400 GFLOP/s" in result.err
    found = json.loads(call("models", "recommend", "--json").out)
    assert {"best", "bytes_per_s", "flops_per_s", "n_threads", "models"} == set(found)
    first = found["models"][0]
    assert first["predicted"]["decode_tokens_per_s"] > 0
    assert first["measured"] is None
    assert "fits" in {one["memory"] for one in found["models"]}
