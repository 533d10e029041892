"""Embeddings over OpenAI's and Ollama's protocols, asked by their own clients."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import pytest
from gguf import PoolingType
from openai import BadRequestError, NotFoundError, OpenAI

from edge.catalog import Installed
from edge_serve.offer import Offer
from tests.serving import Serving, serving, wait_until
from tests.tiny_embedding import load_hashed
from tests.tiny_gguf import write_gguf


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


@pytest.fixture
def with_embedder(tmp_path: Path) -> Iterator[Serving]:
    """A server that offers a model that chats, and a file of one that does not."""
    file = write_gguf(tmp_path / "vectors.gguf", change=lambda writer: writer.add_pooling_type(PoolingType.MEAN))
    with serving(server={"idle_s": 0.2}) as server:
        chats = Installed("tiny", "tiny", Path("tiny"), 0, "a test", "edge", ("tiny",), None, None)
        embeds = Installed("vectors", "vectors", file, file.stat().st_size, "a test", "edge", ("vectors",), None, None)
        server.service.offer = Offer(server.service.settings, lambda _: [chats, embeds])
        yield server


def test_a_model_for_embeddings_that_is_asked_to_chat_is_a_400_in_each_form(with_embedder: Serving) -> None:
    body: dict[str, Any] = {"model": "vectors", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/messages/count_tokens"):
        status, _, found = with_embedder.post(path, body)
        error = found["error"]
        message = error if path == "/api/chat" else error["message"]
        assert status == 400 and "vectors makes embeddings" in message, path
    assert with_embedder.post("/v1/chat/completions", {**body, "stream": True})[0] == 400
    assert with_embedder.post("/v1/completions", {"model": "vectors", "prompt": "x"})[0] == 400
    status, _, found = with_embedder.post("/api/show", {"model": "vectors"})
    assert (status, found["capabilities"]) == (200, ["embedding"])


def test_models_for_embeddings_are_in_the_state_and_unloaded_when_idle(with_embedder: Serving) -> None:
    def state() -> dict[str, Any]:
        models = with_embedder.ask("GET", "/status")[2]["models"]
        return {model["id"]: (model["task"], model["status"], model.get("context_window")) for model in models}

    assert state()["vectors"] == ("embeddings", "not loaded", None) and state()["tiny"][0] == "chat"
    assert with_embedder.post("/v1/embeddings", {"model": "vectors", "input": "one"})[0] == 200
    runtime = with_embedder.service.runtime
    with runtime._embedders.use("vectors"):  # so that it is not idle
        assert state()["vectors"] == ("embeddings", "loaded", 16)
        _, _, running = with_embedder.ask("GET", "/api/ps")
        assert "vectors" in [model["name"] for model in running["models"]]
        _, _, metrics = with_embedder.ask("GET", "/metrics")
        assert b'edge_model_memory_bytes{model="vectors"}' in metrics
    with_embedder.post("/v1/embeddings", {"model": "vectors", "input": "two"})
    wait_until(lambda: not runtime.loaded_embedders)


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
