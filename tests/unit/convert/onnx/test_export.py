"""ONNX models of tiny checkpoints of every architecture: run by plain onnxruntime, with the KV in the test's hands, and by
onnxruntime-genai, and held to transformers' logits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="needs the extra [convert]")
pytest.importorskip("onnx", reason="needs the extra [convert]")

from edge.errors import ModelFileError, UsageError
from edge_convert.checkpoint import open_checkpoint
from edge_convert.facts import Request
from edge_convert.gguf.read_back import checkpoint_from_gguf, tokenizer_from_gguf
from edge_convert.gguf.tensors import write_gguf
from edge_convert.inputs import Input
from edge_convert.onnx.blocks import BLOCK_TYPES, carried_share, read_blocks
from edge_convert.onnx.export import OnnxOptions, describe_quantisation, export_onnx
from edge_convert.pipeline import run
from edge_convert.plan import make_plan
from tests.checkpoints import make_checkpoint
from tests.unit.convert.support import read_manifest

Make = Callable[[str], Path]
MakeOnnx = Callable[[str, str], Path]
Logits = NDArray[np.float32]
KINDS = (
    *("llama3", "llama-linear", "qwen2", "qwen2-yarn", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "phi3-long"),
    *("smollm3", "granite", "granite4", "olmo2"),
)
N_PROMPT, N_TOKENS = 23, 30
SCALES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the float16 numbers of a block are; elsewhere at its beginning."""


def ignore(text: str, done: float) -> None:
    """Progress that nobody watches."""


def tokens_of(checkpoint: Path) -> list[int]:
    n_vocab = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    return [int(token) for token in np.random.default_rng(7).integers(3, n_vocab, N_TOKENS)]


def transformers_logits(model: Any, tokens: Sequence[int]) -> Logits:
    import torch

    with torch.no_grad():
        return np.asarray(model.eval()(torch.tensor([list(tokens)])).logits[0].float().numpy(), np.float32)


def load_transformers(checkpoint: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")


class PlainSession:
    """onnxruntime and nothing else: this class owns the KV and gives it back to the model at every step."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.past: dict[str, NDArray[Any]] = {}
        head_size = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["head_size"]
        for name, value in self.inputs.items():
            if name.startswith("past_key_values."):
                self.past[name] = np.zeros((1, value.shape[1], 0, head_size), np.float32)
        self.n_past = 0

    def step(self, tokens: Sequence[int]) -> Logits:
        """Logits of these tokens after all earlier ones."""
        n_all = self.n_past + len(tokens)
        feed: dict[str, Any] = {"input_ids": np.array([tokens], np.int64), "attention_mask": np.ones((1, n_all), np.int64)}
        if "position_ids" in self.inputs:
            feed["position_ids"] = np.arange(self.n_past, n_all)[None]
        names = [value.name for value in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, feed | self.past), strict=True))
        self.past = {name: outputs[name.replace("past_key_values.", "present.")] for name in self.past}
        self.n_past = n_all
        assert all(value.shape[2] == n_all for value in self.past.values())
        return np.asarray(outputs["logits"][0])


def in_steps(folder: Path, tokens: Sequence[int]) -> Logits:
    """Prefill in two uneven chunks, then a token at a time."""
    session = PlainSession(folder)
    pieces = [tokens[:16], tokens[16:N_PROMPT], *([token] for token in tokens[N_PROMPT:])]
    return np.concatenate([session.step(piece) for piece in pieces])


def by_genai(folder: Path, tokens: Sequence[int]) -> Logits:
    """The logits after the prompt and after each further token, by onnxruntime-genai."""
    onnxruntime_genai = pytest.importorskip("onnxruntime_genai", reason="needs the extra [dev], and Python 3.11 or newer")
    model = onnxruntime_genai.Model(str(folder))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=64)
    generator = onnxruntime_genai.Generator(model, parameters)
    found = []
    for piece in [tokens[:N_PROMPT], *([token] for token in tokens[N_PROMPT:])]:
        generator.append_tokens(np.array([piece], np.int32))
        found.append(np.array(generator.get_logits(), np.float32).reshape(-1)[-generator_vocab(folder) :])
    return np.stack(found)


def generator_vocab(folder: Path) -> int:
    return int(json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_float_model_computes_what_transformers_does(kind: str, tiny_checkpoint: Make, tiny_onnx: MakeOnnx) -> None:
    checkpoint, out = tiny_checkpoint(kind), tiny_onnx(kind, "fp32")
    assert {"model.onnx", "genai_config.json", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    tokens = tokens_of(checkpoint)
    expected = transformers_logits(load_transformers(checkpoint), tokens)
    size = float(np.abs(expected).max())
    np.testing.assert_allclose(in_steps(out, tokens), expected, atol=2e-4 * size)
    np.testing.assert_allclose(by_genai(out, tokens), expected[N_PROMPT - 1 :], atol=2e-4 * size)


def graph_of(folder: Path) -> tuple[Any, dict[str, NDArray[Any]]]:
    """Return the graph of a model and its weights by name."""
    import onnx

    graph = onnx.load(folder / "model.onnx").graph
    return graph, {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def attributes_of(node: Any) -> dict[str, Any]:
    import onnx

    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def dequantised(folder: Path) -> dict[str, Logits]:
    """The matrices of MatMulNBits nodes: their name -> weights [outputs, inputs], after the operator's documentation."""
    found = {}
    graph, tensors = graph_of(folder)
    for node in graph.node:
        if node.op_type != "MatMulNBits":
            continue
        options = attributes_of(node)
        bits, block, n_rows, n_columns = (options[name] for name in ("bits", "block_size", "N", "K"))
        arrays = [tensors[name] for name in node.input[1:]]
        packed = arrays[0].reshape(n_rows, -1, block * bits // 8)
        codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(n_rows, -1, block)
        n_blocks = codes.shape[1]
        zero: Any = 2 ** (bits - 1)
        if len(arrays) > 2:
            points = arrays[2].reshape(n_rows, -1)
            points = points if bits == 8 else np.stack([points & 15, points >> 4], axis=-1).reshape(n_rows, -1)
            zero = points[:, :n_blocks, None].astype(np.float32)
        weights = (codes.astype(np.float32) - zero) * arrays[1].reshape(n_rows, n_blocks, 1)
        found[node.input[1].partition(".MatMul")[0]] = weights.reshape(n_rows, -1)[:, :n_columns]
    return found


@pytest.mark.slow
def test_int4_is_its_dequantised_weights_and_near_the_checkpoint(tiny_onnx: MakeOnnx, tiny_checkpoint: Make) -> None:
    import gguf
    import torch

    int4_folder = tiny_onnx("llama3", "int4")

    checkpoint = tiny_checkpoint("llama3")
    model, tokens = load_transformers(checkpoint), tokens_of(checkpoint)
    original = transformers_logits(model, tokens)
    matrices = dequantised(int4_folder)
    for layer, block in enumerate(model.model.layers):
        prefix = f"model.layers.{layer}"
        attention = block.self_attn
        rows = [part.weight.shape[0] for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        parts = np.split(matrices[f"{prefix}.attn.qkv_proj"], np.cumsum(rows)[:-1])
        pairs = list(zip((attention.q_proj, attention.k_proj, attention.v_proj), parts, strict=True))
        pairs.append((attention.o_proj, matrices[f"{prefix}.attn.o_proj"]))
        pairs += [
            (getattr(block.mlp, name), matrices[f"{prefix}.mlp.{name}"]) for name in ("gate_proj", "up_proj", "down_proj")
        ]
        for linear, weights in pairs:
            linear.weight.data = torch.from_numpy(weights.copy())
    model.lm_head.weight = torch.nn.Parameter(torch.from_numpy(matrices["lm_head"].copy()))
    weights = gguf.quants.quantize(model.model.embed_tokens.weight.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
    rounded = gguf.quants.dequantize(weights, gguf.GGMLQuantizationType.Q8_0)
    model.model.embed_tokens.weight = torch.nn.Parameter(torch.from_numpy(rounded))
    expected, found = transformers_logits(model, tokens), in_steps(int4_folder, tokens)
    np.testing.assert_allclose(found, expected, atol=1e-3 * float(np.abs(expected).max()))
    n_bytes = sum(values.nbytes for values in graph_of(int4_folder)[1].values())
    assert n_bytes < (checkpoint / "model.safetensors").stat().st_size / 2, "something was left in float32"
    # Loose: the rounding itself. A wrong layout gives logits that have nothing to do with the checkpoint's.
    assert np.corrcoef(found.ravel(), original.ravel())[0, 1] > 0.95


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bytes(tiny_onnx: MakeOnnx, tiny_checkpoint: Make, tmp_path: Path) -> None:
    reports: list[tuple[str, float]] = []
    again = tmp_path / "deeper" / "again"
    export_onnx(
        tiny_checkpoint("llama3"), again, OnnxOptions(accuracy_level=1), lambda text, done: reports.append((text, done))
    )
    assert bytes_of(again) == bytes_of(tiny_onnx("llama3", "int4"))
    assert [done for _, done in reports] == sorted(done for _, done in reports)
    assert reports[-1] == ("done", 1.0)
    assert [path.name for path in again.parent.iterdir()] == ["again"]


def requantise(source: Path, out: Path, kind_of: Callable[[str], str]) -> None:
    """Copy a GGUF in float32, with each matrix in the type that `kind_of` names by its name."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        kind = "F32" if len(tensor.shape) == 1 else kind_of(tensor.name)
        values, dtype = np.array(tensor.data), gguf.GGMLQuantizationType[kind]
        writer.add_tensor(tensor.name, values if kind == "F32" else gguf.quants.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def kinds_of(name: str) -> str:
    """Every type of blocks, apart and together in one matrix of the graph."""
    if "token_embd" in name:
        return "Q4_1"
    return "Q4_0" if "down" in name or "blk.1.attn_v" in name else "Q8_0" if "up" in name or "blk.0" in name else "Q4_1"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3", "phi3"])
def test_blocks_of_a_gguf_are_carried_over_exactly(kind: str, tiny_checkpoint: Make, tmp_path: Path) -> None:
    original = open_checkpoint(tiny_checkpoint(kind))
    plain, source = write_gguf(original, tmp_path / "plain.gguf", "F32"), tmp_path / "model.gguf"
    requantise(plain, source, kinds_of)
    folder, out = tokenizer_from_gguf(source, tmp_path / "tokenizer"), tmp_path / "onnx"
    options = OnnxOptions(source_gguf=source, accuracy_level=1)
    export_onnx(folder, out, options, ignore)
    assert describe_quantisation(options) == "blocks of the source GGUF"
    checkpoint = checkpoint_from_gguf(source, tmp_path / "checkpoint")
    tokens = tokens_of(checkpoint)
    expected = transformers_logits(load_transformers(checkpoint), tokens)
    np.testing.assert_allclose(in_steps(out, tokens), expected, atol=2e-4 * float(np.abs(expected).max()))
    n_bytes = sum(values.nbytes for values in graph_of(out)[1].values())
    assert n_bytes < (checkpoint / "model.safetensors").stat().st_size / 2, "something was left in float32"


def test_a_gguf_becomes_onnx_without_a_checkpoint(tiny_checkpoint: Make, tmp_path: Path) -> None:
    plain, source = tmp_path / "plain.gguf", tmp_path / "model.gguf"
    requantise(write_gguf(open_checkpoint(tiny_checkpoint("llama")), plain, "F32"), source, kinds_of)
    found = Input(kind="gguf", path=source, source=source.name)
    plan = make_plan(found, tmp_path / "out", Request(formats=("onnx",), card=False))
    assert [step.name for step in plan.steps] == ["source", "tokenizer", "onnx-int4"]
    (made,) = run(plan)
    assert read_manifest(made / "manifest.json").recipe["quantisation"] == "blocks of the source GGUF"
    assert {"genai_config.json", "tokenizer.json", "chat_template.jinja"} <= {path.name for path in made.iterdir()}
    n_bytes = sum(path.stat().st_size for path in made.iterdir())
    assert n_bytes / 2 < plan.steps[-1].disk_bytes < 2 * n_bytes
    for changes in ({"card": True}, {"formats": ("onnx", "gguf")}):  # these read the weights from a checkpoint
        names = [
            step.name for step in make_plan(found, tmp_path, Request(**({"formats": ("onnx",), "card": False} | changes))).steps
        ]
        assert "checkpoint" in names
        assert "tokenizer" not in names


def test_a_large_vocabulary_passes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama", vocab_size=65_536)
    n_bytes = 4 * 65_536 * 128  # of the head in float32
    peak = 0

    def watch(text: str, done: float) -> None:
        nonlocal peak
        if text != "weights":
            return
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.start()  # from the first weights on: what is imported before them is none of this

    try:
        export_onnx(checkpoint, tmp_path / "onnx", OnnxOptions(), watch)
    finally:
        tracemalloc.stop()
    assert 0 < peak < n_bytes / 2
    assert dequantised(tmp_path / "onnx")["lm_head"].shape == (65_536, 128)


def test_what_is_not_in_blocks_is_quantised(tiny_checkpoint: Make, tmp_path: Path) -> None:
    plain = write_gguf(open_checkpoint(tiny_checkpoint("llama")), tmp_path / "plain.gguf", "F32")
    options = OnnxOptions(source_gguf=plain)
    assert describe_quantisation(options) == "int4 k_quant, head and sensitive layers int8"
    requantise(plain, tmp_path / "model.gguf", lambda name: "Q4_0" if "ffn" in name else "F16")
    options = OnnxOptions(source_gguf=tmp_path / "model.gguf", accuracy_level=1)
    assert describe_quantisation(options).startswith("blocks of the source GGUF, others int4 k_quant")
    assert 0 < carried_share(tmp_path / "model.gguf") < 1
    export_onnx(tokenizer_from_gguf(plain, tmp_path / "tokenizer"), tmp_path / "onnx", options, ignore)
    has_zeros = {node.name: len(node.input) > 3 for node in graph_of(tmp_path / "onnx")[0].node if "MatMul_Q" in node.name}
    assert has_zeros["/lm_head/MatMul_Q8"]
    assert not has_zeros["/model/layers.0/mlp/down_proj/MatMul_Q4"]


@pytest.mark.parametrize("kind", sorted(BLOCK_TYPES))
def test_blocks_are_read_as_gguf_reads_them(kind: str) -> None:
    import gguf

    block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    generator = np.random.default_rng(3)
    raw = generator.integers(0, 256, (6, 512 // block, n_bytes), dtype=np.uint8)
    for at in SCALES.get(kind, (0,)):
        raw[..., at : at + 2] = generator.normal(0, 0.1, (*raw.shape[:2], 1)).astype(np.float16).view(np.uint8)
    data = raw.reshape(6, -1)
    blocks, stored = read_blocks(kind, data), BLOCK_TYPES[kind]
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    np.testing.assert_allclose(blocks.dequantised(), expected, atol=1e-6 * np.abs(expected).max())
    assert blocks.packed().shape == (6, 512 // stored.block, stored.block * stored.bits // 8)
    assert (blocks.bits, blocks.rest is not None) == (stored.bits, stored.has_rest)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "int3"}, "not a precision"),
        ({"accuracy_level": 2}, "Accuracy level 2"),
        ({"source_gguf": Path("nowhere.gguf")}, "no file"),
    ],
)
def test_wrong_options_are_refused(changes: dict[str, Any], words: str, tiny_checkpoint: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        export_onnx(tiny_checkpoint("llama"), tmp_path / "out", OnnxOptions(**changes), ignore)
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_written_over(tiny_checkpoint: Make, tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        export_onnx(tiny_checkpoint("llama"), tmp_path, OnnxOptions(), ignore)
    assert (tmp_path / "keep").read_text() == "mine"


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"config\.json"):
        export_onnx(tmp_path / "empty", tmp_path / "out", OnnxOptions(), ignore)


def test_stopping_leaves_nothing(tiny_checkpoint: Make, tmp_path: Path) -> None:
    def stop(text: str, done: float) -> None:
        if done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_onnx(tiny_checkpoint("llama"), tmp_path / "out", OnnxOptions(), stop)
    assert list(tmp_path.iterdir()) == []


def test_what_the_kernels_cannot_rotate_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "narrow", "llama", head_dim=24)
    with pytest.raises(ModelFileError, match="multiples of 16"):
        export_onnx(tmp_path / "narrow", tmp_path / "out", OnnxOptions(), ignore)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mistral", {"sliding_window": 8}),
        ("phi3", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ("gemma3", {"layer_types": ["sliding_attention", "full_attention", "full_attention"] * 2 + ["full_attention"]}),
        ("llama", {"mlp_bias": True, "attention_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("phi4", {"head_dim": 64, "partial_rotary_factor": 0.5}),
    ],
)
def test_windows_and_biases_are_those_of_the_config(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", kind, **changes)
    export_onnx(checkpoint, tmp_path / "onnx", OnnxOptions(precision="fp32"), ignore)
    tokens = tokens_of(checkpoint)
    expected = transformers_logits(load_transformers(checkpoint), tokens)
    np.testing.assert_allclose(in_steps(tmp_path / "onnx", tokens), expected, atol=2e-4 * float(np.abs(expected).max()))


@pytest.mark.slow
def test_rows_of_an_odd_number_of_blocks(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama", hidden_size=96, num_attention_heads=3, num_key_value_heads=3)
    export_onnx(checkpoint, tmp_path / "onnx", OnnxOptions(accuracy_level=1), ignore)
    tokens = tokens_of(checkpoint)
    model = load_transformers(checkpoint)
    original = transformers_logits(model, tokens)
    assert np.corrcoef(in_steps(tmp_path / "onnx", tokens).ravel(), original.ravel())[0, 1] > 0.95
    weights = dequantised(tmp_path / "onnx")["model.layers.1.mlp.gate_proj"]  # 3 blocks a row
    held = model.model.layers[1].mlp.gate_proj.weight.detach().numpy()
    assert np.abs(weights - held).max() < np.abs(held).max() / 8
