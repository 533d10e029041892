"""POST /api/embed, and /api/embeddings, its older form."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec

from edge_serve.call import Call
from edge_serve.embedding import embed as compute

__all__ = ["EmbedOneRequest", "EmbedRequest", "embed", "embed_one"]


class EmbedRequest(msgspec.Struct, kw_only=True):
    """A text, or several. They are cut to the model's window unless `truncate` is false, as Ollama does."""

    model: str = ""
    input: str | list[str] = ""
    truncate: bool | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class EmbedOneRequest(msgspec.Struct, kw_only=True):
    """A text."""

    model: str = ""
    prompt: str = ""
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


async def embed(call: Call) -> None:
    """Turn texts into vectors."""
    body = await call.body(EmbedRequest)
    began = time.perf_counter_ns()
    texts = [body.input] if isinstance(body.input, str) else body.input
    vectors: list[list[float]] = []
    n_tokens, model = 0, body.model
    if texts not in ([], [""]):  # a request without text only asks whether the model is there
        found, model = await compute(call, body.model, texts, dimensions=body.dimensions, truncate=body.truncate is not False)
        vectors, n_tokens = found.vectors.tolist(), sum(found.n_tokens)
    elif body.model:
        model = (await call.service.offer.find(body.model)).id
    duration = time.perf_counter_ns() - began
    await call.json(
        {
            "model": model,
            "embeddings": vectors,
            "total_duration": duration,
            "load_duration": 0,
            "prompt_eval_count": n_tokens,
        }
    )


async def embed_one(call: Call) -> None:
    """Turn a text into a vector."""
    body = await call.body(EmbedOneRequest)
    if not body.prompt:
        if body.model:
            await call.service.offer.find(body.model)
        await call.json({"embedding": []})
        return
    found, _ = await compute(call, body.model, [body.prompt], truncate=True)
    await call.json({"embedding": found.vectors[0].tolist()})
