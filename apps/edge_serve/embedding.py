"""Vectors for a request: in a thread, stopped when the client goes, the server stops, or it takes too long."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from edge.embedding import DEFAULT_MODEL
from edge.errors import CancelledError, ContextFullError, ModelFileError
from edge_serve import limits
from edge_serve.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.embedding import Embeddings
    from edge_serve.call import Call

__all__ = ["embed"]


async def embed(
    call: Call, name: str | None, texts: Sequence[str | Sequence[int]], *, dimensions: int | None = None, truncate: bool = False
) -> tuple[Embeddings, str]:
    """Return the vectors of texts, and the id of their model.

    Args:
        call: the request.
        name: of the model; None or "" is the default one, which is not the one that chats.
        texts, dimensions, truncate: as for `edge.embed`.

    Raises:
        ApiError: there is no such model, it makes no embeddings, a text is too long, or all of it takes too long.
        ClientGoneError: the client went before.
        EdgeError: as `edge.embed`.
    """
    service = call.service
    service.check_running()
    if len(texts) > limits.TEXTS:
        raise ApiError(400, f"input has {len(texts):,} texts; {limits.TEXTS:,} are taken at once.", param="input")
    model, reference = DEFAULT_MODEL, DEFAULT_MODEL
    if name:
        offered = await service.offer.find(name)
        model, reference = offered.id, offered.reference
    call.record.model = model
    timeout_s = service.settings.server.timeout_s
    until = time.monotonic() + timeout_s
    is_over = False

    def goes_on(n_done: int, n_all: int) -> bool:
        return not (is_over or service.is_stopping or time.monotonic() > until)

    def compute() -> Embeddings:
        return service.runtime.embed(
            texts, reference, dimensions=dimensions, truncate=truncate, download=False, on_progress=goes_on
        )

    try:
        return await call.client.race(asyncio.to_thread(compute)), model
    except ContextFullError as error:
        details = {"n_prompt_tokens": error.n_prompt, "n_ctx": error.n_ctx}
        message = f"{error.message} The model's maximum context length is {error.n_ctx:,} tokens. Split the text into pieces."
        raise ApiError(400, message, code="context_length_exceeded", param="input", details=details) from error
    except ModelFileError as error:
        raise ApiError(400, str(error), code="invalid_value", param="model") from error
    except CancelledError:
        service.check_running()
        raise ApiError(503, f"The texts took longer than {timeout_s:g} s. Send fewer at once.", code="timeout") from None
    finally:
        is_over = True
