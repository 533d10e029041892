"""Tokenizers that do not fit the model: an added token without a row in the embedding goes, any other is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

from edge.errors import ModelFileError
from edge_convert.checkpoint import read_json
from edge_convert.facts import Request
from edge_convert.gguf.quantise import GgufOptions
from edge_convert.inputs import Input
from edge_convert.pipeline import run
from edge_convert.plan import make_plan
from edge_convert.tokenizer_files import check_tokenizer_files, remove_rowless
from tests.checkpoints import add_tokens
from tests.unit.convert.conftest import Make
from tests.unit.convert.support import convert

ROWLESS = "<image_soft_token>"
FLOATS = GgufOptions(quantisations=("F32",), use_imatrix=False, threads=1)


def with_rowless(checkpoint: Path, folder: Path) -> Path:
    """A copy with one more added token than the embedding has rows, described as Gemma 3's files do."""
    shutil.copytree(checkpoint, folder)
    n_vocab = read_json(folder / "config.json")["vocab_size"]
    add_tokens(folder, {ROWLESS: True})
    index = read_json(folder / "tokenizer.json")["added_tokens"][-1]["id"]
    assert index == n_vocab
    config = read_json(folder / "tokenizer_config.json")
    decoder = {"0": {"content": "a"}, "x": {"content": "b"}, str(index): {"content": ROWLESS, "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": decoder}))
    (folder / "added_tokens.json").write_text(json.dumps({ROWLESS: index, "a": 0}))
    return folder


def contents(folder: Path) -> list[Any]:
    added = [entry["content"] for entry in read_json(folder / "tokenizer.json")["added_tokens"]]
    return [added, read_json(folder / "tokenizer_config.json"), read_json(folder / "added_tokens.json")]


def test_an_added_token_without_a_row_goes_from_every_file(tiny_checkpoint: Make, tmp_path: Path) -> None:
    folder = with_rowless(tiny_checkpoint("gemma3"), tmp_path / "gemma")
    n_vocab = read_json(folder / "config.json")["vocab_size"]
    check_tokenizer_files(folder, n_vocab)
    before = contents(folder)
    remove_rowless(folder, n_vocab + 1)
    assert contents(folder) == before
    remove_rowless(folder, n_vocab)
    added, config, ids = contents(folder)
    assert added == before[0][:-1]
    assert (list(config["added_tokens_decoder"]), ids) == (["0", "x"], {"a": 0})
    check_tokenizer_files(folder, n_vocab)


def test_gemma_3_with_its_image_token_becomes_gguf_and_onnx(tiny_checkpoint: Make, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra [convert]")
    from gguf import GGUFReader

    folder = with_rowless(tiny_checkpoint("gemma3"), tmp_path / "gemma")
    shutil.copyfile(tiny_checkpoint("gemma3") / "tokenizer_config.json", folder / "tokenizer_config.json")
    (folder / "added_tokens.json").unlink()
    request = Request(formats=("gguf", "onnx"), bits=16, gguf=FLOATS, card=False)
    convert(folder, tmp_path / "out", request)
    tokens = GGUFReader(next(tmp_path.glob("out/*/*.gguf"))).fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == read_json(folder / "config.json")["vocab_size"]
    assert ROWLESS not in tokens
    described = read_json(tmp_path / "out/onnx-fp32/tokenizer.json")
    assert ROWLESS not in [entry["content"] for entry in described["added_tokens"]]


def test_a_token_beyond_the_embedding_is_refused_for_every_format(tiny_checkpoint: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "llama"))
    content = read_json(folder / "tokenizer.json")
    content["model"]["vocab"]["zzzz"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    source = Input(kind="checkpoint", path=folder, source="llama")
    for form in ("gguf", "onnx", "coreml"):
        plan = make_plan(source, tmp_path / "out", Request(formats=(form,), gguf=FLOATS, coreml_context=256, card=False))
        with pytest.raises(ModelFileError, match="has the token 'zzzz' as 5,000, and the model has 601 tokens"):
            run(plan)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"eos_token_id": [2, 10**9]}, "eos_token_id is 1000000000, and the vocabulary has 601 tokens"),
        ({"pad_token_id": "x"}, "pad_token_id is text, and should be a whole number"),
        ({"temperature": "x"}, "temperature is text, and should be a number"),
        ({"do_sample": 7}, "do_sample is a whole number, and should be true or false"),
    ],
)
def test_values_of_generation_config_are_checked_for_every_format(
    keys: dict[str, Any], reason: str, tiny_checkpoint: Make, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "llama"))
    (folder / "generation_config.json").write_text(json.dumps(keys))
    with pytest.raises(ModelFileError, match=reason):
        convert(folder, tmp_path / "out", Request(formats=("onnx",), bits=16, card=False))
    assert not (tmp_path / "out").exists()


def test_tokens_that_stand_for_none_are_not_written_to_onnx(tiny_checkpoint: Make, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra [convert]")
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "llama"))
    (folder / "generation_config.json").write_text(json.dumps({"pad_token_id": -1, "bos_token_id": 10**9}))
    (made,) = convert(folder, tmp_path / "out", Request(formats=("onnx",), bits=16, card=False))
    written = read_json(made / "genai_config.json")["model"]
    assert (written["bos_token_id"], written["pad_token_id"]) == (0, 2)
