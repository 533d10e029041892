"""Tools for models whose template knows none: the system prompt tells the model of them, in the format of Hermes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge.messages import Message

__all__ = ["with_tools"]

_TEXT = """You may call functions to answer the user. These are their signatures:
<tools>
{tools}
</tools>

To call a function, write a JSON object with its name and its arguments within these tags, and nothing after it:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return the messages with the tools in the system prompt, and results as messages of the user."""
    text = _TEXT.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    told: list[Message] = []
    was_result = False
    for message in messages:
        is_result = message.role == "tool"
        if is_result:
            result = f"<tool_response>\n{message.content}\n</tool_response>"
            if was_result:
                told[-1] = replace(told[-1], content=f"{told[-1].content}\n{result}")
            else:
                told.append(Message("user", result))
        else:
            told.append(message)
        was_result = is_result
    if told and told[0].role == "system":
        first = told[0]
        return [replace(first, content=f"{first.content}\n\n{text}" if first.content.strip() else text), *told[1:]]
    return [Message("system", text), *told]
