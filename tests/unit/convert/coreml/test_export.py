"""Packages against the checkpoints they were made from, by transformers' logits: every architecture, prefill and decode."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]")
pytest.importorskip("coremltools", reason="needs the extra [convert]")

import torch

from edge.errors import ContextFullError, ModelFileError, UsageError
from edge_convert.checkpoint import open_checkpoint
from edge_convert.coreml.calibrate import calibration_tokens, load_reference
from edge_convert.coreml.decoder import read_decoder
from edge_convert.coreml.grids import int8_rows
from edge_convert.coreml.mil import MilModel
from edge_convert.coreml.program import Package
from edge_convert.coreml.quantise import Encoder
from edge_convert.coreml.runner import causal_mask
from edge_convert.coreml.weights import Dense, to_files
from tests.checkpoints import GGUF_ONLY, KINDS
from tests.prove import proof_size
from tests.unit.convert.coreml.support import CONTEXT, divergence, export_tiny, info_of, open_runner, reference_logits

Make = Callable[[str], Path]
# A first prompt in two and a half chunks, one token, a prompt, and one so late that its chunk is shifted back.
PIECES = ((0, 40), (40, 41), (41, 70), (70, 93), (93, CONTEXT))


def _tokens(vocab: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, CONTEXT)


def _feed(package: Path, tokens: np.ndarray, precision: Any) -> np.ndarray:
    runner = open_runner(package, precision)
    return np.stack([runner.feed(tokens[start:stop]) for start, stop in PIECES])


LAST = [stop - 1 for _, stop in PIECES]


@pytest.mark.prove
@pytest.mark.parametrize(
    "kind",
    proof_size(("smollm3", "granite4", "olmo2", "gemma3", "phi3-long"), [kind for kind in KINDS if kind not in GGUF_ONLY]),
)
def test_prefill_and_decode_give_the_checkpoints_logits(kind: str, tiny_checkpoint: Make, tmp_path: Path) -> None:
    folder = tiny_checkpoint(kind)
    package = export_tiny(folder, tmp_path, variant="fp16")
    reference = load_reference(folder)
    tokens = _tokens(reference.config.vocab_size)
    expected = reference_logits(reference, tokens)[LAST]
    spread = expected.std()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.half())
    with_fp16_weights = reference_logits(reference, tokens)[LAST]
    difference = _feed(package, tokens, "fp32") - with_fp16_weights
    assert np.abs(difference).max() < 0.01 * spread
    assert np.sqrt((difference**2).mean()) < 0.002 * spread
    rounded = _feed(package, tokens, "fp16")
    assert np.sqrt(((rounded - expected) ** 2).mean()) < 0.02 * spread
    assert divergence(expected, rounded) < 2e-3


@pytest.mark.prove
@pytest.mark.parametrize(
    ("kind", "variant", "bits", "encoding"),
    [
        *((kind, "gpu", 6, "int4 in blocks") for kind in proof_size(("llama",), ("llama", "gemma3", "phi4"))),
        *((kind, "ane", 6, "palette of 64 values per 16 rows") for kind in proof_size(("phi4",), ("gemma3", "phi4"))),
        ("llama", "ane", 4, "palette of 16 values per row"),
    ],
)
def test_int4_gives_the_logits_of_its_own_weights(
    kind: str, variant: Any, bits: Any, encoding: str, tiny_checkpoint: Make, tmp_path: Path
) -> None:
    """The oracle is transformers with the weights that were chosen, so only the program can be wrong."""
    folder = tiny_checkpoint(kind)
    text = tmp_path / "calibration.txt"
    text.write_text((Path(__file__).parents[4] / "LICENSE").read_text(encoding="utf-8")[:3000], encoding="utf-8")
    package = export_tiny(folder, tmp_path, variant=variant, calibration=text, palette_bits=bits)
    opened, reference = open_checkpoint(folder), load_reference(folder)
    encoder = Encoder(opened, read_decoder(folder), variant, None, text, bits, tmp_path)
    encoder.prepare(reference, lambda share: None)
    with torch.no_grad():
        for name, module in reference.named_modules():
            if f"{name}.weight" in opened.tensors and len(opened.tensors[f"{name}.weight"].shape) == 2:
                module.weight = torch.nn.Parameter(torch.from_numpy(encoder.weight(name).dequantise()))
        if opened.is_tied:
            reference.lm_head.weight = reference.model.embed_tokens.weight
    tokens = _tokens(reference.config.vocab_size)
    expected = reference_logits(reference, tokens)[LAST]
    difference = _feed(package, tokens, "fp32") - expected
    assert np.sqrt((difference**2).mean()) < 0.005 * expected.std()
    original = reference_logits(load_reference(folder), tokens)[LAST]
    # random weights are hard to quantise; what comes out must still be much nearer than another position's logits
    assert divergence(original, _feed(package, tokens, "fp16")) < 0.3 * divergence(original, np.roll(original, 1, axis=0))
    assert encoding in info_of(package).encodings


def test_encoded_matrices_are_files_that_the_system_may_drop(tmp_path: Path) -> None:
    table = np.arange(32, dtype=np.float32).reshape(4, 8)
    for number, weight in enumerate((Dense(table.astype(np.float16)), int8_rows(table))):
        mapped = to_files(weight, tmp_path, f"m{number}")
        np.testing.assert_array_equal(mapped.dequantise(), weight.dequantise())
        assert mapped.rows(1, 3).dequantise().shape == (2, 8)
    stored = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sorted(stored) == ["m0.values.npy", "m1.codes.npy", "m1.scale.npy"]
    assert isinstance(mapped.codes.base, np.memmap | mmap.mmap)  # type: ignore[union-attr]


def test_a_cache_in_the_hands_of_the_host_gives_the_same(tiny_checkpoint: Make, tmp_path: Path) -> None:
    folder = tiny_checkpoint("gemma2")
    tokens = _tokens(500)
    with_state = export_tiny(folder, tmp_path, variant="fp16")
    (tmp_path / "explicit").mkdir()
    without = export_tiny(folder, tmp_path / "explicit", variant="fp16", stateful=False)
    assert info_of(with_state).stateful and not info_of(without).stateful
    assert not Package(without).function("decode").states
    np.testing.assert_allclose(_feed(without, tokens, "fp16"), _feed(with_state, tokens, "fp16"), rtol=2e-2, atol=2e-2)


def test_the_same_input_gives_the_same_bytes(tiny_checkpoint: Make, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        text = Path(__file__).parents[4] / "CONTRIBUTING.md"
        package = export_tiny(tiny_checkpoint("llama"), tmp_path / name, variant="ane", calibration=text, palette_bits=4)
        files = sorted(path for path in package.rglob("*") if path.is_file())
        digests.append({str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3


def test_functions_share_their_weights(tiny_checkpoint: Make, tmp_path: Path) -> None:
    package = Package(export_tiny(tiny_checkpoint("llama"), tmp_path, variant="gpu"))
    decode, prefill = package.function("decode"), package.function("prefill")
    same = [name for name, value in prefill.constants.items() if any(value is other for other in decode.constants.values())]
    assert sum(np.asarray(prefill.constants[name]).ndim == 4 for name in same) >= 9  # 7 in the first layer, k and v in the last
    sizes = {path.name: path.stat().st_size for path in package.folder.rglob("*") if path.is_file()}
    checkpoint = sum(info.size_bytes for info in open_checkpoint(tiny_checkpoint("llama")).tensors.values())
    assert sizes["weight.bin"] < checkpoint / 2


def test_what_a_weight_is_made_of_is_not_kept(tiny_checkpoint: Make, tmp_path: Path) -> None:
    package = Package(export_tiny(tiny_checkpoint("llama"), tmp_path, variant="gpu"))
    for name in package.functions:
        kept = [value for value in package.function(name).constants.values() if getattr(value, "size", 0) > 1000]
        assert {value.dtype for value in kept} == {np.dtype(np.float16)}


def test_a_state_can_be_saved_and_put_back(tiny_checkpoint: Make, tmp_path: Path) -> None:
    package = export_tiny(tiny_checkpoint("llama"), tmp_path, variant="fp16")
    decode = MilModel(package, function_name="decode")
    state, tokens, results = decode.make_state(), [5, 6, 7, 8, 9], []

    def step(position: int, into: Any) -> np.ndarray:
        data = {
            "tokens": np.array([[tokens[position]]], np.int32),
            "position": np.array([position], np.int32),
            "mask": causal_mask(position, 1, CONTEXT, None),
        }
        return decode.predict(data, into)["logits"]

    for position in range(5):
        if position == 3:
            saved = state.read_state("kv_cache")
        results.append(step(position, state))
    assert saved.dtype == np.float32
    assert not saved[:, :, 3:].any() and saved[:, :, :3].any()
    other = decode.make_state()
    other.write_state("kv_cache", saved.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(step(3, other), results[3])
    np.testing.assert_array_equal(step(4, other), results[4])
    with pytest.raises(UsageError, match="float32"):
        other.write_state("kv_cache", saved.astype(np.float16))


def test_what_predict_refuses(tiny_checkpoint: Make, tmp_path: Path) -> None:
    package = export_tiny(tiny_checkpoint("llama"), tmp_path, variant="fp16")
    decode = MilModel(package, function_name="decode")
    good = {"tokens": np.array([[1]], np.int32), "position": np.array([0], np.int32), "mask": causal_mask(0, 1, CONTEXT, None)}
    state = decode.make_state()
    with pytest.raises(UsageError, match="needs a state"):
        decode.predict(good)
    with pytest.raises(UsageError, match="inputs"):
        decode.predict({"tokens": good["tokens"]}, state)
    with pytest.raises(UsageError, match="shape"):
        decode.predict(good | {"tokens": np.array([1], np.int32)}, state)
    with pytest.raises(UsageError, match="position"):
        decode.predict(good | {"position": np.array([0.5])}, state)
    with pytest.raises(ModelFileError, match="gather"):
        decode.predict(good | {"tokens": np.array([[10**6]], np.int32)}, state)
    with pytest.raises(UsageError, match="no state"):
        state.read_state("other")
    runner = open_runner(package)
    with pytest.raises(ContextFullError):
        runner.feed([1] * (CONTEXT + 1))


def test_options_that_cannot_be(tiny_checkpoint: Make, tmp_path: Path) -> None:
    for options in ({"context": 100}, {"context": 0}, {"chunk": 1}, {"context": 32, "chunk": 64}, {"context": 1024}):
        with pytest.raises(UsageError):
            export_tiny(tiny_checkpoint("llama"), tmp_path, variant="fp16", **options)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_an_activation_that_is_not_built(tiny_checkpoint: Make, tmp_path: Path) -> None:
    config = json.loads((tiny_checkpoint("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(ModelFileError, match="relu"):
        read_decoder(tmp_path)


def test_calibration_text(tiny_checkpoint: Make, tmp_path: Path) -> None:
    folder = tiny_checkpoint("gemma2")
    reference = load_reference(folder)
    pieces = calibration_tokens(folder, reference, None)
    assert pieces.shape == (16, 256) and (pieces[:, 0] == 1).all()  # each begins as a text begins
    (tmp_path / "short.txt").write_text("too short")
    for path in (tmp_path / "short.txt", tmp_path / "none.txt"):
        with pytest.raises(UsageError, match="calibration text"):
            calibration_tokens(folder, reference, path)
