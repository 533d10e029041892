"""Checkpoint to GGUF: llama.cpp computes from it what transformers computes from the checkpoint, for every architecture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

from edge.errors import ModelFileError, UsageError
from edge.formats.gguf import read_header
from edge_convert.architectures import ARCHITECTURES
from edge_convert.checkpoint import open_checkpoint
from edge_convert.facts import Request
from edge_convert.gguf.engine import run_task
from edge_convert.gguf.imatrix_file import read_imatrix
from edge_convert.gguf.quantise import GgufOptions, check_tokenizer
from edge_convert.gguf.tensors import gguf_parts, write_gguf
from edge_convert.gguf.tokenizer import write_tokenizer
from edge_convert.gguf.vocabulary import read_vocabulary
from edge_convert.inputs import Input
from edge_convert.pipeline import Progress, run
from edge_convert.plan import make_plan
from edge_convert.strings import varied_strings
from tests.checkpoints import ARCHITECTURE_OF, GGUF_ONLY, KINDS, TOKENIZERS, make_checkpoint, make_tokenizer
from tests.prove import proof_size
from tests.unit.convert.reference import logits_of_checkpoint, logits_of_gguf, some_tokens
from tests.unit.convert.support import convert, read_manifest

Make = Callable[[str], Path]
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}


def test_every_cell_of_the_table_is_tried_here() -> None:
    wanted = {name for name, architecture in ARCHITECTURES.items() if "gguf" in architecture.formats}
    assert set(ARCHITECTURE_OF.values()) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_what_transformers_computes(kind: str, tiny_checkpoint: Make, tmp_path: Path) -> None:
    folder = tiny_checkpoint(kind)
    if kind == "phi3-long":  # llama.cpp's windows come in steps of 256
        folder = Path(shutil.copytree(folder, tmp_path / "copy"))
        config = json.loads((folder / "config.json").read_text())
        config["original_max_position_embeddings"] = config["rope_parameters"]["original_max_position_embeddings"] = 256
        (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.architecture.name == ARCHITECTURE_OF[kind]
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "F32")
    # Gemma's window is 16 here. LongRoPE has other factors beyond the first context: for transformers when the text is longer,
    # for llama.cpp when its window is.
    lengths = {"phi3-long": ((100, 256), (300, 512))}.get(kind, ((100, 128),))
    for n_tokens, n_context in lengths:
        tokens = some_tokens(n_tokens, checkpoint.config["vocab_size"])
        ours, theirs = logits_of_gguf(path, tokens, n_context), logits_of_checkpoint(folder, tokens)
        assert theirs.std() > 0.5  # else closeness would mean little
        # llama.cpp's tables for GELU are in float16.
        assert np.abs(ours - theirs).max() < (0.02 if kind.startswith("gemma") else 1e-3)
    header = read_header(path)
    assert (header.n_layer, header.n_embd) == (checkpoint.config["num_hidden_layers"], checkpoint.config["hidden_size"])
    assert header.chat_template == checkpoint.chat_template
    assert header.metadata["general.license"] == "apache-2.0"


@pytest.mark.prove
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_token_ids_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    from gguf import GGUFWriter
    from transformers import AutoTokenizer

    make_tokenizer(tmp_path, kind)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    path = tmp_path / "vocabulary.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_name("Phi-3" if kind == "phi3" else "x")  # see gguf_tensors._display_name
    for add in (writer.add_block_count, writer.add_embedding_length, writer.add_head_count, writer.add_context_length):
        add(1)
    writer.add_feed_forward_length(1)
    write_tokenizer(writer, tmp_path, read_vocabulary(tmp_path, len(tokenizer) + 3), None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    # What llama.cpp does not do is left out here, and said in docs/convert.md: composing characters (Qwen), combining marks as
    # letters (Mistral, Phi-4-mini), special tokens that swallow spaces beyond ASCII (Phi-3).
    texts = varied_strings(
        proof_size(1_500, 10_000),
        seed=11,
        specials=["<|im_start|>", "<|im_end|>", "<tool>"],
        is_normalised=kind == "qwen2",
        has_ascii_spaces=kind == "phi3",
        has_marks=kind not in ("tekken", "gpt4o"),
    )
    ours = run_task("tokenise", {"model": str(path), "texts": texts})
    different = [text for text, ids, others in zip(texts, ours, tokenizer(texts)["input_ids"], strict=True) if ids != others]
    assert different == []


def test_a_tokenizer_that_differs_is_refused(tiny_checkpoint: Make, tmp_path: Path) -> None:
    path = write_gguf(open_checkpoint(tiny_checkpoint("llama")), tmp_path / "model.gguf", "F16")
    make_tokenizer(tmp_path / "other", "gpt2")
    other = make_checkpoint(tmp_path / "other", "llama")
    make_tokenizer(tmp_path / "other", "gpt2")
    n_vocab = open_checkpoint(other).model.n_vocab
    assert check_tokenizer(path, tiny_checkpoint("llama"), n_vocab, count=200) == 200
    with pytest.raises(ModelFileError, match=r"of \d+ test strings differently .* from token \d+ on"):
        check_tokenizer(path, other, n_vocab, count=200)


def test_16_bit_weights_are_kept_exactly(tmp_path: Path) -> None:
    from gguf import GGUFReader

    folder = make_checkpoint(tmp_path / "checkpoint", "qwen3", dtype="bfloat16", shards=True)
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.shards) > 1
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "BF16")
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for mapped, (name, *_) in gguf_parts(checkpoint).items():
        ours = np.asarray(stored[mapped].data).view(np.uint8)
        if len(checkpoint.tensors[name].shape) > 1:
            assert ours.tobytes() == checkpoint.load(name).tobytes(), name
        else:
            assert np.array_equal(stored[mapped].data, checkpoint.load_f32(name)), name


def test_weights_beyond_float16_are_refused_by_name(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = make_checkpoint(tmp_path / "checkpoint", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 70_000.0
    save_file(weights, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    with pytest.raises(ModelFileError, match=r"layers\.1\.mlp\.up_proj\.weight has weights too large for float16"):
        write_gguf(checkpoint, tmp_path / "model.gguf", "F16")
    write_gguf(checkpoint, tmp_path / "model.gguf", "BF16")
    weights["model.norm.weight"][0] = np.nan
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"model\.norm\.weight holds values that are not numbers"):
        write_gguf(open_checkpoint(folder), tmp_path / "model.gguf", "BF16")


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("llama", {"hidden_act": "gelu"}, "activation"),
        ("gemma2", {"query_pre_attn_scalar": 77}, "scaled by 77"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "sliding window"),
        ("gemma3", {"layer_types": [*["sliding_attention"] * 5, "full_attention", "full_attention"]}, "sliding window"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "soft cap"),
        ("gemma2", {"attn_logit_softcapping": None}, "soft cap"),
        ("qwen2-yarn", {"rope_parameters": {**YARN, "beta_slow": 4.0}}, "beta_slow = 4.0"),
        ("qwen2-yarn", {"rope_parameters": {**YARN, "truncate": False}}, "truncate"),
    ],
)
def test_variants_that_llama_cpp_cannot_run_are_refused(
    kind: str, changes: dict[str, Any], reason: str, tiny_checkpoint: Make, tmp_path: Path
) -> None:
    import dataclasses

    checkpoint = open_checkpoint(tiny_checkpoint(kind))
    other = dataclasses.replace(checkpoint, config={**checkpoint.config, **changes})
    with pytest.raises(ModelFileError, match=reason):
        write_gguf(other, tmp_path / "model.gguf", "F16")


def test_quantised_files_load_and_stay_near(tmp_path: Path) -> None:
    # 256 wide, so that the K types apply.
    folder = make_checkpoint(tmp_path / "wide", "llama", hidden_size=256, intermediate_size=512)
    names = ("F16", "Q8_0", "Q4_K_M", "Q4_0", "IQ4_NL", "Q2_K")
    seen: list[Progress] = []
    options = GgufOptions(quantisations=names, calibration_tokens=512, threads=1)
    folders = convert(folder, tmp_path / "out", Request(gguf=options, card=False), seen.append)
    made = [next(folder.glob("*.gguf")) for folder in folders]
    assert [path.name for path in made] == [f"wide-{name}.gguf" for name in names]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"gguf-{name}" for name in names)
    assert all(f"Quantise to {name}" in {progress.title for progress in seen} for name in names[1:])
    assert all(0 <= progress.share <= 1 for progress in seen)
    tokens = some_tokens(64, 500)
    reference = logits_of_checkpoint(folder, tokens)
    errors = {}
    for name, path in zip(names, made, strict=True):
        assert read_header(path).file_type == name
        errors[name] = float(np.abs(logits_of_gguf(path, tokens, 64) - reference).mean() / reference.std())
    # llama.cpp rounds activations too: to 8 bits for these types.
    assert errors["F16"] < 0.01 < errors["Q8_0"] < 0.1 < errors["Q4_K_M"] < errors["Q2_K"], errors
    assert max(errors["Q4_K_M"], errors["Q4_0"], errors["IQ4_NL"]) < 0.6, errors
    sizes = [path.stat().st_size for path in made]
    assert sizes[0] > sizes[1] > sizes[2]


def test_the_importance_matrix_is_the_mean_square_of_the_inputs(tiny_checkpoint: Make, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint("qwen3")
    path = write_gguf(open_checkpoint(folder), tmp_path / "model.gguf", "F32")
    chunks = [some_tokens(90, 500), some_tokens(70, 400)]
    out = tmp_path / "matrix.gguf"
    count = run_task("calibrate", {"model": str(path), "chunks": chunks, "out": str(out), "threads": 1, "text": "t"})
    matrix = read_imatrix(out)
    assert count == len(matrix) == 2 * 7 + 1  # seven matrices a layer, and the head
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sums: dict[str, Any] = {"blk.1.ffn_down.weight": 0.0, "blk.0.attn_k.weight": 0.0}
    modules = {"blk.1.ffn_down.weight": model.model.layers[1].mlp.down_proj}
    modules["blk.0.attn_k.weight"] = model.model.layers[0].self_attn.k_proj

    def watch(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: Any) -> None:
            sums[name] = sums[name] + inputs[0][0].double().square().sum(0)

        return hook

    for name, module in modules.items():
        module.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        for chunk in chunks:
            model(torch.tensor([chunk]))
    for name, total in sums.items():
        np.testing.assert_allclose(matrix[name], (total / 160).numpy(), rtol=5e-3)


def test_same_input_same_bytes(tiny_checkpoint: Make, tmp_path: Path) -> None:
    request = Request(gguf=GgufOptions(quantisations=("Q4_0",), calibration_tokens=512, threads=2), card=False)
    first, second = (convert(tiny_checkpoint("llama"), tmp_path / out, request)[0] for out in ("a", "b"))
    assert (first / "llama-Q4_0.gguf").read_bytes() == (second / "llama-Q4_0.gguf").read_bytes()


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="no quantisation Q4"):
        GgufOptions(quantisations=("Q4",))
    with pytest.raises(UsageError, match="too few bits"):
        GgufOptions(quantisations=("IQ2_XS",), use_imatrix=False)


def test_a_name_that_promises_other_types_is_noted(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "narrow", "llama", hidden_size=96, num_attention_heads=3, num_key_value_heads=3)
    options = GgufOptions(quantisations=("Q4_K_M", "Q4_0"), use_imatrix=False)
    source = Input(kind="checkpoint", path=folder, source="narrow")
    plan = make_plan(source, tmp_path / "out", Request(gguf=options, card=False))
    (note,) = [note for note in plan.notes if "multiple of its blocks" in note]
    assert note.startswith("Q4_K_M fits ")
    made = dict(zip(options.quantisations, run(plan), strict=True))
    recipes = {name: read_manifest(path / "manifest.json").recipe["types of the weights"] for name, path in made.items()}
    assert recipes["Q4_0"].startswith("Q4_0 ")
    assert "Q4_K" not in recipes["Q4_K_M"].split(" ")[0] or "Q5_0" in recipes["Q4_K_M"]


def test_logits_that_differ_are_refused(tmp_path: Path) -> None:
    """A file that says less than config.json does: llama.cpp computes another model from it."""
    from edge_convert.gguf.check_logits import check_logits

    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "checkpoint", "qwen2-yarn"))
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "F32")
    assert check_logits(path, checkpoint, "F32", tmp_path) < 1e-5
    path.write_bytes(path.read_bytes().replace(b"rope.scaling.factor", b"rope.scaling.fActor"))
    with pytest.raises(ModelFileError, match="computes other logits"):
        check_logits(path, checkpoint, "F32", tmp_path)


@pytest.mark.parametrize("kind", ["granite4", "qwen3moe", "lfm2"])
def test_a_conversion_compares_the_logits_of_other_layers_too(kind: str, tiny_checkpoint: Make, tmp_path: Path) -> None:
    """A layer at a time: with experts in one tensor, a convolution instead of attention, and divided logits."""
    from edge_convert.gguf.check_logits import check_logits

    checkpoint = open_checkpoint(tiny_checkpoint(kind))
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "F32")
    assert check_logits(path, checkpoint, "F32", tmp_path) < 1e-4


@pytest.mark.parametrize("kind", GGUF_ONLY)
def test_what_only_llama_cpp_runs_is_told_at_once(kind: str, tiny_checkpoint: Make, tmp_path: Path) -> None:
    folder = tiny_checkpoint(kind)
    for form in ("onnx", "coreml"):
        with pytest.raises(ModelFileError, match=f"cannot become {form}") as caught:
            make_plan(Input(kind="checkpoint", path=folder, source=kind), tmp_path / "out", Request(formats=(form,)))
        assert "gguf" in caught.value.hint
    path = write_gguf(open_checkpoint(folder), tmp_path / "model.gguf", "F16")
    with pytest.raises(ModelFileError, match="does not read its GGUF back"):
        make_plan(Input(kind="gguf", path=path, source=kind), tmp_path / "out", Request())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", {"rope_parameters": {**YARN, "attention_factor": 1.7}}),
        ("qwen2", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}}),
        ("llama", {"mlp_bias": True, "attention_bias": True}),
        ("llama", {"rope_parameters": {**YARN, "beta_fast": 20.0, "beta_slow": 4.0}}),
        ("llama", {"rope_parameters": {**YARN, "truncate": False, "attention_factor": 1.3}}),
        ("mistral", {"rope_parameters": {**YARN, "beta_fast": 8, "original_max_position_embeddings": 64}}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e5, "factor": 4.0}}),
        ("gemma3", {"layer_types": ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]}),
        ("gemma3", {"layer_types": ["sliding_attention"] * 7}),
        ("gemma2", {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}),
    ],
)
def test_variants_that_llama_cpp_runs(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", kind, **changes)
    checkpoint = open_checkpoint(folder)
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "F32")
    tokens = some_tokens(100, checkpoint.model.n_vocab)
    difference = logits_of_gguf(path, tokens, 128) - logits_of_checkpoint(folder, tokens)
    assert np.abs(difference).max() < (0.02 if kind.startswith("gemma") else 1e-3)


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gemma3"])
def test_biases_of_attention(kind: str, tmp_path: Path) -> None:
    """llama.cpp reads those of q, k and v everywhere, that of o for Llama only: zeros are left out, others refused by name."""
    from safetensors.numpy import load_file, save_file

    folder = make_checkpoint(tmp_path / "checkpoint", kind, attention_bias=True)
    found = Input(kind="checkpoint", path=folder, source=kind)
    with pytest.raises(ModelFileError, match=r"no place for model\.layers\.0\.self_attn\.o_proj\.bias"):
        make_plan(found, tmp_path / "out", Request(card=False))
    weights = load_file(folder / "model.safetensors")
    for name, values in weights.items():
        if name.endswith("o_proj.bias"):
            values[:] = 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert make_plan(found, tmp_path / "out", Request(card=False)).steps
    checkpoint = open_checkpoint(folder)
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "F32")
    assert "blk.1.attn_v.bias" in {tensor.name for tensor in read_header(path).tensors}
    tokens = some_tokens(100, checkpoint.model.n_vocab)
    difference = logits_of_gguf(path, tokens, 128) - logits_of_checkpoint(folder, tokens)
    assert np.abs(difference).max() < (0.02 if kind.startswith("gemma") else 1e-3)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("phi3", {"sliding_window": 16}),
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    ],
)
def test_the_context_ends_where_llama_cpp_has_no_window(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", kind, **changes)
    plan = make_plan(Input(kind="checkpoint", path=folder, source=kind), tmp_path / "out", Request(card=False))
    assert any("after 16 tokens" in note for note in plan.notes)
    checkpoint = open_checkpoint(folder)
    header = read_header(write_gguf(checkpoint, tmp_path / "model.gguf", "F32"))
    assert header.n_ctx_train == 16
