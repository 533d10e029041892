"""langchain-openai in its main call styles; prints what came back as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field


class Digit(BaseModel):
    """A digit."""

    model_config = ConfigDict(extra="forbid")
    n: int = Field(ge=0, le=9)


url = sys.argv[1]
common: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "none", "model": "tiny", "max_retries": 0}
chat = ChatOpenAI(**common, max_tokens=400, stream_usage=True)


def weather(city: str) -> str:
    """Give the weather of a city."""
    return f"sunny in {city}"


with_tools = chat.bind_tools([weather])
called = with_tools.invoke("weather?")
results = [ToolMessage(weather(**call["args"]), tool_call_id=call["id"]) for call in called.tool_calls]
parts = list(chat.stream("hi"))
streamed_calls = None
for part in with_tools.stream("weather?"):
    streamed_calls = part if streamed_calls is None else streamed_calls + part


async def ask_async() -> str:
    return "".join([part.content async for part in chat.astream("hi")])


print(
    json.dumps(
        {
            "text": chat.invoke("hi").content,
            "streamed": "".join(part.content for part in parts),
            "usage": next(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata),
            "async": asyncio.run(ask_async()),
            "batch": [reply.content for reply in chat.batch(["hi", "hi"])],
            "calls": [[call["name"], call["args"]] for call in called.tool_calls],
            "streamed calls": [[call["name"], call["args"]] for call in streamed_calls.tool_calls],
            "after": with_tools.invoke([HumanMessage("weather?"), called, *results, HumanMessage("hi")]).content,
            "json schema": chat.with_structured_output(Digit, method="json_schema").invoke("form").n,
            "function": chat.with_structured_output(Digit, method="function_calling").invoke("form").n,
            "response": ChatOpenAI(**common, use_responses_api=True).invoke("hi").text,
            "completion": bool(OpenAI(**common, max_tokens=3).invoke("Once")),
        }
    )
)
