"""POST /tokenize and /detokenize, as llama.cpp's server and vLLM have them."""

from __future__ import annotations

import asyncio

import msgspec

from edge_serve.answers import hold_model
from edge_serve.call import Call
from edge_serve.errors import ApiError

__all__ = ["detokenize", "tokenize"]

_MOST_TOKENS = 1 << 20


class TokenizeRequest(msgspec.Struct):
    """Attributes: content (llama.cpp) or prompt (vLLM): the text."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(msgspec.Struct):
    """Attributes: tokens: the ids."""

    tokens: list[int]
    model: str | None = None


async def tokenize(call: Call) -> None:
    """Give the token ids of a text."""
    body = await call.body(TokenizeRequest)
    text = body.content if body.content is not None else body.prompt
    if text is None:
        raise ApiError(400, "There is no text. Give it as content or prompt.", param="content")
    add_special = bool(body.add_special or body.add_special_tokens)
    async with hold_model(call, body.model) as (assistant, _):
        tokens = await asyncio.to_thread(
            assistant.tokenize, text, add_special=add_special, parse_special=bool(body.parse_special)
        )
        pieces = [{"id": token, "piece": assistant.text_of([token])} for token in tokens] if body.with_pieces else tokens
        await call.json({"tokens": pieces, "count": len(tokens), "max_model_len": assistant.n_ctx})


async def detokenize(call: Call) -> None:
    """Give the text of token ids."""
    body = await call.body(DetokenizeRequest)
    if len(body.tokens) > _MOST_TOKENS:
        raise ApiError(400, f"tokens has more than {_MOST_TOKENS:,} ids.", param="tokens")
    async with hold_model(call, body.model) as (assistant, _):
        n_vocab = assistant.info.n_vocab
        if not all(0 <= token < n_vocab for token in body.tokens):
            raise ApiError(
                400, f"The ids of this model's tokens are 0 to {n_vocab - 1:,}.", code="invalid_value", param="tokens"
            )
        text = await asyncio.to_thread(assistant.text_of, body.tokens)
        await call.json({"content": text, "prompt": text})
