"""Llama 3.1 to 3.3: the whole reply is `{"name": ..., "parameters": ...}`, perhaps behind `<|python_tag|>`.

Any JSON could be a call, so it is one only at the start of a reply, and only if it names a tool that the model was told of.
From that name on it is held to the tool's schema, since a reply about something else has no such name; behind the tag, from
the brace on. What stands behind the tag without a brace, `tool.call(...)` and code, is left to the model.

Source: the triggers of llama.cpp's `common_chat_params_init_llama_3_x`, which wait for a name, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from edge.messages import Tool, ToolCall
from edge.prompt.tools.base import Format, Known, Part, calls_of, read_json
from edge.prompt.tools.grammar import Held, Rules, json_call
from edge.prompt.tools.lfm2 import read_python
from edge.prompt.tools.scan import json_end

__all__ = ["LLAMA3"]

_TAG = "<|python_tag|>"
_BETWEEN = re.compile(r"[\s;,]*(?:<\|python_tag\|>)?\s*")


def _read(text: str, known: Known, is_over: bool) -> tuple[int, Sequence[Part]] | None:
    position, is_tagged = _start(text)
    if is_tagged and text[position : position + 1] not in ("", "{"):
        return (len(text), _read_tagged(text[position:], text, known)) if is_over else None
    calls: list[ToolCall] = []
    while text[position : position + 1] == "{":
        end = json_end(text, position)
        if end is None:
            if not is_over:
                return None
            break
        found = _calls(text[position:end], known)
        if found is None:
            break
        calls += found
        match = _BETWEEN.match(text, end)
        position = match.end() if match else end
    if not text[position:] and not is_over:
        return None  # another call may follow
    return (position, calls) if calls else (len(text), [text])


def _start(text: str) -> tuple[int, bool]:
    is_tagged = text.startswith(_TAG)
    start = len(_TAG) if is_tagged else 0
    return start + len(text[start:]) - len(text[start:].lstrip()), is_tagged


def _calls(text: str, known: Known) -> list[ToolCall] | None:
    try:
        calls = calls_of(read_json(text))
    except ValueError:
        return None
    return calls if all(call.name in known for call in calls) else None


def _read_tagged(code: str, text: str, known: Known) -> Sequence[Part]:
    """Read `tool.call(x="y")`, as the tools that Meta built in are called."""
    try:
        calls = [ToolCall(call.name.removesuffix(".call"), call.arguments) for call in read_python(f"[{code.strip()}]")]
    except ValueError:
        return [text]
    return calls if all(call.name in known for call in calls) else [text]


def _write(calls: Sequence[ToolCall]) -> str:
    rows = (json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False) for call in calls)
    return "\n".join(rows)


def _hold(rules: Rules, tools: Sequence[Tool]) -> Held:
    call = json_call(rules, tools, key="parameters", before={"type": {"const": "function"}})
    names = "|".join(re.escape(tool.name) for tool in tools)
    named = rf'\{{\s?(?:"type":\s?"function",\s?)?"name":\s?"(?:{names})"'
    opening = rf"[\s;,]{{0,4}}(?:{re.escape(_TAG)}\s?(?=\{{)|(?={named}))"
    return Held(opening, 100 + max(len(tool.name) for tool in tools), rules.source(call), is_first=True)


LLAMA3 = Format(
    "llama3", (_TAG, "{"), _read, "}", _write, only_first=True, keeps_open=True, around=("", ""), key="parameters", hold=_hold
)
