"""Granite 3: `<|tool_call|>[{"name": ..., "arguments": ...}]`; some write `<tool_call>` instead."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from edge.messages import Tool, ToolCall
from edge.prompt.tools.base import Format
from edge.prompt.tools.grammar import Held, Rules, json_calls
from edge.prompt.tools.phi4 import read_array

__all__ = ["GRANITE3"]


def _write(calls: Sequence[ToolCall]) -> str:
    rows = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return f"<|tool_call|>{json.dumps(rows, ensure_ascii=False)}"


def _hold(rules: Rules, tools: Sequence[Tool]) -> Held:
    grammar = rules.source(f"/[ \\n]?/ {json_calls(rules, tools, is_either_first=True)}")
    return Held("|".join(map(re.escape, _OPENS)), len(_OPENS[0]), grammar)


_OPENS = ("<|tool_call|>", "<tool_call>")
GRANITE3 = Format("granite3", _OPENS, read_array, "]}>", _write, around=("<|tool_call|>[", "]"), hold=_hold)
