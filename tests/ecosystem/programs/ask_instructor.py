"""instructor in its main modes; prints what came back as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

import instructor
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field


class Digit(BaseModel):
    model_config = ConfigDict(extra="forbid")
    n: int = Field(ge=0, le=9)
    is_odd: bool


url = sys.argv[1]
ask = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "a digit"}],
    "response_model": Digit,
    "max_tokens": 400,
    "max_retries": 0,
}
found: dict[str, object] = {}
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key="none"), mode=mode)
    found[mode.name] = client.chat.completions.create(**ask).model_dump()
    partly = list(client.chat.completions.create_partial(**ask))
    found[f"{mode.name} partly"] = partly[-1].model_dump()


async def ask_async() -> dict[str, object]:
    made = instructor.from_openai(AsyncOpenAI(base_url=f"{url}/v1", api_key="none"), mode=instructor.Mode.JSON_SCHEMA)
    return (await made.chat.completions.create(**ask)).model_dump()


found["async"] = asyncio.run(ask_async())
print(json.dumps(found))
