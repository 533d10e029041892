"""What schemathesis does more (https://schemathesis.readthedocs.io, "extending"); loaded by it, not by pytest."""

from __future__ import annotations

from typing import Any

import schemathesis

FORMS = {"/v1/messages": {"type", "error", "request_id"}, "/api/": {"error"}}
"""Beginning of a path -> fields of an error there; elsewhere they are OpenAI's."""


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Ask for a model that there is, so that more than the name is looked at."""
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "tiny"
    return body


@schemathesis.check
def error_form(context: Any, response: Any, case: Any) -> None:
    """An error has the form of its protocol, the id of the request, and nothing of the inside."""
    text = response.content.decode()
    for inside in ("Traceback", "edge_serve", "site-packages", "msgspec"):
        assert inside not in text, f"{inside} in an answer"
    assert response.headers["x-request-id"][0].startswith("req_")
    if response.status_code < 400 or case.method == "HEAD":
        return
    if response.status_code == 503 and case.path == "/health":
        return
    assert response.headers["content-type"][0] == "application/json"
    told = response.json()
    expected = next((form for begin, form in FORMS.items() if case.path.startswith(begin)), {"error"})
    assert set(told) == expected, told
    message = told["error"] if case.path.startswith("/api/") else told["error"]["message"]
    assert isinstance(message, str) and message
    is_refused = "200" not in case.operation.definition.raw["responses"]
    assert response.status_code != 501 or is_refused, "501 where there is an answer"
