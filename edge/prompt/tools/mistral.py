"""Mistral: `[TOOL_CALLS][{"name": ..., "arguments": ...}]` up to version 7 of its tokenizers, later
`[TOOL_CALLS]name[ARGS]{...}`, with `[CALL_ID]id` between the two in some.

A template does not always tell which of them its model writes, so a call is held to whichever it begins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from edge.messages import Tool, ToolCall
from edge.prompt.tools.base import Format, Known, Part, calls_of, read_json
from edge.prompt.tools.grammar import Held, Rules, json_arguments, json_calls, one_of, word
from edge.prompt.tools.scan import json_end

__all__ = ["MISTRAL"]

_OPEN = "[TOOL_CALLS]"
_NAMED = re.compile(r"\s*([A-Za-z0-9_.:-]+)\s*(?:\[CALL_ID\]([A-Za-z0-9]+)\s*)?(?:\[ARGS\]\s*)?(?=\{)")
_MAX_NAME = 300


def _read(text: str, known: Known, is_over: bool) -> tuple[int, Sequence[Part]] | None:
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] == "[":
        end = json_end(text, start)
        return None if end is None else (end, calls_of(read_json(text[start:end])))
    named = _NAMED.match(text)
    if named is None:
        if is_over or len(text) > _MAX_NAME:
            raise ValueError("it does not name a tool")
        return None
    end = json_end(text, named.end())
    if end is None:
        return None
    return end, calls_of({"name": named[1], "arguments": read_json(text[named.end() : end]), "id": named[2]})


def _write(calls: Sequence[ToolCall]) -> str:
    return "".join(f"{_OPEN}{call.name}[ARGS]{json.dumps(call.arguments, ensure_ascii=False)}" for call in calls)


def _hold(rules: Rules, tools: Sequence[Tool]) -> Held:
    id = {"type": "string", "pattern": "^[a-zA-Z0-9]{9}$"}
    listed = json_calls(rules, tools, behind={"id": id}, is_tight=True)
    between = f"({rules.text('[CALL_ID]')} /[a-zA-Z0-9]{{9}}/)? {rules.text('[ARGS]')}?"
    named = [f"{rules.text(tool.name)} {between} {json_arguments(rules, tool)}" for tool in tools]
    return Held(*word(_OPEN), rules.source(f"/ ?/ {one_of([listed, *named])}"))


_MARKERS = ("[ARGS]", "[CALL_ID]")
MISTRAL = Format("mistral", (_OPEN,), _read, "}]", _write, closes=_MARKERS, around=(f"{_OPEN}[", "]"), hold=_hold)
