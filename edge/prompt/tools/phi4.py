"""Phi-4-mini: `functools[{"name": ..., "arguments": ...}]` at the start of a reply, or `<|tool_call|>[...]<|/tool_call|>`.

`functools` is a word of Python's, too: a call is held from the brackets on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from edge.messages import Tool, ToolCall
from edge.prompt.tools.base import Format, Known, Part, calls_of, read_json
from edge.prompt.tools.grammar import Held, Rules, json_calls
from edge.prompt.tools.scan import json_end

__all__ = ["PHI4", "read_array"]

_OPEN, _CLOSE = "<|tool_call|>", "<|/tool_call|>"


def read_array(text: str, known: Known, is_over: bool) -> tuple[int, Sequence[Part]] | None:
    """Read an array of calls, or one call, and the closing word where there is one."""
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] not in ("", "[", "{"):
        raise ValueError("it is not a list of calls")
    end = json_end(text, start) if text[start:] else None
    if end is None:
        return None
    rest = text[end:].lstrip()
    if rest.startswith(_CLOSE):
        return len(text) - len(rest) + len(_CLOSE), calls_of(read_json(text[start:end]))
    if not is_over and _CLOSE.startswith(rest):
        return None  # it may follow
    return end, calls_of(read_json(text[start:end]))


def _write(calls: Sequence[ToolCall]) -> str:
    rows = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return f"functools{json.dumps(rows, ensure_ascii=False)}"


def _hold(rules: Rules, tools: Sequence[Tool]) -> Held:
    opening = rf"\s{{0,2}}(?:functools(?=\[\s?\{{)|{re.escape(_OPEN)})"
    grammar = rules.source(f"{json_calls(rules, tools)} {rules.text(_CLOSE)}?")
    return Held(opening, 16 + len(_OPEN), grammar, is_first=True)


PHI4 = Format(
    "phi4-mini",
    ("functools", _OPEN),
    read_array,
    "]}>",
    _write,
    only_first=True,
    closes=(_CLOSE,),
    around=("functools[", "]"),
    hold=_hold,
)
