"""Hermes, Qwen 2.5 and 3, SmolLM3, Granite 4: `<tool_call>{"name": ..., "arguments": ...}</tool_call>`; Qwen3-Coder and
Qwen 3.5: `<tool_call><function=f><parameter=k>value</parameter></function></tool_call>`, whose values have no types.

Calls of the second kind are left to the model: their values are bare text that ends where a tag begins, and a schema says
little about such text. Those models write the first kind, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from edge.messages import Tool, ToolCall
from edge.prompt.tools.base import Format, Known, Part, calls_of, read_json
from edge.prompt.tools.coerce import coerce
from edge.prompt.tools.grammar import Held, Rules, json_call, word
from edge.prompt.tools.scan import json_end

__all__ = ["HERMES", "QWEN_XML"]

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_END = re.compile(r"\s*</tool_call>")
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
_FUNCTION_END = re.compile(r"</function>\s*(?=</tool_call>)")
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>(?=\s*(?:<parameter=|\Z))", re.DOTALL)


def _read(text: str, known: Known, is_over: bool) -> tuple[int, Sequence[Part]] | None:
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] == "<" or not text[start:]:
        return _read_xml(text, known, is_over)
    if text[start] not in "{[":
        end = text.find(_CLOSE)
        if end >= 0 or is_over:
            raise ValueError("it is not a JSON object")
        return None
    end_of_json = json_end(text, start)
    if end_of_json is None:
        return None
    closing = _END.match(text, end_of_json)
    rest = text[end_of_json:].strip()
    if closing is None and not is_over:
        if rest and not _CLOSE.startswith(rest[: len(_CLOSE)]):
            return end_of_json, calls_of(read_json(text[start:end_of_json]))  # the model forgot to close it
        return None
    is_cut = _CLOSE.startswith(rest)  # the reply ended within the word that closes the call
    n_read = closing.end() if closing else len(text) if is_cut else end_of_json
    return n_read, calls_of(read_json(text[start:end_of_json]))


def _read_xml(text: str, known: Known, is_over: bool) -> tuple[int, Sequence[Part]] | None:
    opening = _FUNCTION.match(text)
    if opening is None:
        if is_over or _CLOSE in text:
            raise ValueError("it does not name a function")
        return None
    closing = _FUNCTION_END.search(text, opening.end())
    if closing is None:
        end = text.rfind("</function>") if is_over else -1
        if end < 0:
            return None
        body, n_read = text[opening.end() : end], len(text)
    else:
        body, n_read = text[opening.end() : closing.start()], closing.end() + len(_CLOSE)
    name = opening[1].strip()
    arguments: dict[str, Any] = {}
    for match in _PARAMETER.finditer(body.rstrip()):
        key = match[1].strip()
        arguments[key] = coerce(match[2], name, key, known)
    return n_read, [ToolCall(name, arguments)]


def _write(calls: Sequence[ToolCall]) -> str:
    rows = (json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False) for call in calls)
    return "\n".join(f"{_OPEN}\n{row}\n{_CLOSE}" for row in rows)


def _write_xml(calls: Sequence[ToolCall]) -> str:
    texts = []
    for call in calls:
        rows = "".join(f"<parameter={key}>\n{_text(value)}\n</parameter>\n" for key, value in call.arguments.items())
        texts.append(f"{_OPEN}\n<function={call.name}>\n{rows}</function>\n{_CLOSE}")
    return "\n".join(texts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _hold(rules: Rules, tools: Sequence[Tool]) -> Held:
    call = json_call(rules, tools)
    return Held(*word(_OPEN), rules.source(f"/\\n?/ {call} /\\n?/ {rules.text(_CLOSE)}"))


_AROUND = (f"{_OPEN}\n", f"\n{_CLOSE}")
HERMES = Format("hermes", (_OPEN,), _read, ">", _write, closes=(_CLOSE,), around=_AROUND, hold=_hold)
QWEN_XML = Format("qwen-xml", (_OPEN,), _read, ">", _write_xml, closes=(_CLOSE,), around=_AROUND)
