"""POST /v1/responses, without a store: each request has all that the model reads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from edge_serve.answers import Answer, answer, hold_model, notices_field
from edge_serve.asked import ToolSpec, constraint_of, options_of, tool_options
from edge_serve.call import Call
from edge_serve.documents import citations_field, docs_options
from edge_serve.errors import ApiError
from edge_serve.lora import lora_options
from edge_serve.openai.response_stream import Writer, chunks, new_id
from edge_serve.openai.response_wire import Format, ResponsesRequest, messages_of_input
from edge_serve.probabilities import logprob_options
from edge_serve.sampling import make_sampling

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.reply import Reply
    from edge.types import Sampling

__all__ = ["count", "create", "stored"]

_REFUSED = ("previous_response_id", "conversation", "background", "prompt")
_LOGPROBS = "message.output_text.logprobs"
_NAMES = {"max_tokens": "max_output_tokens"}


async def create(call: Call) -> None:
    """Answer an input."""
    body = await call.body(ResponsesRequest, _REFUSED)
    messages = messages_of_input(body)
    sampling = _sampling(body)
    options = {**options_of(call), **_options(body), **docs_options(body.docs, call.service.settings.server.docs)}

    def start(assistant: Assistant) -> Reply:
        return assistant.generate(messages, sampling, **options, **lora_options(body.lora, assistant))

    with_logprobs = "logprobs" in options
    async with answer(call, body.model, start, is_streamed=bool(body.stream) or with_logprobs) as found:
        head = _head(found, body)
        if body.stream:
            ping = b": ping\n\n"
            await call.stream(chunks(call, found, head, lambda output: _end(found, output)), ping=ping)
            return
        writer, reply = Writer(), found.reply
        if with_logprobs:
            async for _, event in found.events(call):
                writer.event(event)
        else:
            await found.wait(call)
            for kind, text in (("reasoning", reply.reasoning), ("text", reply.text)):
                if text:
                    writer.text(kind, text)
            for made in reply.tool_calls:
                writer.call(made)
        writer.end("completed" if reply.finish_reason == "stop" else "incomplete")
        await call.json({**head, **_end(found, writer.output)})


async def count(call: Call) -> None:
    """Count the tokens of an input as the model would read it."""
    body = await call.body(ResponsesRequest, _REFUSED)
    messages, options = messages_of_input(body), _options(body)
    _sampling(body)
    async with hold_model(call, body.model) as (assistant, _):
        size = await assistant.acount(messages, **options)
        await call.json({"object": "response.input_tokens", "input_tokens": size.n_tokens})


async def stored(call: Call) -> None:
    """Refuse what needs stored responses."""
    raise ApiError(404, "This server stores no responses: send all that the model reads with each request.", code="not_found")


def _head(found: Answer, body: ResponsesRequest) -> dict[str, Any]:
    """Return the response before anything is written."""
    format = body.text.format if body.text is not None and body.text.format is not None else Format()
    shown = {"type": format.type}
    if format.type == "json_schema":
        shown = {"type": "json_schema", "name": format.name or "", "schema": format.schema, "strict": bool(format.strict)}  # type: ignore[dict-item]
    tools = [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters or {},
            "strict": bool(tool.strict),
        }
        for tool in body.tools or ()
    ]
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": found.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning is not None else None, "summary": None},
        "store": False,
        "temperature": body.temperature,
        "text": {"format": shown},
        "tool_choice": body.tool_choice or "auto",
        "tools": tools,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _end(found: Answer, output: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a response has more when it is over."""
    reply = found.reply
    usage = reply.usage
    n_thought = found.assistant.count_tokens(reply.reasoning) if reply.reasoning else 0
    is_whole = reply.finish_reason == "stop"
    return {
        "status": "completed" if is_whole else "incomplete",
        "completed_at": int(time.time()) if is_whole else None,
        "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
        "output": output,
        **citations_field(reply.citations),
        **notices_field(reply),
        "usage": {
            "input_tokens": usage.n_prompt,
            "input_tokens_details": {"cached_tokens": usage.n_reused, "cache_write_tokens": 0},
            "output_tokens": usage.n_generated,
            "output_tokens_details": {"reasoning_tokens": n_thought},
            "total_tokens": usage.n_prompt + usage.n_generated,
        },
    }


def _sampling(body: ResponsesRequest) -> Sampling:
    fields = {"temperature": body.temperature, "top_p": body.top_p, "max_tokens": body.max_output_tokens}
    return make_sampling(fields, _NAMES)


def _options(body: ResponsesRequest) -> dict[str, Any]:
    """Return tools, form and thinking, as the runtime takes them."""
    wants_logprobs = _LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    options = {**_tools(body), **_form(body.text.format if body.text is not None else None)}
    options |= logprob_options(wants_logprobs, body.top_logprobs)
    if body.reasoning is not None and body.reasoning.effort is not None:
        options["think"] = body.reasoning.effort not in ("none", "minimal")
    return options


def _tools(body: ResponsesRequest) -> dict[str, Any]:
    if body.tool_choice == "none":
        return {}
    specs = []
    for number, tool in enumerate(body.tools or ()):
        where = f"tools[{number}]"
        if tool.type != "function":
            raise ApiError(400, f"{where}: this server has no tool of the type {tool.type[:40]!r}.", param=where)
        specs.append(ToolSpec(where, tool.name, tool.description, tool.parameters))
    return tool_options(specs, body.tool_choice)


def _form(format: Format | None) -> dict[str, Any]:
    if format is None or format.type == "text":
        return {}
    if format.type == "json_object":
        return constraint_of("json_object", None, "text.format")
    if format.type != "json_schema" or format.schema is None:
        raise ApiError(400, "text.format is text, json_object, or json_schema with a schema.", param="text.format")
    return constraint_of("json_schema", format.schema, "text.format.schema", strict=bool(format.strict))
