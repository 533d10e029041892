"""Models for embeddings to ONNX: `edge embed` computes from the folder what transformers computes from the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")
pytest.importorskip("onnx", reason="needs the extra [convert]")

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from edge.embedding import load_embedder
from edge.errors import EdgeError, ModelFileError, UsageError
from edge_convert.architectures import ENCODERS
from edge_convert.checkpoint import read_json
from edge_convert.encoder.config import open_encoder
from edge_convert.facts import Request
from edge_convert.inputs import Input
from edge_convert.manifest import check_files
from edge_convert.pipeline import run
from edge_convert.plan import make_plan
from edge_convert.smaller.recipe import Recipe, Recovery, Training
from tests.tiny_embedding import WORDS, write_checkpoint, write_tokenizer
from tests.unit.convert.support import read_manifest

TEXTS = ["the cats sat on the mat.", "mat", "the cat un ##do", "cat " * 30]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
ONNX = Request(formats=("onnx",), bits=16)


def write_encoder(folder: Path, name: str, pooling: str) -> Any:
    """Write a tiny checkpoint of a class in ENCODERS, and return the model of transformers."""
    import transformers

    model = write_checkpoint(folder, pooling=pooling)
    if name != "BertModel":
        torch.manual_seed(3)
        config = getattr(transformers, name.replace("Model", "Config"))(**SIZES, type_vocab_size=1, pad_token_id=0)
        model = getattr(transformers, name)(config).eval()  # with the pooler, whose weights are not used
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms of 1 and biases of 0 would hide a mistake
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def source_of(folder: Path) -> Input:
    return Input(kind="checkpoint", path=folder, source=folder.name)


def tokens_of(folder: Path) -> list[list[int]]:
    """Tokens of the texts, at most 24 of each, with those at its ends."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(24)
    return [encoded.ids for encoded in tokenizer.encode_batch(TEXTS)]


def expected_vectors(model: Any, ids: list[list[int]], pooling: str) -> np.ndarray[Any, Any]:
    """Vectors by transformers, a text at a time."""
    rows = []
    for tokens in ids:
        first = 0 if model.config.model_type == "bert" else 1 + model.config.pad_token_id
        with torch.no_grad():
            places = torch.arange(len(tokens))[None] + first
            states = model(torch.tensor([tokens]), position_ids=places).last_hidden_state[0].numpy()
        vector = states[0] if pooling == "cls" else states.mean(0)
        rows.append(vector / np.linalg.norm(vector))
    return np.array(rows)


@pytest.mark.parametrize(
    ("name", "pooling", "bits", "most"),
    [
        ("BertModel", "mean", 16, 1e-5),
        ("BertModel", "cls", 8, 0.02),
        ("BertModel", "mean", 4, 0.3),
        ("RobertaModel", "mean", 16, 1e-5),
        ("XLMRobertaModel", "cls", 16, 1e-5),
    ],
)
def test_edge_embeds_as_transformers_does(name: str, pooling: str, bits: int, most: float, tmp_path: Path) -> None:
    model = write_encoder(tmp_path / "tiny", name, pooling)
    plan = make_plan(source_of(tmp_path / "tiny"), tmp_path / "out", Request(formats=("onnx",), bits=bits))
    (made,) = run(plan, None)
    with load_embedder(str(made)) as embedder:
        assert (embedder.info.pooling, embedder.info.n_ctx) == (pooling, 24)
        found = embedder.embed(TEXTS, truncate=True).vectors
    expected = expected_vectors(model, tokens_of(made), pooling)
    assert np.abs(found - expected).max() < most
    manifest = read_manifest(made / "manifest.json")
    assert (manifest.architecture, manifest.format) == (name, "onnx")
    assert float(manifest.recipe["least cosine with transformers"]) > 1 - most
    assert check_files(made) == len(manifest.files) >= 6
    assert name in ENCODERS


def change(folder: Path, file: str, **keys: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(read_json(path) | keys), encoding="utf-8")


def add_word(folder: Path, word: str, index: int) -> None:
    content = read_json(folder / "tokenizer.json")
    content["model"]["vocab"][word] = index
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def store(folder: Path, other: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(other(load_file(path)), path, metadata={"format": "pt"})


def twice(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Another norm under its older name, beside the newer one."""
    return weights | {"embeddings.LayerNorm.beta": weights["embeddings.LayerNorm.bias"] + 1}


def zeros(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(weight) for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: change(folder, "config.json", hidden_act="relu"), "activation is relu"),
        (lambda folder: change(folder, "config.json", position_embedding_type="relative_key"), "not absolute"),
        (lambda folder: change(folder, "config.json", num_attention_heads=5), "multiple"),
        (lambda folder: change(folder, "config.json", hidden_size="x"), "hidden_size"),
        (lambda folder: change(folder, "config.json", num_hidden_layers=3), "lacks the tensor encoder.layer.2"),
        (lambda folder: change(folder, "config.json", num_hidden_layers=1), "holds encoder.layer.1"),
        (lambda folder: change(folder, "config.json", intermediate_size=7), "has the shape"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]'), "Dense"),
        (lambda folder: (folder / "modules.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        (lambda folder: change(folder, "config.json", architectures=[["x"]]), "names no architecture"),
        (lambda folder: (folder / "modules.json").write_text('[{"a":' + "[" * 100_000), "nested too deeply"),
        (lambda folder: (folder / "1_Pooling/config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "1_Pooling/config.json").write_text("{}"), "names no way of pooling"),
        (lambda folder: change(folder, "1_Pooling/config.json", pooling_mode_cls_token=True), "joins 2 ways of pooling"),
        (lambda folder: (folder / "sentence_bert_config.json").write_text('{"max_seq_length": -1}'), "max_seq_length"),
        (lambda folder: add_word(folder, "zzz", 5000), "has the token 'zzz' as 5,000"),
        (lambda folder: store(folder, twice), "embeddings.LayerNorm.bias twice"),
        (lambda folder: store(folder, zeros), "computes no vectors"),
    ],
)
def test_what_would_give_other_vectors_is_refused(damage: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    write_encoder(tmp_path / "tiny", "BertModel", "mean")
    open_encoder(tmp_path / "tiny", source="tiny")
    damage(tmp_path / "tiny")
    with pytest.raises(ModelFileError, match=words):
        run(make_plan(source_of(tmp_path / "tiny"), tmp_path / "out", ONNX), None)


def test_what_does_not_fit_embeddings_is_refused_with_a_way_out(tmp_path: Path) -> None:
    write_encoder(tmp_path / "tiny", "BertModel", "mean")
    recipe = Recipe(keep_layers=1, training=Training(minutes=1))
    for request, error, words in (
        (Request(formats=("gguf",)), ModelFileError, "--to onnx"),
        (Request(formats=("onnx", "coreml")), ModelFileError, "--to onnx"),
        (Request(formats=("onnx",), bits=6), UsageError, "4, 8 or 16"),
        (Request(formats=("onnx",), smaller=recipe), UsageError, "--keep-"),
        (Request(formats=("onnx",), recovery=Recipe(recovery=Recovery(minutes=1))), UsageError, "--recover-minutes"),
    ):
        with pytest.raises(error) as caught:
            make_plan(source_of(tmp_path / "tiny"), tmp_path / "out", request)
        assert isinstance(caught.value, EdgeError)
        assert words in caught.value.hint


def test_vectors_that_differ_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that computes something else: its norms and biases are in another order."""
    from edge_convert.onnx.sources import CheckpointWeights

    write_encoder(tmp_path / "tiny", "BertModel", "mean")
    right = CheckpointWeights.vector
    monkeypatch.setattr(CheckpointWeights, "vector", lambda self, name: right(self, name)[::-1])
    with pytest.raises(ModelFileError, match="other vectors than transformers"):
        run(make_plan(source_of(tmp_path / "tiny"), tmp_path / "out", ONNX), None)
    assert not (tmp_path / "out/onnx-fp32").exists()


def test_the_command_says_how_to_use_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edge_cli.main import run as edge

    write_encoder(tmp_path / "tiny", "BertModel", "mean")
    out = tmp_path / "out"
    assert edge(["convert", str(tmp_path / "tiny"), "--to", "onnx", "--bits", "8", "--name", "mine", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.out.split()[0] == str(out / "onnx-int8")
    assert f"edge embed -m {out / 'onnx-int8'}" in shown.err


@pytest.mark.parametrize(("name", "given"), [("RobertaModel", None), ("RobertaModel", 100_000), ("BertModel", 30)])
def test_a_text_may_be_as_long_as_there_are_positions(name: str, given: int | None, tmp_path: Path) -> None:
    """RoBERTa's first positions are not used, which its config.json does not say."""
    write_encoder(tmp_path / "tiny", name, "mean")
    (tmp_path / "tiny/sentence_bert_config.json").unlink()
    if given:
        (tmp_path / "tiny/sentence_bert_config.json").write_text(json.dumps({"max_seq_length": given}))
    (made,) = run(make_plan(source_of(tmp_path / "tiny"), tmp_path / "out", ONNX), None)
    with load_embedder(str(made)) as embedder:
        assert embedder.info.n_ctx == (30 if given == 30 else 39)
        assert np.isfinite(embedder.embed(["cat " * 100], truncate=True).vectors).all()


@pytest.mark.parametrize("options", [["--gate", "top1=0.9"], ["--for", "this-device"], ["--tasks", "facts"]])
def test_what_a_card_would_answer_is_refused_before_the_work(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_cli.main import run as edge

    write_encoder(tmp_path / "tiny", "BertModel", "mean")
    out = tmp_path / "out"
    assert edge(["convert", str(tmp_path / "tiny"), "--to", "onnx", *options, "--out", str(out)]) == 2
    assert f"has no card: leave out {options[0]}" in capsys.readouterr().err
    assert not out.exists()
