"""A checkpoint written as GGUF and computed by llama.cpp, against transformers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from edge.config import load_settings
from edge.embedding import load_embedder
from edge.errors import ModelFileError, UsageError
from edge.formats.bert_gguf import write_bert
from edge.formats.gguf import read_header
from tests.tiny_embedding import WORDS, write_checkpoint

TEXTS = ["the cat sat on the mat.", "Cats, UNDO the sitting", "mat", "zebra the", "Thé cat\tsat, on " * 3]


@pytest.fixture(scope="module", params=["mean", "cls", "last"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any, str]:
    """(checkpoint, GGUF, model of transformers, pooling)."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = write_checkpoint(folder, pooling=request.param)
    path = folder / "tiny.gguf"
    with path.open("wb") as out:
        write_bert(lambda name: (folder / name).read_bytes(), out, name="tiny")
    return folder, path, model, request.param


def expected(model: Any, pooling: str, text: str) -> tuple[list[int], np.ndarray[Any, Any]]:
    tokenizer = BertTokenizer({word: number for number, word in enumerate(WORDS)})
    given = tokenizer(text, return_tensors="pt", truncation=True, max_length=24)
    with torch.no_grad():
        states = model(**given).last_hidden_state[0].numpy()
    vector = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
    return given["input_ids"][0].tolist(), vector / np.linalg.norm(vector)


def test_vectors_are_those_of_transformers(both: tuple[Path, Path, Any, str]) -> None:
    _, path, model, pooling = both
    with load_embedder(str(path), settings=load_settings({"threads": 1})) as embedder:
        assert (embedder.info.pooling, embedder.info.n_ctx, embedder.info.n_dims) == (pooling, 24, 32)
        found = embedder.embed(TEXTS, truncate=True)
        single = [embedder.embed(text, truncate=True).vectors[0] for text in TEXTS]
    for text, vector, alone, n_tokens in zip(TEXTS, found.vectors, single, found.n_tokens, strict=True):
        ids, wanted = expected(model, pooling, text)
        assert n_tokens == len(ids)
        np.testing.assert_allclose(vector, wanted, atol=1e-3)
        np.testing.assert_allclose(vector, alone, atol=1e-3)


def test_the_file_is_one_for_others_too(both: tuple[Path, Path, Any, str]) -> None:
    _, path, model, _ = both
    reader = gguf.GGUFReader(path)
    weights = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    table = model.embeddings.word_embeddings.weight.detach().numpy()
    np.testing.assert_array_equal(weights["token_embd.weight"], table.astype(np.float16))
    assert weights["position_embd.weight"].shape == (24, 32), "positions beyond the window are left out"
    header = read_header(path)
    assert (header.architecture, header.n_layer, header.n_ctx_train, header.n_vocab) == ("bert", 2, 24, len(WORDS))


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "vocab.txt", "model.safetensors"])
def test_a_damaged_checkpoint_is_refused(both: tuple[Path, Path, Any, str], name: str) -> None:
    folder = both[0]

    def read(wanted: str) -> bytes:
        data = (folder / wanted).read_bytes()
        return data[: len(data) // 2] if wanted == name else data

    with pytest.raises(ModelFileError, match="cannot be used"):
        write_bert(read, io.BytesIO(), name="tiny")


def test_a_chat_model_makes_no_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "chat.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for add in (writer.add_block_count, writer.add_embedding_length, writer.add_context_length, writer.add_head_count):
        add(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UsageError, match="generates text, and makes no embeddings") as caught:
        load_embedder(str(path))
    assert "all-minilm-l6-v2" in caught.value.hint
