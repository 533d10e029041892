"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

import msgspec

from edge_serve.call import Call
from edge_serve.embedding import embed
from edge_serve.errors import ApiError

__all__ = ["EmbeddingsRequest", "create"]


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """A text, several, token ids of one, or of several."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    user: str | None = None


async def create(call: Call) -> None:
    """Turn texts into vectors."""
    body = await call.body(EmbeddingsRequest)
    found, model = await embed(call, body.model, _texts(body.input), dimensions=body.dimensions)
    rows: list[list[float]] | list[str] = (
        [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in found.vectors]
        if body.encoding_format == "base64"
        else found.vectors.tolist()
    )
    n_tokens = sum(found.n_tokens)
    await call.json(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
            "model": model,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


def _texts(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """Return what was given as a list of texts and lists of token ids."""
    if isinstance(given, str):
        return [given]
    tokens = [one for one in given if isinstance(one, int)]
    texts = [one for one in given if not isinstance(one, int)]
    if tokens and texts:
        raise ApiError(400, "input mixes token ids and texts. Give one or the other.", code="invalid_value", param="input")
    if not given:
        raise ApiError(400, "input is empty. Give at least one text.", code="invalid_value", param="input")
    return [tokens] if tokens else texts
