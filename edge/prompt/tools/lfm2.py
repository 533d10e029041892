"""LFM2: `<|tool_call_start|>[f(a="x", n=1), g()]<|tool_call_end|>`, as Python writes calls. Only literals are read."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from edge.errors import UsageError
from edge.messages import ToolCall
from edge.prompt.tools.base import Format, Known, Part, calls_of, read_json
from edge.prompt.tools.scan import find_outside

__all__ = ["LFM2", "read_python"]

_OPEN, _CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
_WORDS = {"true": True, "false": False, "null": None}
_MAX_CHARS = 200_000


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
    try:
        tree = ast.parse(code.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is not written as Python: {error}") from None
    calls = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    return [_call(one) for one in calls]


def _call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call):
        raise ValueError("it is not a call")
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("its arguments have no names")
    arguments = {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    try:
        return ToolCall(_name(node.func), arguments)
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


LFM2 = Format("lfm2", (_OPEN,), _read, ">", _write, closes=(_CLOSE,), around=(f"{_OPEN}[", f"]{_CLOSE}"))
