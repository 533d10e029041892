"""The description at /openapi.json; tests/ecosystem asks the server all that it says."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from edge_serve.app import ROUTES
from edge_serve.openapi import document
from edge_serve.operations import OPERATIONS
from tests.serving import Serving


def test_every_route_is_described_and_nothing_else() -> None:
    """Give a new route a line in apps/edge_serve/operations.py."""
    assert set(OPERATIONS) == {(method, path.replace(":path}", "}")) for method, path, _ in ROUTES}


def test_the_description_is_served_and_every_reference_leads_somewhere(running: Serving) -> None:
    status, headers, found = running.ask("GET", "/openapi.json")
    assert (status, headers["content-type"], found["openapi"]) == (200, "application/json", "3.1.0")
    schemas = found["components"]["schemas"]

    def check(value: Any) -> None:
        if isinstance(value, dict) and "$ref" in value:
            assert value["$ref"].removeprefix("#/components/schemas/") in schemas
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    check(found)
    ids = [one["operationId"] for path in found["paths"].values() for one in path.values()]
    assert len(ids) == len(set(ids)) == len(OPERATIONS)


def test_a_key_is_asked_for_where_the_server_has_keys() -> None:
    assert document()["security"] == []
    found = document(needs_key=True)
    assert {name for one in found["security"] for name in one} == set(found["components"]["securitySchemes"])
    no_key = {path for path, methods in found["paths"].items() if any("security" in one for one in methods.values())}
    assert no_key == {"/", "/health", "/openapi.json"}


@pytest.mark.parametrize("where", [where for where, operation in OPERATIONS.items() if operation.reads is not None])
def test_examples_fit_their_schema_and_are_answered_as_described(running: Serving, where: tuple[str, str]) -> None:
    method, path = where
    found = document()
    described = found["paths"][path][method.lower()]
    (asked,) = described["requestBody"]["content"].values()
    example = asked.get("example", {})
    answered = described["responses"]["200"]["content"]["application/json"]
    status, _, body = running.post(path, example)
    assert status == 200
    for schema, value in ((asked["schema"], example), (answered["schema"], body)):
        jsonschema_rs.validate({**schema, "components": found["components"]}, value)


@pytest.mark.parametrize(("field", "wrong"), [("max_tokens", 0), ("top_p", 2), ("n", 9), ("messages", []), ("n", "1")])
def test_what_is_checked_is_described(running: Serving, field: str, wrong: object) -> None:
    path = "/v1/chat/completions"
    found = document()
    (asked,) = found["paths"][path]["post"]["requestBody"]["content"].values()
    body = {**asked["example"], field: wrong}
    assert running.post(path, body)[0] == 400
    assert not jsonschema_rs.is_valid({**asked["schema"], "components": found["components"]}, body)
