"""Changes that a governor may make while a model is open: threads, and the size of the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import edge.backends.llamacpp.backend
from edge.backends.base import Backend
from edge.backends.llamacpp.backend import LlamaCppBackend
from edge.errors import BackendError, ContextFullError, ModelTooLargeError, UnsupportedError, UsageError
from tests.contract.entries import CHUNK, N_CTX, N_SEQ, Bench


@contextmanager
def restored(backend: Backend) -> Iterator[Backend]:
    """The backend is shared with other tests, so it gets back what it had."""
    try:
        yield backend
    finally:
        for seq_id in range(N_SEQ):
            backend.rewind(seq_id, 0)
        if backend.capabilities.threads:
            backend.set_threads(1, 1)
        if backend.n_ctx != N_CTX:
            backend.resize(N_CTX)


def write(backend: Backend, prompt: list[int], reply: list[int]) -> np.ndarray[Any, Any]:
    backend.rewind(0, 0)
    backend.prefill(0, prompt)
    for token in reply:
        backend.decode([(0, token)])
    return backend.logits(0)


def test_more_threads_compute_the_same(bench: Bench) -> None:
    prompt, reply = bench.tokens(3 * CHUNK, 1), bench.tokens(8, 2)
    with restored(bench.backend) as backend:
        if not backend.capabilities.threads:
            with pytest.raises(UnsupportedError):
                backend.set_threads(2, 2)
            return
        alone = write(backend, prompt, reply)
        backend.set_threads(2, 3)
        assert np.allclose(write(backend, prompt, reply), alone, atol=bench.tolerance)
        backend.set_threads(1, 1)
        assert np.array_equal(write(backend, prompt, reply), alone), "the same threads give the same bits"


def test_threads_change_in_the_middle_of_a_reply(bench: Bench) -> None:
    prompt, reply = bench.tokens(CHUNK + 5, 3), bench.tokens(8, 4)
    with restored(bench.backend) as backend:
        if not backend.capabilities.threads:
            pytest.skip("this engine cannot change its threads")
        whole = write(backend, prompt, reply)
        write(backend, prompt, reply[:4])
        backend.set_threads(2, 2)
        for token in reply[4:]:
            backend.decode([(0, token)])
        assert np.allclose(backend.logits(0), whole, atol=bench.tolerance)


@pytest.mark.parametrize("threads", [(0, 1), (1, 0), (-1, -1)])
def test_no_threads_are_refused(backend: Backend, threads: tuple[int, int]) -> None:
    if not backend.capabilities.threads:
        pytest.skip("this engine cannot change its threads")
    with pytest.raises(UsageError, match="threads"):
        backend.set_threads(*threads)


def test_another_size_computes_the_same(bench: Bench) -> None:
    prompt, reply = bench.tokens(3 * CHUNK, 5), bench.tokens(4, 6)
    with restored(bench.backend) as backend:
        if not backend.capabilities.resize:
            with pytest.raises(UnsupportedError):
                backend.resize(2 * N_CTX)
            return
        before = write(backend, prompt, reply)
        backend.rewind(0, 0)
        backend.resize(2 * N_CTX)
        assert backend.n_ctx == 2 * N_CTX
        assert [backend.length(seq_id) for seq_id in range(N_SEQ)] == [0] * N_SEQ
        assert np.array_equal(write(backend, prompt, reply), before)


def test_blocks_of_one_size_are_good_in_another(bench: Bench) -> None:
    prompt, last = bench.tokens(2 * CHUNK, 7), bench.tokens(1, 8)
    with restored(bench.backend) as backend:
        if not backend.capabilities.resize:
            pytest.skip("this engine cannot change the size of its cache")
        before = write(backend, prompt, last)
        block = backend.export_kv(0, 0, len(prompt))
        identity = backend.kv_identity()
        backend.rewind(0, 0)
        backend.resize(2 * N_CTX)
        assert backend.kv_identity() == identity
        backend.import_kv(0, block)
        backend.decode([(0, last[0])])
        assert np.array_equal(backend.logits(0), before)


def test_a_larger_cache_holds_more(bench: Bench) -> None:
    with restored(bench.backend) as backend:
        if not backend.capabilities.resize:
            pytest.skip("this engine cannot change the size of its cache")
        tokens = bench.tokens(N_CTX + 1, 9)
        with pytest.raises(ContextFullError):
            backend.prefill(0, tokens)
        backend.resize(2 * N_CTX)
        assert backend.prefill(0, tokens) == len(tokens)


def test_a_block_of_a_larger_cache_needs_room(bench: Bench) -> None:
    with restored(bench.backend) as backend:
        if not backend.capabilities.resize:
            pytest.skip("this engine cannot change the size of its cache")
        backend.resize(2 * N_CTX)
        backend.prefill(0, bench.tokens(N_CTX + 1, 11))
        block = backend.export_kv(0, 0, N_CTX + 1)
        backend.rewind(0, 0)
        backend.resize(N_CTX)
        with pytest.raises(ContextFullError):
            backend.import_kv(0, block)
        assert backend.length(0) == 0


def test_a_cache_in_use_is_not_resized(bench: Bench) -> None:
    backend = bench.backend
    if not backend.capabilities.resize:
        pytest.skip("this engine cannot change the size of its cache")
    backend.prefill(1, bench.tokens(5, 10))
    with pytest.raises(UsageError, match="in use"):
        backend.resize(2 * N_CTX)
    assert (backend.n_ctx, backend.length(1)) == (N_CTX, 5)
    backend.rewind(1, 0)
    with pytest.raises(UsageError, match="0 cells"):
        backend.resize(0)


# llama.cpp


def test_a_smaller_cache_gives_its_memory_back(tiny_model: Callable[[str], Path], plan_for: Any) -> None:
    large, bytes_a_token = 131_072, 2 * 2 * 64 * 2  # layers, keys and values, width of two heads, f16
    with LlamaCppBackend(plan_for(tiny_model("llama"), n_ctx=large)) as backend:
        process = psutil.Process()
        before = process.memory_info().rss
        backend.resize(512)
        given_back = before - process.memory_info().rss
    assert given_back > 0.8 * large * bytes_a_token


def test_a_window_that_turns_positions_another_way_is_refused(tiny_model: Callable[[str], Path], plan_for: Any) -> None:
    with LlamaCppBackend(plan_for(tiny_model("llama longrope"), n_ctx=1024)) as backend:
        with pytest.raises(UnsupportedError, match="positions"):
            backend.resize(512)
        assert backend.n_ctx == 1024
        assert backend.prefill(0, list(range(50, 90))) == 40


@pytest.fixture
def failing(tiny_model: Callable[[str], Path], plan_for: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A backend, and a switch that makes the next contexts impossible for lack of memory."""

    def fail(n_times: int) -> None:
        left = [n_times]

        def refuse(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                raise ModelTooLargeError("There is not enough memory.")
            return real(*arguments)

        monkeypatch.setattr(edge.backends.llamacpp.backend, "open_context", refuse)

    with LlamaCppBackend(plan_for(tiny_model("llama"))) as backend:
        real = edge.backends.llamacpp.backend.open_context
        yield backend, fail


def test_where_there_is_no_memory_the_old_size_stays(failing: Any) -> None:
    backend, fail = failing
    fail(1)
    with pytest.raises(ModelTooLargeError):
        backend.resize(2 * N_CTX)
    assert backend.n_ctx == N_CTX
    assert backend.prefill(0, list(range(50, 90))) == 40


def test_without_memory_for_either_the_backend_is_closed(failing: Any) -> None:
    backend, fail = failing
    fail(2)
    with pytest.raises(BackendError, match="re-created"):
        backend.resize(2 * N_CTX)
    with pytest.raises(BackendError, match="closed"):
        backend.prefill(0, [50])
