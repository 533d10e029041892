"""ONNX folders: pooling as the folder says, padding without effect, what cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.embedding import load_embedder
from edge.errors import ModelFileError
from tests.tiny_embedding import POOLING, WORDS, write_onnx_embedding

TEXTS = ["the cats sat on the mat.", "mat", "the cat"]


def pooled(table: np.ndarray[Any, Any], tokens: list[str], pooling: str) -> np.ndarray[Any, Any]:
    rows = table[[WORDS.index(token) for token in tokens]]
    vector = {"mean": rows.mean(0), "cls": rows[0], "last": rows[-1], "max": rows.max(0)}[pooling]
    return np.asarray(vector / np.linalg.norm(vector))


@pytest.mark.parametrize("pooling", [*POOLING, None])
def test_pooling_is_that_of_the_folder(tmp_path: Path, pooling: str | None) -> None:
    table = write_onnx_embedding(tmp_path / "tiny", pooling=pooling)
    with load_embedder(str(tmp_path / "tiny")) as embedder:
        assert (embedder.name, embedder.info.pooling, embedder.info.n_ctx) == ("tiny", pooling or "mean", 24)
        found = embedder.embed(TEXTS)
        cut = embedder.embed("cat " * 30, truncate=True)
    split = [
        ["[CLS]", "the", "cat", "##s", "sat", "on", "the", "mat", ".", "[SEP]"],
        ["[CLS]", "mat", "[SEP]"],
        ["[CLS]", "the", "cat", "[SEP]"],
    ]
    assert found.n_tokens == tuple(map(len, split))
    for vector, tokens in zip(found.vectors, split, strict=True):
        np.testing.assert_allclose(vector, pooled(table, tokens, pooling or "mean"), atol=1e-6)
    np.testing.assert_allclose(cut.vectors[0], pooled(table, ["[CLS]", *["cat"] * 22, "[SEP]"], pooling or "mean"), atol=1e-6)


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    write_onnx_embedding(folder)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(ModelFileError, match="no way of pooling"):
        load_embedder(str(folder))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load_embedder(str(folder))
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelFileError):
        load_embedder(str(folder))
