"""ONNX models of tiny checkpoints of every architecture: run by plain onnxruntime, with the KV in the test's hands, and by
onnxruntime-genai, and held to transformers' logits."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="needs the extra [convert]")
pytest.importorskip("onnx_ir", reason="needs the extra [convert]")
pytest.importorskip("onnxruntime_genai", reason="needs the extra [convert], and Python 3.11 or newer")

from edge.errors import BackendError, ModelFileError, UsageError
from edge_convert.checkpoint import open_checkpoint
from edge_convert.onnx.blocks import can_carry, carry_blocks, read_blocks
from edge_convert.onnx.builder import adapt_config
from edge_convert.onnx.export import OnnxOptions, _run_builder, describe_quantisation, export_onnx
from tests.checkpoints import make_checkpoint

Make = Callable[[str], Path]
MakeOnnx = Callable[[str, str], Path]
Logits = NDArray[np.float32]
KINDS = ("llama3", "llama-linear", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "phi3-long")
N_PROMPT, N_TOKENS = 23, 30


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
    import onnxruntime_genai

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


def dequantised(folder: Path) -> dict[str, Logits]:
    """The matrices of MatMulNBits nodes: their name -> weights [outputs, inputs], after the operator's documentation."""
    import onnx_ir

    found = {}
    for node in onnx_ir.load(folder / "model.onnx").graph:
        if node.op_type != "MatMulNBits":
            continue
        bits, block = node.attributes["bits"].as_int(), node.attributes["block_size"].as_int()
        n_rows, n_columns = node.attributes["N"].as_int(), node.attributes["K"].as_int()
        arrays = [value.const_value.numpy() for value in node.inputs[1:] if value is not None]
        packed = arrays[0].reshape(n_rows, -1, block * bits // 8)
        codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(n_rows, -1, block)
        n_blocks = codes.shape[1]
        zero: Any = 2 ** (bits - 1)
        if len(arrays) > 2:
            points = arrays[2].reshape(n_rows, -1)
            points = points if bits == 8 else np.stack([points & 15, points >> 4], axis=-1).reshape(n_rows, -1)
            zero = points[:, :n_blocks, None].astype(np.float32)
        weights = (codes.astype(np.float32) - zero) * arrays[1].reshape(n_rows, n_blocks, 1)
        found[node.inputs[1].name.partition(".MatMul")[0]] = weights.reshape(n_rows, -1)[:, :n_columns]
    return found


@pytest.mark.slow
def test_int4_is_its_dequantised_weights_and_near_the_checkpoint(tiny_onnx: MakeOnnx, tiny_checkpoint: Make) -> None:
    import gguf
    import onnx_ir
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
    floats = [value.const_value.nbytes for value in onnx_ir.load(int4_folder / "model.onnx").graph.initializers.values()]
    assert sum(floats) < (checkpoint / "model.safetensors").stat().st_size / 2, "something was left in float32"
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
    assert ("layer 2 of 2") in [text for text, _ in reports]
    assert [path.name for path in again.parent.iterdir()] == ["again"]
    # The builder would add the commit of a repository that its environment lies in, such as this one.
    import onnx
    import onnxruntime_genai

    version = onnx.load(again / "model.onnx", load_external_data=False).producer_version
    assert version == f"{onnxruntime_genai.__version__}+{onnxruntime_genai.__commit__[:7]}"


def write_gguf(path: Path, checkpoint: Path) -> None:
    """A GGUF of a tiny llama with every kind of blocks that fits, and its q and k rows as llama.cpp wants them."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    types = gguf.GGMLQuantizationType
    for name, values in load_file(checkpoint / "model.safetensors").items():
        target = names.get_name(name, try_suffixes=(".weight",))
        if values.ndim == 1:
            writer.add_tensor(target, values)
            continue
        if (part := name.split(".")[-2]) in heads:
            n_rows = len(values)
            values = values.reshape(heads[part], 2, n_rows // heads[part] // 2, -1).swapaxes(1, 2).reshape(values.shape)
        kind = types.Q8_0 if "embed" in name else types.Q4_0 if "down" in name else types.Q4_1
        writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gguf_and_checkpoint(tiny_checkpoint: Make, tmp_path: Path) -> tuple[Path, Path]:
    """A GGUF, and the checkpoint that transformers makes of it."""
    import shutil

    from transformers import AutoModelForCausalLM, GgufConfig

    source, read_back = tmp_path / "tiny.gguf", tmp_path / "checkpoint"
    tiny = tiny_checkpoint("llama")
    write_gguf(source, tiny)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True)
    )
    model.float().save_pretrained(read_back)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, read_back)
    return source, read_back


@pytest.mark.slow
def test_blocks_of_a_gguf_are_carried_over_exactly(gguf_and_checkpoint: tuple[Path, Path], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    source, checkpoint = gguf_and_checkpoint
    options = OnnxOptions(source_gguf=source, accuracy_level=1)
    export_onnx(checkpoint, tmp_path / "onnx", options, ignore)
    assert describe_quantisation(options) == "blocks of the source GGUF"
    exact = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokens = tokens_of(checkpoint)
    expected = transformers_logits(exact, tokens)
    np.testing.assert_allclose(in_steps(tmp_path / "onnx", tokens), expected, atol=2e-5 * float(np.abs(expected).max()))
    weights = (tmp_path / "onnx" / "model.onnx.data").stat().st_size
    assert weights < (checkpoint / "model.safetensors").stat().st_size, "the float matrices are still in there"


@pytest.mark.slow
def test_a_checkpoint_that_was_changed_since_is_not_taken_for_its_source(
    tiny_onnx: MakeOnnx, tiny_checkpoint: Make, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "other.gguf", tiny_checkpoint("llama"))  # its blocks are rounded, the model's weights are not
    model = tiny_onnx("llama", "fp32") / "model.onnx"
    with pytest.raises(UsageError, match=r"qkv_proj.* was changed since"):
        carry_blocks(model, tmp_path / "other.gguf", tmp_path / "model.onnx", ignore, accuracy_level=4)
    assert not (tmp_path / "model.onnx").exists()


def test_sources_of_other_types_are_quantised_again(tiny_checkpoint: Make, tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    values = np.ones((4, 256), np.float32)
    kind = gguf.GGMLQuantizationType.Q4_1
    writer.add_tensor("blk.0.ffn_up.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("blk.0.ffn_gate.weight", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert not can_carry(tmp_path / "k.gguf")
    options = OnnxOptions(source_gguf=tmp_path / "k.gguf")
    assert describe_quantisation(options) == "int4 k_quant, head and sensitive layers int8"


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_are_read_as_gguf_reads_them(kind: str) -> None:
    import gguf

    values = np.random.default_rng(3).normal(0, 0.1, (6, 96)).astype(np.float32)
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    blocks = read_blocks(kind, data)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    np.testing.assert_allclose(blocks.dequantised(), expected, atol=1e-7)
    assert blocks.packed().shape == (6, 3, 4 * blocks.bits)
    assert (blocks.rest is not None) == (kind == "Q4_1")


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


def test_stopping_ends_the_builder_and_failing_says_why(tmp_path: Path) -> None:
    def stop(text: str, done: float) -> None:
        if text == "layer 1 of 2":
            raise KeyboardInterrupt

    started = tmp_path / "pid"
    code = "import os, time; open('pid', 'w').write(str(os.getpid())); print('Reading layer 0', flush=True); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        _run_builder([sys.executable, "-c", code], tmp_path, 2, stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)

    failing = [sys.executable, "-c", "print('Reading layer 0'); raise ValueError('no such thing')"]
    with pytest.raises(BackendError, match=r"builder of onnxruntime-genai ended with code 1 \(ValueError: no such thing\)"):
        _run_builder(failing, tmp_path, 2, ignore)
    with pytest.raises(BackendError, match="died of SIGKILL; the system may have run out of memory"):
        _run_builder([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path, 2, ignore)


def test_what_the_builder_would_get_wrong_is_refused(tiny_checkpoint: Make, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no yarn positions"):
        export_onnx(tiny_checkpoint("qwen2-yarn"), tmp_path / "out", OnnxOptions(), ignore)
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


def test_rope_settings_are_laid_out_as_the_builder_reads_them(tiny_checkpoint: Make, tmp_path: Path) -> None:
    def adapted(folder: Path) -> Any:
        return adapt_config(SimpleNamespace(), open_checkpoint(folder))

    gemma = adapted(tiny_checkpoint("gemma3"))
    assert (gemma.rope_theta, gemma.rope_local_base_freq) == (1e6, 1e4)
    assert adapted(tiny_checkpoint("phi3")).original_max_position_embeddings == 512
    long = adapted(tiny_checkpoint("phi3-long"))
    assert long.original_max_position_embeddings == 128
    assert long.rope_parameters["long_mscale"] == pytest.approx((1 + np.log(4) / np.log(128)) ** 0.5)
    assert adapted(tiny_checkpoint("llama-linear")).rope_parameters["factor"] == 4.0
