"""litellm in its main call styles, over each protocol; prints what came back as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

import litellm
from pydantic import BaseModel, ConfigDict, Field


class Digit(BaseModel):
    model_config = ConfigDict(extra="forbid")
    n: int = Field(ge=0, le=9)


url, tools = sys.argv[1], json.loads(sys.argv[2])
PROTOCOLS = {"openai/tiny": f"{url}/v1", "anthropic/tiny": url, "ollama_chat/tiny": url}
found: dict[str, object] = {}


async def ask_async(model: str, base: str) -> str:
    reply = await litellm.acompletion(model=model, api_base=base, api_key="none", messages=[{"role": "user", "content": "hi"}])
    return reply.choices[0].message.content


for model, base in PROTOCOLS.items():
    common = {"model": model, "api_base": base, "api_key": "none", "max_tokens": 400}
    hi = [{"role": "user", "content": "hi"}]
    whole = litellm.completion(**common, messages=hi)
    parts = list(litellm.completion(**common, messages=hi, stream=True))
    called = litellm.completion(**common, messages=[{"role": "user", "content": "weather?"}], tools=tools)
    calls = called.choices[0].message.tool_calls or []
    found[model] = {
        "text": whole.choices[0].message.content,
        "tokens": whole.usage.completion_tokens,
        "streamed": "".join(part.choices[0].delta.content or "" for part in parts if part.choices),
        "async": asyncio.run(ask_async(model, base)),
        "calls": [[call.function.name, json.loads(call.function.arguments)] for call in calls],
        "reason": called.choices[0].finish_reason,
    }
asked = {"model": "openai/tiny", "api_base": PROTOCOLS["openai/tiny"], "api_key": "none"}
form = litellm.completion(**asked, messages=[{"role": "user", "content": "form"}], response_format=Digit, max_tokens=50)
found["digit"] = Digit.model_validate_json(form.choices[0].message.content).n
found["text completion"] = litellm.text_completion(
    model="text-completion-openai/tiny", api_base=f"{url}/v1", api_key="none", prompt="Once", max_tokens=3
).usage.completion_tokens
found["response"] = litellm.responses(**asked, input="hi").output[0].content[0].text
try:
    litellm.completion(**asked, messages=[{"role": "user", "content": "x" * 9000}])
except litellm.ContextWindowExceededError:
    found["too long"] = "ContextWindowExceededError"
print(json.dumps(found))
