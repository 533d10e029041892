"""The life of a backend: opening, progress, closing, and what is left when it is over."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edge.backends.base import Backend, Part, open_backend
from edge.backends.fake import FakeBackend
from edge.errors import BackendError, BackendUnavailableError, CancelledError
from edge.prompt.tokenizers import Tokenizer
from edge.types import Sampling
from tests.contract.coreml import coreml_plan, open_coreml
from tests.contract.entries import onnx_plan

Open = Callable[..., Backend]

CALLS: dict[str, Callable[[Backend], object]] = {
    "length": lambda backend: backend.length(0),
    "prefill": lambda backend: backend.prefill(0, [50]),
    "decode": lambda backend: backend.decode([(0, 50)]),
    "extend": lambda backend: backend.extend([Part(0, [50])]),
    "rewind": lambda backend: backend.rewind(0, 0),
    "logits": lambda backend: backend.logits(0),
    "open_sampler": lambda backend: backend.open_sampler(Sampling()),
    "copy": lambda backend: backend.copy(0, 1, 0),
    "export_kv": lambda backend: backend.export_kv(0, 0, 1),
    "import_kv": lambda backend: backend.import_kv(0, b""),
    "set_threads": lambda backend: backend.set_threads(1, 1),
    "resize": lambda backend: backend.resize(512),
    "set_adapters": lambda backend: backend.set_adapters(()),
    "maker": lambda backend: backend.maker(b""),
    "kv_identity": lambda backend: backend.kv_identity(),
}
TOKENIZER_CALLS: dict[str, Callable[[Tokenizer], object]] = {
    "tokenize": lambda tokenizer: tokenizer.tokenize("a"),
    "token_bytes": lambda tokenizer: tokenizer.token_bytes(50),
    "is_end": lambda tokenizer: tokenizer.is_end(50),
    "vocabulary": lambda tokenizer: tokenizer.vocabulary(),
    "entries": lambda tokenizer: list(tokenizer.entries()),
}

OPTIONAL = {"set_threads": "threads", "resize": "resize", "extend": "max_outputs"}
"""Calls that a backend need not have, and the capability that says so."""


@pytest.fixture(params=["fake", "tiny", "coreml", "onnx"])
def open_one(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path], plan_for: Any) -> Open:
    """Opens a backend of its own for a test."""
    if request.param == "fake":
        return FakeBackend
    if request.param == "coreml":
        package = request.getfixturevalue("coreml_package")("coreml")
        return lambda **options: open_coreml(coreml_plan(plan_for, package), package.parent / "cache", **options)
    if request.param == "onnx":
        from edge.backends.onnx.backend import OnnxBackend

        return lambda **options: OnnxBackend(onnx_plan(request.getfixturevalue("tiny_onnx")("onnx")), **options)
    from edge.backends.llamacpp.backend import LlamaCppBackend

    return lambda **options: LlamaCppBackend(plan_for(tiny_model("llama")), **options)


def test_the_list_of_calls_is_complete() -> None:
    methods = {name for name, _ in inspect.getmembers(Backend, inspect.isfunction) if not name.startswith("_")}
    assert methods == {*CALLS, "close"}
    methods = {name for name, _ in inspect.getmembers(Tokenizer, inspect.isfunction) if not name.startswith("_")}
    assert methods == {*TOKENIZER_CALLS, "close"}


def test_after_close_every_call_says_so(open_one: Open) -> None:
    backend = open_one()
    backend.prefill(0, [50, 51])
    sampler = backend.open_sampler(Sampling())
    greedy = backend.open_sampler(Sampling(temperature=0))
    tokenizer = backend.tokenizer
    for use in TOKENIZER_CALLS.values():  # what it remembers is gone with the model, too
        use(tokenizer)
    backend.close()
    backend.close()
    for name, call in CALLS.items():
        if name in OPTIONAL and not getattr(backend.capabilities, OPTIONAL[name]):
            continue
        with pytest.raises(BackendError, match="closed"):
            call(backend)
            pytest.fail(f"{name} did not raise")
    for name, use in TOKENIZER_CALLS.items():
        with pytest.raises(BackendError, match="closed"):
            use(tokenizer)
            pytest.fail(f"{name} did not raise")
    for one in (sampler, greedy):
        with pytest.raises(BackendError, match="closed"):
            one.sample(0)
        one.close()


def test_closing_waits_for_the_tokenizer(open_one: Open) -> None:
    text = "The capital of France is Paris. " * 500
    for n_before in range(4):
        backend = open_one()
        tokenizer = backend.tokenizer
        whole, have_begun = tokenizer.tokenize(text), threading.Barrier(5)

        def use(tokenizer: Tokenizer = tokenizer, whole: list[int] = whole, begun: threading.Barrier = have_begun) -> int:
            begun.wait()
            for n in range(1000):
                try:
                    assert tokenizer.tokenize(text) == whole
                    tokenizer.token_bytes(whole[n % len(whole)])
                except BackendError as error:
                    assert "closed" in error.message
                    return n
            raise AssertionError("it was never closed")

        with ThreadPoolExecutor(4) as pool:
            users = [pool.submit(use) for _ in range(4)]
            have_begun.wait()
            time.sleep(0.002 * n_before)
            backend.close()
            for user in users:
                user.result(timeout=60)


def test_it_is_a_context_manager(open_one: Open) -> None:
    with open_one() as backend:
        assert backend.length(0) == 0
    with pytest.raises(BackendError):
        backend.length(0)


def test_loading_reports_progress_up_to_the_end(open_one: Open) -> None:
    seen: list[float] = []
    open_one(on_progress=lambda share: not seen.append(share)).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert all(0.0 <= share <= 1.0 for share in seen)


def test_loading_can_be_stopped(open_one: Open) -> None:
    with pytest.raises(CancelledError):
        open_one(on_progress=lambda share: False)
    open_one().close()


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ZeroDivisionError])
def test_what_on_progress_raises_reaches_the_caller(open_one: Open, raised: type[BaseException]) -> None:
    def broken(share: float) -> bool:
        raise raised

    with pytest.raises(raised):
        open_one(on_progress=broken)
    open_one().close()


def test_two_models_live_side_by_side(open_one: Open) -> None:
    with open_one() as one, open_one() as other:
        one.prefill(0, [50, 51, 52])
        other.prefill(0, [50, 51, 52])
        assert (one.logits(0) == other.logits(0)).all()
        one.close()
        other.decode([(0, 53)])
        assert other.length(0) == 4


def test_the_factory_knows_the_backends(tiny_model: Callable[[str], Path], plan_for: Any) -> None:
    plan = plan_for(tiny_model("llama"))
    with open_backend(plan) as backend:
        assert backend.name == "llamacpp"
    with open_backend(plan_for(tiny_model("llama"), backend="fake")) as backend:
        assert (backend.name, backend.n_ctx) == ("fake", plan.n_ctx)
    with pytest.raises(BackendUnavailableError, match="tpu"):
        open_backend(plan_for(tiny_model("llama"), backend="tpu"))
