"""LFM2: `<|tool_call_start|>[f(a="x", n=1), g()]<|tool_call_end|>`, as Python writes calls. Only literals are read."""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from edge.errors import UsageError
from edge.messages import Tool, ToolCall
from edge.prompt.tools.base import Format, Known, Part, calls_of, read_json
from edge.prompt.tools.grammar import Held, Rules, json_calls, one_of, word
from edge.prompt.tools.notation import Keys, Notation, Values
from edge.prompt.tools.scan import find_outside

__all__ = ["LFM2", "read_python"]

_OPEN, _CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
_WORDS = {"true": True, "false": False, "null": None}
_MAX_CHARS = 200_000
_QUOTED_OR_NAME = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<name>[A-Za-z_][\w.:-]*)(?P<next>\s*(?:=(?!=)|\())""", re.DOTALL
)


def _read(text: str, known: Known, is_over: bool) -> tuple[int, Sequence[Part]] | None:
    end = find_outside(text, _CLOSE)
    if end is None:
        if not is_over:
            return None
        at = text.find(_CLOSE)  # a quote that is never closed hides it
        end = at if at >= 0 else len(text)
    body = text[:end].strip()
    n_read = end + len(_CLOSE) if text.startswith(_CLOSE, end) else end
    if body.startswith(("{", "[{")):
        return n_read, calls_of(read_json(body))
    return n_read, read_python(body)


def read_python(code: str) -> list[ToolCall]:
    """Return the calls in a Python expression: one call, or a list of calls, with literal keyword arguments.

    Raises:
        ValueError: it is something else.
    """
    if len(code) > _MAX_CHARS:
        raise ValueError("it is too long")
    code, names = _as_python(code)
    try:
        tree = ast.parse(code.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is not written as Python: {error}") from None
    calls = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    return [_call(one, names) for one in calls]


def _as_python(code: str) -> tuple[str, dict[str, str]]:
    """Return code whose names are all possible in Python, and what was written for those that were not: `from`, `get-time`."""
    names: dict[str, str] = {}

    def rename(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None or all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split(".")):
            return match.group()
        made = f"edge_name_{len(names)}"
        names[made] = name
        return made + match["next"]

    return _QUOTED_OR_NAME.sub(rename, code), names


def _call(node: ast.expr, names: Mapping[str, str]) -> ToolCall:
    if not isinstance(node, ast.Call):
        raise ValueError("it is not a call")
    if node.args or any(given.arg is None for given in node.keywords):
        raise ValueError("its arguments have no names")
    arguments = {names.get(str(given.arg), str(given.arg)): _literal(given.value) for given in node.keywords}
    name = _name(node.func)
    try:
        return ToolCall(names.get(name, name), arguments)
    except UsageError as error:
        raise ValueError(error.message) from None


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    raise ValueError("it does not name a tool")


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        if not all(isinstance(key, ast.Constant) and isinstance(key.value, str) for key in node.keys):
            raise ValueError("a key is not text")
        return {key.value: _literal(value) for key, value in zip(node.keys, node.values, strict=True)}  # type: ignore[union-attr]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        raise ValueError("an argument is not a plain value") from None


def _write(calls: Sequence[ToolCall]) -> str:
    texts = (f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})" for call in calls)
    return f"{_OPEN}[{', '.join(texts)}]{_CLOSE}"


def _hold(rules: Rules, tools: Sequence[Tool]) -> Held:
    values = Values(rules, _notation(rules), len(tools))
    call = one_of(f'{json.dumps(tool.name + "(")} {values.arguments(tool)} ")"' for tool in tools)
    python = f'"[" {rules.several(call, "/, ?/")} "]"'
    ways = python if rules.is_single else f"({python} | {json_calls(rules, tools)})"  # where the system prompt asks for JSON
    return Held(*word(_OPEN), rules.source(f"{ways} {rules.text(_CLOSE)}"))


def _notation(rules: Rules) -> Notation:
    escaped = r"""\\(["'\\nrtbfav]|x[0-9a-fA-F]{2}|u([0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))"""
    string = rules.terminal(" | ".join(rf"/{mark}([^{mark}\\\x00-\x1f]|{escaped})*{mark}/" for mark in ('"', "'")))
    name = "/[A-Za-z_][A-Za-z0-9_]*/"

    def literals(text: str) -> Sequence[str]:
        ways = dict.fromkeys((json.dumps(text, ensure_ascii=False), repr(text)))
        return [json.dumps(way, ensure_ascii=False) for way in ways]

    def but(known: Collection[str], any: str, written: Callable[[str], Sequence[str]]) -> str:
        ways = [way for name in known for way in written(name)]
        return rules.terminal(f"{any} & ~{one_of(ways)}") if ways else rules.terminal(any)

    arguments = Keys(lambda key: json.dumps(f"{key}="), lambda known: f'{but(known, name, lambda key: [json.dumps(key)])} "="')
    members = Keys(lambda key: f"{one_of(literals(key))} /: ?/", lambda known: f"{but(known, string, literals)} /: ?/")
    return Notation(string, literals, ("True", "true"), ("False", "false"), ("None", "null"), arguments, members)


LFM2 = Format("lfm2", (_OPEN,), _read, ">", _write, closes=(_CLOSE,), hold=_hold)
