"""The events of a streamed message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from edge.types import ToolCall
    from edge_serve.answers import Answer
    from edge_serve.call import Call

__all__ = ["chunks", "usage"]

_encode = msgspec.json.encode
_KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "text": ({"type": "text", "text": "", "citations": None}, "text_delta", "text"),
    "reasoning": ({"type": "thinking", "thinking": "", "signature": ""}, "thinking_delta", "thinking"),
}
"""Kind of an event of the runtime -> the block that it begins, and type and field of its parts."""


async def chunks(
    call: Call, found: Answer, head: dict[str, Any], with_thinking: bool, end: Callable[[], dict[str, Any]]
) -> AsyncIterator[bytes]:
    """Yield the events of a message.

    Args:
        call, found: the request and its reply.
        head: of the message.
        with_thinking: show the model's thinking.
        end: returns why the reply ended, once it has.
    """
    index, kind, has_begun = -1, "", False
    async for _, event in found.events(call):
        if not has_begun and event is not None and event.kind == "notice":
            continue  # the prompt is not measured yet
        if not has_begun:
            has_begun = True
            n_reused, n_prompt = (event.done, event.total) if event is not None and event.kind == "progress" else (0, 0)
            yield _start(head, n_prompt, n_reused)
        if event is None or (event.kind == "reasoning" and not with_thinking):
            continue
        if event.kind == "tool_call":
            if kind:
                yield _event("content_block_stop", index=index)
            index, kind = index + 1, ""
            for data in _call(index, event.call):
                yield data
        if event.kind not in _KINDS:
            continue
        if event.kind != kind:
            if kind:
                yield _event("content_block_stop", index=index)
            index, kind = index + 1, event.kind
            yield _event("content_block_start", index=index, content_block=_KINDS[kind][0])
        _, part, name = _KINDS[kind]
        yield _event("content_block_delta", index=index, delta={"type": part, name: getattr(event, "text", "")})
    if kind:
        yield _event("content_block_stop", index=index)
    tokens = found.reply.usage
    yield _event("message_delta", delta=end(), usage=usage(tokens.n_prompt, tokens.n_reused, tokens.n_generated))
    yield _event("message_stop")


def _call(index: int, call: ToolCall) -> list[bytes]:
    """Return the events of a call, which is written at once."""
    block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
    delta = {"type": "input_json_delta", "partial_json": call.json}
    return [
        _event("content_block_start", index=index, content_block=block),
        _event("content_block_delta", index=index, delta=delta),
        _event("content_block_stop", index=index),
    ]


def _start(head: dict[str, Any], n_prompt: int, n_reused: int) -> bytes:
    """Return the first event, whose input tokens are those of the prompt: what is cached is known by the first progress."""
    nothing_yet: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
    message = {**head, **nothing_yet, "usage": usage(n_prompt, n_reused, 0)}
    return _event("message_start", message=message)


def usage(n_prompt: int, n_reused: int, n_generated: int) -> dict[str, Any]:
    """Return the tokens of a message: those of the prompt that were cached do not count as input."""
    return {
        "input_tokens": n_prompt - n_reused,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_reused,
        "output_tokens": n_generated,
    }


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + _encode({"type": kind, **fields}) + b"\n\n"
