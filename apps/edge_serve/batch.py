"""OpenAI's batch format: a file of requests, one a line, and lines that answer them.

Each is answered by the application itself, so fields, errors and answers are those of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from edge.embedding import DEFAULT_MODEL
from edge_serve import inside
from edge_serve.app import App
from edge_serve.errors import ApiError
from edge_serve.inside import Answered
from edge_serve.keys import Keys
from edge_serve.offer import Offer
from edge_serve.security import Guard
from edge_serve.service import Service

if TYPE_CHECKING:
    from edge.config import Settings
    from edge.runtime import Runtime

__all__ = [
    "PATHS",
    "VECTORS_PATH",
    "BatchRequest",
    "Batcher",
    "answer_line",
    "make_worker",
    "read_answer",
    "read_request",
    "refusal_line",
    "with_whole_prompts",
    "worker_options",
]

T = TypeVar("T")

VECTORS_PATH = "/v1/embeddings"
"""Asks for vectors: of a model of their own kind."""

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", VECTORS_PATH)
"""What a request of a batch may ask for."""

_EXAMPLE = '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}'
_RETRY_S = 1.0
_encode = msgspec.json.encode


class _Line(msgspec.Struct):
    custom_id: str
    url: str
    body: dict[str, Any]
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A request of a batch.

    Attributes:
        id: the same for the same request to the same model, and no other: an answer's line has it, too.
        custom_id: by which its author knows it.
        path: of the application.
        model: name of the model that answers it.
        body: JSON.
    """

    id: str
    custom_id: str
    path: str
    model: str
    body: bytes


def read_request(data: bytes, *, default: str, model: str | None = None) -> BatchRequest:
    """Read a line of a batch file.

    Args:
        data: the line.
        default: model of requests that name none; vectors are then made by the default embedding model.
        model: answers all requests but those for vectors, whatever they name; None leaves it to them.

    Raises:
        ApiError: it is not a request that a batch can have.
    """
    try:
        line = msgspec.json.decode(data, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"It is not a request: {error}. For example: {_EXAMPLE}", code="invalid_request") from None
    if not line.custom_id:
        raise ApiError(400, "Its custom_id is empty, so its answer could not be told from others.", code="invalid_request")
    if line.method != "POST" or line.url not in PATHS:
        message = (
            f"{line.method[:20]} {line.url[:100]} cannot be asked for in a batch. Use POST and one of: {', '.join(PATHS)}."
        )
        raise ApiError(400, message, code="invalid_url")
    if line.body.get("stream"):
        raise ApiError(400, "A batch has whole answers. Leave stream out of the body.", code="invalid_request", param="stream")
    if line.url == VECTORS_PATH:
        model, default = None, DEFAULT_MODEL
    named = line.body.get("model")
    chosen = model or (named if isinstance(named, str) and named else default)
    body = _encode({**line.body, "model": chosen}, order="sorted")
    digest = hashlib.sha256(b"\0".join((line.custom_id.encode(), line.url.encode(), body))).hexdigest()
    return BatchRequest(f"batch_req_{digest[:32]}", line.custom_id, line.url, chosen, body)


def answer_line(request: BatchRequest, answered: Answered) -> bytes:
    """Return the line that answers a request; also for an answer that is an error."""
    response = {
        "status_code": answered.status,
        "request_id": answered.request_id,
        "body": msgspec.Raw(answered.body),
    }
    return _encode({"id": request.id, "custom_id": request.custom_id, "response": response, "error": None}) + b"\n"


def refusal_line(data: bytes, line: int, error: ApiError) -> bytes:
    """Return the line for what is not a request. `line` is its number in the file."""
    try:
        custom_id = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("custom_id")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        custom_id = None
    about = {"code": error.code, "message": error.message, "line": line}
    return _encode({"id": None, "custom_id": custom_id, "response": None, "error": about}) + b"\n"


class Batcher:
    """Answers requests by the application, without a socket.

    Args:
        runtime: loads the models.
        settings: as of the server; its keys do not matter.
    """

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        from edge.catalog import list_models

        self._service = Service(runtime, Offer(settings, list_models), settings, Keys())
        self._app = App(self._service, Guard(Keys()))

    async def prepare(self, models: Iterable[str]) -> int:
        """Load the first of some models that is here, and return how many of its replies can run side by side.

        Raises:
            EdgeError: it cannot be loaded.
        """
        for model in models:
            with contextlib.suppress(ApiError):  # its requests hear of it
                offered = await self._service.offer.find(model)
                async with self._service.runtime.ause(offered.reference) as assistant:
                    return assistant.plan.n_seq if assistant.plan is not None else 1
        return 1

    async def answer(
        self, requests: Iterable[BatchRequest], on_answer: Callable[[BatchRequest, Answered], None], *, n_at_once: int
    ) -> None:
        """Answer requests, a few at a time.

        Args:
            requests: in the order in which they are begun; read as it goes.
            on_answer: called with each answer as it comes. What it raises ends the others.
            n_at_once: requests at work at the same time.
        """
        waiting = iter(requests)

        async def work() -> None:
            for request in waiting:
                on_answer(request, await self.ask(request))

        tasks = [asyncio.ensure_future(work()) for _ in range(n_at_once)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, request: BatchRequest) -> Answered:
        """Answer one request. Where its model is still being loaded, or waits for memory, this waits, too."""
        while True:
            answered = await inside.post(self._app, request.path, request.body)
            if answered.status not in (429, 503) or _code_of(answered) not in ("busy", "loading"):
                return answered
            await asyncio.sleep(_RETRY_S)  # its model is still being loaded, or waits for the memory of another


def make_worker(options: bytes) -> Callable[[bytes], bytes]:
    """Return what answers requests in a process of its own, on whatever machine: the work of an actor of `edge batch --ray`.

    Args:
        options: of `worker_options`.

    Returns:
        A function of `msgspec.msgpack.encode(BatchRequest)`; it returns an encoded `Answered`. It may be called from several
        threads at once.

    Raises:
        EdgeError: the settings cannot be used here, or the first model cannot be loaded.
    """
    from edge.config import load_settings
    from edge.runtime import Runtime

    flags, models = msgspec.msgpack.decode(options, type=tuple[dict[str, Any], list[str]])
    settings = with_whole_prompts(load_settings(flags, strict=False, use_file=False))
    batcher = Batcher(Runtime(settings=settings, memory_gb=settings.server.memory_gb), settings)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="edge-batch", daemon=True).start()

    def run(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    run(batcher.prepare(models))
    return lambda data: _encode_answer(run(batcher.ask(msgspec.msgpack.decode(data, type=BatchRequest))))


def worker_options(settings: Settings, models: Iterable[str]) -> bytes:
    """Return what `make_worker` takes: all settings that were set, but for directories, which are each machine's own."""
    from edge.config.keys import get_value, setting_keys
    from edge.config.load import DEFAULT

    names = [name for name in setting_keys() if settings.sources.get(name, DEFAULT) != DEFAULT]
    flags = {name: get_value(settings, name) for name in names if not name.startswith(("paths.", "server.", "chat."))}
    timeout = {"server.timeout_s": settings.server.timeout_s}
    plain = msgspec.to_builtins({**flags, **timeout}, str_keys=True)
    return msgspec.msgpack.encode(({name: "auto" if value is None else value for name, value in plain.items()}, list(models)))


def with_whole_prompts(settings: Settings) -> Settings:
    """Return the settings of a batch: a prompt is answered whole or refused, and any number of requests may wait."""
    from msgspec.structs import replace

    return replace(settings, window="refuse", engine=replace(settings.engine, max_waiting=None))


def read_answer(data: bytes) -> Answered:
    """Return the answer of a worker."""
    return msgspec.msgpack.decode(data, type=Answered)


def _encode_answer(answered: Answered) -> bytes:
    return msgspec.msgpack.encode(answered)


def _code_of(answered: Answered) -> object:
    body: Any = msgspec.json.decode(answered.body)
    return body.get("error", {}).get("code")
