"""Bodies made to do harm, over each protocol: an error in its own form, soon, and the next request is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge_serve import limits
from tests.serving import Serving, parse

USER: Any = [{"role": "user", "content": "hi"}]
FORMS = {"/v1/chat/completions": {"error"}, "/v1/messages": {"type", "error", "request_id"}, "/api/chat": {"error"}}
BODY = '{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": false'
BODIES = {
    "a number of 5,000 digits": '{}, "seed": 1{}}}'.format(BODY, "0" * 5000).replace('"seed"', '"temperature"'),
    "an infinite number": f'{BODY}, "temperature": 1e999}}',
    "half of a character": BODY.replace('"hi"', r'"\ud800"') + "}",
    "half of a character in a name": f'{BODY}, "\\udc00": 1}}',
    "a tool that is nested too deeply": f'{BODY}, "tools": {"[" * 50_000}',
    "no UTF-8": BODY + ', "model": "\udcff"}',
    "cut off": BODY,
    "twice": f"{BODY}}}{BODY}}}",
    "a byte order mark": f"\ufeff{BODY}}}",
    "a model with a zero": f'{BODY}, "model": "\\u0000"}}',
    "a model that is a path": f'{BODY}, "model": "../../../etc/passwd"}}',
    "a text beyond every window": BODY.replace('"hi"', json.dumps("long " * 1_000_000)) + "}",
}


@pytest.mark.parametrize("path", list(FORMS))
@pytest.mark.parametrize("name", list(BODIES))
def test_a_hostile_body_is_an_error_in_the_protocols_form(running: Serving, path: str, name: str) -> None:
    body = BODIES[name] if path != "/api/chat" else BODIES[name].replace('"temperature":', '"keep_alive":')
    status, headers, answer = running.post(path, body.encode(errors="surrogateescape"))
    assert (400 <= status < 500, headers["content-type"]) == (True, "application/json"), (status, answer)
    assert set(answer) == FORMS[path]
    told = json.dumps(answer)
    assert len(told) < 2000 and "Traceback" not in told and "root:" not in told


@pytest.mark.parametrize("path", list(FORMS))
def test_a_body_of_100_mb_is_refused_in_the_protocols_form(running: Serving, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    status, _, body = parse(running.raw(f"{head}Content-Length: {100 * 2**20}\r\n\r\n".encode()))
    assert (status, set(json.loads(body))) == (413, FORMS[path])


@pytest.mark.parametrize("path", list(FORMS))
def test_a_flood_of_headers_is_refused_in_the_protocols_form(running: Serving, path: str) -> None:
    status, _, answer = running.post(path, {"messages": USER}, {f"X-{number}": "y" for number in range(limits.HEADERS + 1)})
    assert (status, set(answer)) == (431, FORMS[path])


def nested(n: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(n):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


DOUBLING = {f"d{n}": {"type": "array", "items": {"$ref": f"#/$defs/d{n + 1}"}, "minItems": 2} for n in range(10)}
BOMBS: dict[str, tuple[dict[str, Any], int]] = {
    "deep": (nested(150), 400),
    "doubling": ({"$defs": {**DOUBLING, "d10": {"type": "string"}}, "$ref": "#/$defs/d0"}, 200),
    "a circle": ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, 400),
    "repetitions": ({"type": "string", "pattern": "^((((a{1,1000}){1,1000}){1,1000}){1,1000})$"}, 200),
    "a long text": ({"type": "string", "maxLength": 10**9}, 200),
    "large": ({"enum": [f"word {n}" for n in range(100_000)]}, 400),
    "alternatives": (
        {"allOf": [{"anyOf": [{"properties": {f"p{n}.{m}": {"type": "string"}}} for m in range(6)]} for n in range(12)]},
        400,
    ),
    "a file": ({"$ref": "file:///etc/passwd"}, 400),
    "a page": ({"$ref": "http://127.0.0.1:1/x.json"}, 400),
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_a_schema_made_to_do_harm_is_refused_or_kept(running: Serving, name: str) -> None:
    schema, expected = BOMBS[name]
    form = {"type": "json_schema", "json_schema": {"name": "bomb", "schema": schema, "strict": True}}
    status, _, answer = running.post("/v1/chat/completions", {"messages": USER, "max_tokens": 2, "response_format": form})
    assert status == expected, answer
    if status == 400:
        assert set(answer["error"]) >= {"message", "type", "param", "code"}
    assert running.post("/v1/chat/completions", {"messages": USER, "max_tokens": 1})[0] == 200
