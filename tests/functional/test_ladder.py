"""Two rungs of the ladder with the real model: its weights in 16 bits, and as they are packed."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from msgspec.structs import replace

from edge.bench import ladder as ladder_module
from edge.bench.ladder import LOSSLESS_KL, run_ladder, unpacked
from edge.bench.ladder_steps import STEPS, Models, Step, Variant
from edge.bench.ladder_values import Work
from edge.device import probe
from edge.errors import ModelTooLargeError
from edge.formats.artifact import open_artifact
from edge.formats.gguf import read_header
from edge_convert.gguf.blocks import map_tensors

ENTRY = "edge_cli.ladder_child:main"
WORK = Work(name="tiny", n_turns=2, n_sessions=2, n_words=40, n_reply=6, n_questions=0, n_items=2, n_logits=24)


@pytest.mark.slow
def test_the_ladder_of_the_real_model(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = open_artifact(model_path)
    with pytest.raises(ModelTooLargeError, match=r"In 16 bits .* takes 269.* of the memory are free"):
        unpacked(packed, tmp_path, ENTRY, 2, 300_000_000)
    start = unpacked(packed, tmp_path, ENTRY, 2, probe().memory.available_bytes)
    assert start is not None
    assert (start.quantisation, start.name) == ("F16", packed.name)
    # gguf-py unpacks the blocks on its own; llama.cpp has rounded them to float16.
    ours, theirs = (map_tensors(path, read_header(path))["blk.7.ffn_down.weight"] for path in (start.path, packed.path))
    expected = gguf.quants.dequantize(theirs, gguf.GGMLQuantizationType.Q4_1)
    assert np.allclose(ours.view(np.float16).astype(np.float32), expected, rtol=1e-3, atol=1e-5)

    def all_at_once(models: Models, below: object) -> list[Variant]:
        setup = ladder_module.naive_setup(models)
        return [Variant("all", replace(setup, reuses=True, disk=True, read_ahead=True, speculates=True))]

    steps = (Step("all", "lossless", all_at_once, worth=0.0), *(step for step in STEPS if step.name == "int4"))
    monkeypatch.setattr(ladder_module, "STEPS", steps)
    models = Models(probe(), start, (packed,), engines=("llamacpp",), n_ctx=1024)
    done = run_ladder(models, budget_s=1e9, entry=ENTRY, folder=tmp_path, work=WORK)
    naive, fast, int4 = done.rungs
    assert naive.chat is not None
    assert naive.chat.reused == 0
    assert fast.is_taken
    assert fast.chat is not None
    assert fast.chat.reused > 0.8
    assert [bool(turn.ahead_ms) for turn in fast.chat_turns] == [True, True]
    assert fast.kl is not None
    assert fast.kl < LOSSLESS_KL
    assert int4.kl is not None
    assert LOSSLESS_KL < int4.kl < 0.05  # 8-bit activations: they are the same weights
    assert all(rung.n_same_scores is not None and len(rung.scores) == 2 for rung in done.rungs)
