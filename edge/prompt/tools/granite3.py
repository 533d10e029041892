"""Granite 3: `<|tool_call|>[{"name": ..., "arguments": ...}]`; some write `<tool_call>` instead."""

from __future__ import annotations

import json
from collections.abc import Sequence

from edge.messages import ToolCall
from edge.prompt.tools.base import Format
from edge.prompt.tools.phi4 import read_array

__all__ = ["GRANITE3"]


def _write(calls: Sequence[ToolCall]) -> str:
    rows = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return f"<|tool_call|>{json.dumps(rows, ensure_ascii=False)}"


GRANITE3 = Format("granite3", ("<|tool_call|>", "<tool_call>"), read_array, "]}>", _write, around=("<|tool_call|>[", "]"))
