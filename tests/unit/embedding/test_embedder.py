"""What an embedder does whatever its engine: order, batches, limits, errors."""

from __future__ import annotations

import time

import numpy as np
import pytest

import edge
from edge.embedding.embedder import Embedder
from edge.embedding.loading import EmbedderCache
from edge.errors import BackendError, CancelledError, ContextFullError, UsageError
from tests.tiny_embedding import HashedEngine, load_hashed


def test_vectors_are_in_the_order_of_the_texts_however_they_are_batched() -> None:
    engine = HashedEngine()
    embedder = Embedder(engine, "tiny")
    texts = [" ".join(["word"] * n) for n in (1, 9, 3, 14, 2, 7, 5)]
    found = embedder.embed(texts)
    assert engine.batches == [[16, 11, 9, 7], [5, 4, 3]]  # similar lengths together; no batch above 64 tokens, 4 texts
    assert found.n_tokens == (3, 11, 5, 16, 4, 9, 7)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    for text, vector in zip(texts, found.vectors, strict=True):
        np.testing.assert_array_equal(embedder.embed(text).vectors[0], vector)
    np.testing.assert_allclose(np.diag(found.similarity()), 1, atol=1e-6)


def test_a_text_beyond_the_window_is_refused_with_both_numbers_or_cut_if_asked() -> None:
    embedder = Embedder(HashedEngine(), "tiny")
    with pytest.raises(ContextFullError, match=r"Text 2 has 22 tokens, and tiny takes 16") as caught:
        embedder.embed(["one", "word " * 20])
    assert (caught.value.n_prompt, caught.value.n_ctx, caught.value.is_least) == (22, 16, False)
    with pytest.raises(ContextFullError, match="at least"):
        embedder.embed("word " * 1000)
    found = embedder.embed(["one", "word " * 20], truncate=True)
    assert (found.truncated, found.n_tokens) == ((1,), (3, 16))
    # Blanks are no tokens: a text is measured whole before it is taken for short.
    assert embedder.embed("one" + " " * 5000 + "two").n_tokens == (4,)


@pytest.mark.parametrize("texts", [[], "", ["one", " "], [3.5], [None], [[1, 1000]], [[-1]], [[]], [1, "one"], [[True]]])
def test_what_is_no_text_is_refused(texts: object) -> None:
    with pytest.raises(UsageError):
        Embedder(HashedEngine(), "tiny").embed(texts)  # type: ignore[arg-type]


def test_token_ids_stand_for_a_text() -> None:
    engine = HashedEngine()
    embedder = Embedder(engine, "tiny")
    tokens = engine.tokenize("one two")
    both = embedder.embed([tokens, "one two"]).vectors
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_array_equal(embedder.embed(tokens).vectors[0], both[0])


def test_dimensions_that_the_model_was_trained_for() -> None:
    embedder = Embedder(HashedEngine(), "tiny")
    whole, short = embedder.embed("one").vectors[0], embedder.embed("one", dimensions=4).vectors[0]
    np.testing.assert_allclose(short, whole[:4] / np.linalg.norm(whole[:4]), rtol=1e-6)
    with pytest.raises(UsageError, match="dimensions is 5, and the vectors of tiny have 4, 8"):
        embedder.embed("one", dimensions=5)


def test_it_is_stopped_between_batches_and_closed_for_good() -> None:
    engine = HashedEngine()
    embedder = Embedder(engine, "tiny")
    with pytest.raises(CancelledError):
        embedder.embed(["one"] * 9, on_progress=lambda n_done, n_all: n_done < 8)
    assert len(engine.batches) == 2
    embedder.close()
    embedder.close()
    assert engine.is_closed
    with pytest.raises(BackendError, match="closed"):
        embedder.embed("one")


def test_models_stay_loaded_and_the_least_recently_used_makes_room() -> None:
    cache = EmbedderCache(load=load_hashed)

    def get(name: str) -> Embedder:
        with cache.use(name) as embedder:
            return embedder

    one, two = get("one"), get("two")
    assert get("one") is one
    get("three")
    assert get("one") is one
    with pytest.raises(BackendError):
        two.embed("x")
    with cache.use("one"), cache.use("three"), cache.use("four") as four:
        assert not cache.close_unused(time.monotonic())
        assert len(cache.loaded) == 3 and four.embed("x").vectors.shape == (1, 8), "none in use is closed for another"
    since = next(loaded.used_at for loaded in cache.loaded if loaded.name == "four")
    assert cache.close_unused(since) and [loaded.name for loaded in cache.loaded] == ["one", "three"]
    assert not cache.close_unused(since)
    with edge.Runtime(load_embedder=load_hashed) as runtime:
        assert runtime.embed(["a", "b"]).vectors.shape == (2, 8)
    with pytest.raises(BackendError, match="closed"):
        runtime.embed("a")
