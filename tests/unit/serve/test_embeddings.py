"""Embeddings over OpenAI's and Ollama's protocols, asked by their own clients."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import ollama
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.serving import Serving
from tests.tiny_embedding import load_hashed


def test_openais_client_gets_the_vectors_in_both_encodings(client: OpenAI, running: Serving) -> None:
    wanted = load_hashed().embed(["one", "two three"])
    with OpenAI(base_url=f"{running.url}/v1", api_key="none") as usual:  # asks for base64, which its own types do not know
        found = usual.embeddings.create(model="tiny", input=["one", "two three"])
    np.testing.assert_allclose([one.embedding for one in found.data], wanted.vectors)
    assert ([one.index for one in found.data], found.model) == ([0, 1], "tiny")
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (7, 7)
    plain = client.embeddings.create(model="tiny", input="one", encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, wanted.vectors[0], rtol=1e-6)
    _, _, body = running.post("/v1/embeddings", {"input": "one", "encoding_format": "base64"})
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4"), wanted.vectors[0])
    assert body["model"] == "all-minilm-l6-v2", "the default is not the model that chats"


def test_token_ids_and_dimensions(client: OpenAI) -> None:
    wanted = load_hashed().embed([[1, 7, 2], [1, 9, 2]]).vectors
    one = client.embeddings.create(model="tiny", input=[1, 7, 2], encoding_format="float")
    np.testing.assert_allclose(one.data[0].embedding, wanted[0], rtol=1e-6)
    two = client.embeddings.create(model="tiny", input=[[1, 7, 2], [1, 9, 2]], encoding_format="float")
    np.testing.assert_allclose([row.embedding for row in two.data], wanted, rtol=1e-6)
    short = client.embeddings.create(model="tiny", input="x", dimensions=4, encoding_format="float")
    assert len(short.data[0].embedding) == 4


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": ""}, "empty"),
        ({"input": []}, "empty"),
        ({"input": ["one", ""]}, "Text 2 is empty"),
        ({"input": ["one", 5]}, "mixes"),
        ({"input": [5000]}, "token"),
        ({"input": "x", "dimensions": 5}, "dimensions is 5"),
        ({"input": ["x"] * 2049}, "2,048"),
        ({"input": "word " * 40}, "maximum context length"),
    ],
)
def test_what_is_wrong_is_said(client: OpenAI, body: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        client.embeddings.create(model="tiny", encoding_format="float", **body)


def test_an_unknown_model_is_404(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="text-embedding-3-small"):
        client.embeddings.create(model="text-embedding-3-small", input="x")


def test_ollamas_client_gets_vectors_cut_unless_it_says_otherwise(running: Serving) -> None:
    with ollama.Client(host=running.url) as client:
        wanted = load_hashed().embed(["one", "word " * 40], truncate=True)
        found = client.embed("tiny", ["one", "word " * 40])
        np.testing.assert_allclose(found.embeddings, wanted.vectors, rtol=1e-6)
        assert (found.model, found.prompt_eval_count) == ("tiny", sum(wanted.n_tokens))
        with pytest.raises(ollama.ResponseError, match="has 42 tokens"):
            client.embed("tiny", "word " * 40, truncate=False)
        np.testing.assert_allclose(client.embeddings("tiny", "one").embedding, wanted.vectors[0], rtol=1e-6)
        assert client.embed("tiny", "").embeddings == []
        assert list(client.embeddings("tiny", "").embedding) == []
