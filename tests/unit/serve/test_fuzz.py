"""Requests with any value anywhere: an answer, or an error of the client in its protocol's form, never one of the server."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving import Serving

USER: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "r"},
        ],
        "max_tokens": 2,
        "temperature": 1.0,
        "stop": ["x"],
        "logit_bias": {"5": 1},
        "logprobs": True,
        "top_logprobs": 1,
        "n": 1,
        "seed": 1,
        "tools": [{"type": "function", "function": TOOL}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        "stream_options": {"include_usage": True},
        "reasoning_effort": "low",
    },
    "/v1/completions": {"prompt": "a", "max_tokens": 2, "logprobs": 1, "echo": True, "stop": "x"},
    "/v1/responses": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}, {"type": "function_call", "name": "f"}],
        "max_output_tokens": 2,
        "tools": [{"type": "function", **TOOL}],
        "text": {"format": {"type": "json_object"}},
        "reasoning": {"effort": "low"},
        "metadata": {"a": "b"},
    },
    "/v1/messages": {
        "max_tokens": 2,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "r"}]}],
            },
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "thinking": {"type": "enabled", "budget_tokens": 5},
        "stop_sequences": ["x"],
    },
    "/v1/messages/count_tokens": {"messages": USER, "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
    "/api/chat": {
        "model": "tiny",
        "messages": [*USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}],
        "tools": [{"type": "function", "function": TOOL}],
        "format": {"type": "object"},
        "options": {"num_predict": 2, "top_p": 0.5, "stop": ["x"]},
        "stream": False,
        "think": True,
    },
    "/api/generate": {"prompt": "a", "system": "s", "options": {"num_predict": 2}, "stream": False, "raw": False},
    "/tokenize": {"content": "a", "add_special": True, "with_pieces": True},
    "/detokenize": {"tokens": [1, 2]},
}

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["", "tiny", "text", "user", "tool", "auto", "json_object", "{", "\x00", "<|im_end|>", "$defs", "$ref"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(["type", "$ref"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(found for key, below in inside for found in places(below, (*path, key)))]


@pytest.mark.parametrize("path", list(BODIES))
@settings(max_examples=40)
@given(data=st.data())
def test_no_value_makes_the_server_fail(running: Serving, path: str, data: st.DataObject) -> None:
    body = copy.deepcopy(BODIES[path])
    for _ in range(data.draw(st.integers(1, 2), label="changes")):
        *way, last = data.draw(st.sampled_from(places(body)), label="place")
        parent: Any = body
        for key in way:
            parent = parent[key]
        parent[last] = data.draw(VALUES, label="value")
    if isinstance(body.get("stream"), bool):
        body["stream"] = False
    status, _, answer = running.post(path, body)
    assert status in (200, 400, 404), (status, body, answer)
    if status != 200:
        assert "error" in answer


def test_every_body_is_answered_as_it_is(running: Serving) -> None:
    for path, body in BODIES.items():
        status, _, answer = running.post(path, body)
        assert status == 200 or "exclude" in str(answer), (path, answer)
