"""The real SmolLM2, its first layers only: from the packaged GGUF to a Core ML package with the same blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]")
pytest.importorskip("coremltools", reason="needs the extra [convert]")

from edge.formats.gguf import GGUFHeader, read_header
from edge_convert.coreml.calibrate import load_reference
from edge_convert.gguf import read_back
from tests.prove import proof_size
from tests.unit.convert.coreml.support import divergence, export_tiny, info_of, open_runner, reference_logits

N_LAYERS = proof_size(1, 3)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.prove
def test_the_blocks_of_the_gguf_give_the_logits_of_its_weights(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_layers(path: Path) -> GGUFHeader:
        whole = read_header(path)
        layers = {tensor: int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else 0 for tensor in whole.tensors}
        tensors = tuple(tensor for tensor, layer in layers.items() if layer < N_LAYERS)
        return replace(whole, tensors=tensors, metadata={**whole.metadata, "llama.block_count": N_LAYERS}, n_layer=N_LAYERS)

    monkeypatch.setattr(read_back, "read_header", first_layers)
    folder = read_back.checkpoint_from_gguf(model_path, tmp_path / "checkpoint")
    package = export_tiny(folder, tmp_path / "out", variant="gpu", source_gguf=model_path)
    # q, k, v, o, gate, up and down of each layer; the embedding, which is the head too
    assert info_of(package).encodings == {"int4 in blocks": 7 * N_LAYERS, "int8 in blocks": 1}
    tokens = np.array(
        [504, 3575, 282, 4649, 314, 7042, 30, 378, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 979, 504, 282, 30]
    )
    expected = reference_logits(load_reference(folder), tokens)
    runner = open_runner(package)
    found = np.stack([runner.feed(tokens[:18]), runner.feed(tokens[18:19]), runner.feed(tokens[19:])])
    assert divergence(expected[[17, 18, 19]], found) < 0.01
    assert (expected[[17, 18, 19]].argmax(axis=1) == found.argmax(axis=1)).all()
