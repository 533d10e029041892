"""The items of a response, and the events by which they are streamed."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edge.errors import EdgeError
from edge_serve.errors import from_edge
from edge_serve.probabilities import listed

if TYPE_CHECKING:
    from edge.events import ReplyEvent
    from edge.types import ToolCall
    from edge_serve.answers import Answer
    from edge_serve.call import Call

__all__ = ["Writer", "chunks", "new_id"]

_encode = msgspec.json.encode
Event = tuple[str, dict[str, Any]]


def new_id(prefix: str) -> str:
    """Return an id that no other thing has."""
    return f"{prefix}_{uuid.uuid4().hex}"


class Writer:
    """Makes items of what a model writes, and tells of them in events.

    Attributes:
        output: the items so far.
    """

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._open = ""  # kind of the item that is being written: "text", "reasoning", or none

    def event(self, event: ReplyEvent | None) -> list[Event]:
        """Add what an event of a reply says; None and other events add nothing."""
        if event is None:
            return []
        if event.kind == "tool_call":
            return self.call(event.call)
        if event.kind == "reasoning" and event.text:
            return self.text("reasoning", event.text)
        if event.kind == "text" and (event.text or (event.logprobs and self._open == "text")):
            return self.text("text", event.text, listed(event.logprobs))
        return []

    def text(self, kind: str, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> list[Event]:
        """Add a piece of the answer ("text"), perhaps with the logprobs of its tokens, or of a thought ("reasoning")."""
        events: list[Event] = []
        if self._open != kind:
            events += self.end("completed")
            events += self._begin(kind)
        part = self.output[-1]["content"][0]
        part["text"] += text
        name = "output_text" if kind == "text" else "reasoning_text"
        more: dict[str, Any] = {}
        if kind == "text":
            more = {"logprobs": list(logprobs)}
            part["logprobs"] = [*part["logprobs"], *logprobs]
        return [*events, (f"response.{name}.delta", {**self._place(), "delta": text, **more})]

    def call(self, made: ToolCall) -> list[Event]:
        """Add a call, which is written at once."""
        events = self.end("completed")
        item = {"id": new_id("fc"), "type": "function_call", "call_id": made.id, "name": made.name}
        self.output.append({**item, "arguments": "", "status": "in_progress"})
        index = len(self.output) - 1
        place = {"item_id": item["id"], "output_index": index}
        events.append(("response.output_item.added", {"output_index": index, "item": dict(self.output[-1])}))
        events.append(("response.function_call_arguments.delta", {**place, "delta": made.json}))
        self.output[-1] |= {"arguments": made.json, "status": "completed"}
        events.append(("response.function_call_arguments.done", {**place, "arguments": made.json, "name": made.name}))
        events.append(("response.output_item.done", {"output_index": index, "item": dict(self.output[-1])}))
        return events

    def end(self, status: str) -> list[Event]:
        """End the item that is being written, if there is one."""
        if not self._open:
            return []
        item = self.output[-1]
        part, index = item["content"][0], len(self.output) - 1
        item["status"] = status
        name = "output_text" if self._open == "text" else "reasoning_text"
        more: dict[str, Any] = {"logprobs": part["logprobs"]} if self._open == "text" else {}
        events: list[Event] = [(f"response.{name}.done", {**self._place(), "text": part["text"], **more})]
        if self._open == "text":
            events.append(("response.content_part.done", {**self._place(), "part": dict(part)}))
        self._open = ""
        return [*events, ("response.output_item.done", {"output_index": index, "item": dict(item)})]

    def _begin(self, kind: str) -> list[Event]:
        self._open = kind
        if kind == "text":
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item: dict[str, Any] = {"id": new_id("msg"), "type": "message", "role": "assistant"}
        else:
            part = {"type": "reasoning_text", "text": ""}
            item = {"id": new_id("rs"), "type": "reasoning", "summary": []}
        added = {**item, "content": [], "status": "in_progress"}
        self.output.append({**item, "content": [part], "status": "in_progress"})
        events: list[Event] = [("response.output_item.added", {"output_index": len(self.output) - 1, "item": added})]
        if kind == "text":
            events.append(("response.content_part.added", {**self._place(), "part": dict(part)}))
        return events

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1, "content_index": 0}


async def chunks(
    call: Call, found: Answer, head: dict[str, Any], end: Callable[[list[dict[str, Any]]], dict[str, Any]]
) -> AsyncIterator[bytes]:
    """Yield the events of a response.

    Args:
        call, found: the request and its reply.
        head: the response before anything is written.
        end: returns what it has more when it is over, from its items.

    Raises:
        EdgeError: the reply failed, which the last event says, too.
    """
    n_sent = 0

    def pack(events: list[Event]) -> bytes:
        nonlocal n_sent
        data = b""
        for kind, fields in events:
            data += f"event: {kind}\ndata: ".encode()
            data += _encode({"type": kind, "sequence_number": n_sent, **fields}) + b"\n\n"
            n_sent += 1
        return data

    writer = Writer()
    yield pack([("response.created", {"response": head}), ("response.in_progress", {"response": head})])
    try:
        async for _, event in found.events(call):
            if made := writer.event(event):
                yield pack(made)
    except EdgeError as failure:
        error = {"code": "server_error", "message": from_edge(failure).message}
        failed = {**head, "status": "failed", "error": error, "output": writer.output}
        yield pack([*writer.end("incomplete"), ("response.failed", {"response": failed})])
        raise
    status = "completed" if found.reply.finish_reason == "stop" else "incomplete"
    last = writer.end(status)
    yield pack([*last, (f"response.{status}", {"response": {**head, **end(writer.output)}})])
