"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from edge_serve.answers import Answer, answer, hold_model, notices_field
from edge_serve.anthropic.blocks import messages_of
from edge_serve.anthropic.stream import chunks, usage
from edge_serve.anthropic.wire import CountRequest, MessagesRequest
from edge_serve.asked import ToolSpec, constraint_of, options_of, tool_options
from edge_serve.call import Call
from edge_serve.documents import citations_field, docs_options
from edge_serve.errors import ApiError
from edge_serve.lora import lora_options
from edge_serve.sampling import make_sampling

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.reply import Reply

__all__ = ["count_tokens", "create"]

_PING = b'event: ping\ndata: {"type": "ping"}\n\n'
_NAMES = {"stop": "stop_sequences"}


async def create(call: Call) -> None:
    """Answer a conversation."""
    body = await call.body(MessagesRequest, ("mcp_servers", "container"))
    messages, n_stripped = messages_of(body)
    call.service.counters.stripped += n_stripped
    fields = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k, "max_tokens": body.max_tokens}
    sampling = make_sampling({**fields, "stop": body.stop_sequences}, _NAMES)
    thinks = _thinks(body)
    documents = docs_options(body.docs, call.service.settings.server.docs)
    options = {**options_of(call), **_tools(body), **_form(body), **documents, "think": thinks}
    if thinks and body.thinking is not None:
        options["max_thinking"] = body.thinking.budget_tokens

    def start(assistant: Assistant) -> Reply:
        return assistant.generate(messages, sampling, **options, **lora_options(body.lora, assistant))

    async with answer(call, body.model, start, is_streamed=bool(body.stream)) as found:
        head = _head(found)
        if body.stream:
            await call.stream(chunks(call, found, head, thinks, lambda: _end(found, body.max_tokens)), ping=_PING)
        else:
            await found.wait(call)
            content = _content(found.reply, thinks)
            tokens = found.reply.usage
            counts = usage(tokens.n_prompt, tokens.n_reused, tokens.n_generated)
            await call.json({**head, "content": content, **_end(found, body.max_tokens), "usage": counts})


async def count_tokens(call: Call) -> None:
    """Count the tokens of a prompt."""
    body = await call.body(CountRequest)
    messages, _ = messages_of(body)
    options = {**_tools(body), **_form(body), "think": _thinks(body)}
    async with hold_model(call, body.model) as (assistant, _):
        size = await assistant.acount(messages, **options)
        await call.json({"input_tokens": size.n_tokens})


def _head(found: Answer) -> dict[str, Any]:
    return {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": found.model}


def _end(found: Answer, max_tokens: int) -> dict[str, Any]:
    """Return why a reply ended, the passages that it rests on, and what the user should know about it."""
    return {**_reason(found, max_tokens), **citations_field(found.reply.citations), **notices_field(found.reply)}


def _reason(found: Answer, max_tokens: int) -> dict[str, Any]:
    reply = found.reply
    if reply.stopped_by is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": reply.stopped_by}
    if reply.finish_reason == "stop" and reply.tool_calls:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if reply.finish_reason == "stop":
        return {"stop_reason": "end_turn", "stop_sequence": None}
    is_full = reply.finish_reason == "length" and reply.usage.n_generated < max_tokens
    return {"stop_reason": "model_context_window_exceeded" if is_full else "max_tokens", "stop_sequence": None}


def _content(reply: Reply, with_thinking: bool) -> list[dict[str, Any]]:
    """Return the blocks of a reply: what it thought, its text, and its calls."""
    blocks: list[dict[str, Any]] = []
    if with_thinking and reply.reasoning:
        blocks.append({"type": "thinking", "thinking": reply.reasoning, "signature": ""})
    if reply.text or not reply.tool_calls:
        blocks.append({"type": "text", "text": reply.text, "citations": None})
    calls = ({"type": "tool_use", "id": call.id, "name": call.name, "input": dict(call.arguments)} for call in reply.tool_calls)
    return [*blocks, *calls]


def _thinks(body: CountRequest) -> bool:
    return body.thinking is not None and body.thinking.type != "disabled"


def _form(body: CountRequest) -> dict[str, Any]:
    """Return the options for the form of the answer, which older clients name `output_format`."""
    config = body.output_config
    form, where = (config.format, "output_config.format") if config is not None else (None, "")
    if form is None:
        form, where = body.output_format, "output_format"
    if form is None:
        return {}
    if form.type != "json_schema" or form.schema is None:
        raise ApiError(400, f"{where} is of the type json_schema, with a schema.", param=where)
    return constraint_of("json_schema", form.schema, f"{where}.schema")


def _tools(body: CountRequest) -> dict[str, Any]:
    if (body.tool_choice or {}).get("type") == "none":
        return {}
    specs = []
    for number, tool in enumerate(body.tools or ()):
        where = f"tools.{number}"
        if tool.type not in (None, "custom"):
            raise ApiError(400, f"{where}: this server has no tool of the type {tool.type[:40]!r}.", param=where)
        specs.append(ToolSpec(where, tool.name, tool.description, tool.input_schema))
    return tool_options(specs, body.tool_choice)
