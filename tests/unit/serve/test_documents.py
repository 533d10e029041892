"""Documents in chat requests: only collections that the operator allows, and no more of them than passages."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from edge.config.schema import Paths
from edge.documents import Collection
from tests.serving import Serving, serving, wait_until

QUESTION = [{"role": "user", "content": "How do I reset the pump?"}]
UNKNOWN = "Who painted the chapel?"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with the collections "manual", which clients may search, and "diary", which they may not."""
    folder = tmp_path_factory.mktemp("data")
    for name, text in (("manual", "To reset the pump, hold the red button."), ("diary", "I reset the pump in secret.")):
        (folder / f"{name}.txt").write_text(text + "\n")
        with Collection.open(name, store=folder / "documents", embedder="") as collection:
            collection.add(folder / f"{name}.txt")
    paths = Paths(data_dir=folder, cache_dir=folder / "c", models_dir=folder / "m", config_file=folder / "config.toml")
    with serving(server={"docs": ("manual",)}, settings={"paths": paths}) as server:
        wait_until(lambda: server.ask("GET", "/health")[0] == 200)
        yield server


def ask(running: Serving, **fields: Any) -> tuple[int, Any]:
    status, _, answer = running.post("/v1/chat/completions", {"messages": QUESTION, **fields})
    return status, answer


@pytest.mark.parametrize("docs", ["manual", ["manual"]])
def test_an_answer_has_the_passages_it_rests_on(running: Serving, docs: Any) -> None:
    status, answer = ask(running, docs=docs)
    assert status == 200
    (found,) = answer["choices"][0]["message"]["citations"]
    assert found["number"] == 1
    assert found["collection"] == "manual"
    assert found["file"] == "manual.txt"
    assert found["lines"] == [1, 1]
    assert "red button" in found["text"]
    assert "/" not in found["file"]  # where files are is not the client's
    assert answer["usage"]["prompt_tokens"] > 20


@pytest.mark.parametrize("docs", ["diary", ["manual", "diary"], "../documents", "", ["manual"] * 17])
def test_what_is_not_allowed_is_refused_and_not_told_apart_from_what_is_missing(running: Serving, docs: Any) -> None:
    status, answer = ask(running, docs=docs)
    assert status == 400
    assert answer["error"]["param"] == "docs"
    status, other = ask(running, docs="nothing")
    assert other["error"]["message"].replace("nothing", "diary") == ask(running, docs="diary")[1]["error"]["message"]


@pytest.mark.parametrize("docs", [3, {"name": "manual"}, [3]])
def test_a_wrong_type_is_a_400(running: Serving, docs: Any) -> None:
    assert ask(running, docs=docs)[0] == 400


def test_without_docs_nothing_is_searched(running: Serving) -> None:
    for fields in ({}, {"docs": None}, {"docs": []}):
        status, answer = ask(running, **fields)
        assert status == 200
        assert "citations" not in answer["choices"][0]["message"]


def test_an_answer_that_rests_on_nothing_says_so(running: Serving) -> None:
    status, _, answer = running.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": UNKNOWN}], "docs": "manual"}
    )
    assert status == 200
    assert "citations" not in answer["choices"][0]["message"]
    assert any("rests on no document" in notice for notice in answer["notices"])


def test_a_stream_has_the_passages_before_the_text(running: Serving) -> None:
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True) as client:
        chunks = list(
            client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, extra_body={"docs": ["manual"]})  # type: ignore[call-overload]
        )
    deltas = [chunk.choices[0].delta.model_dump(exclude_none=True) for chunk in chunks if chunk.choices]
    kinds = ["citations" if "citations" in one else "text" for one in deltas if one.get("content") or "citations" in one]
    assert kinds.count("citations") == 1
    assert kinds[0] == "citations"
    assert "red button" in json.dumps(deltas)


MORE = {
    "/v1/messages": {"model": "tiny", "messages": QUESTION, "max_tokens": 20},
    "/v1/responses": {"input": QUESTION[0]["content"]},
    "/api/chat": {"model": "tiny", "messages": QUESTION, "stream": False},
    "/api/generate": {"model": "tiny", "prompt": QUESTION[0]["content"], "stream": False},
}
"""Bodies for the other protocols; Ollama's clients send `docs` among the options."""


def with_docs(path: str, docs: Any, **fields: Any) -> dict[str, Any]:
    named = {"options": {"docs": docs}} if path.startswith("/api") else {"docs": docs}
    return {**MORE[path], **named, **fields}


@pytest.mark.parametrize("path", MORE)
def test_the_other_protocols_have_the_field(running: Serving, path: str) -> None:
    status, headers, answer = running.post(path, with_docs(path, "manual"))
    assert status == 200
    assert "x-edge-ignored" not in headers
    (found,) = answer["citations"]
    assert (found["number"], found["collection"], found["file"]) == (1, "manual", "manual.txt")
    assert "red button" in found["text"]
    assert not {"citations", "notices"} & running.post(path, MORE[path])[2].keys()
    status, _, error = running.post(path, with_docs(path, "diary"))
    assert status == 400
    assert "diary" in json.dumps(error)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("path", MORE)
def test_the_other_protocols_say_that_nothing_was_found(running: Serving, path: str, is_streamed: bool) -> None:
    asked = json.loads(json.dumps(with_docs(path, "manual", stream=is_streamed)).replace(QUESTION[0]["content"], UNKNOWN))
    request = urllib.request.Request(running.url + path, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        said = [line for line in answer.read().decode().splitlines() if "rests on no document" in line]
    assert len(said) == 1
    last = json.loads(said[0].removeprefix("data: "))
    held = next((last[name] for name in ("delta", "response") if isinstance(last.get(name), dict)), last)
    assert any("rests on no document" in notice for notice in held["notices"])
    assert "citations" not in held


@pytest.mark.parametrize("path", MORE)
def test_the_streams_of_other_protocols_end_with_the_passages(running: Serving, path: str) -> None:
    request = urllib.request.Request(
        running.url + path, json.dumps(with_docs(path, ["manual"], stream=True)).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        lines = [line for line in answer.read().decode().splitlines() if "citations" in line and "red button" in line]
    assert len(lines) == 1
    last = json.loads(lines[0].removeprefix("data: "))
    held = last.get("delta") or last.get("response") or last
    assert held["citations"][0]["file"] == "manual.txt"


def test_a_raw_prompt_has_no_question(running: Serving) -> None:
    status, _, error = running.post("/api/generate", with_docs("/api/generate", "manual", raw=True))
    assert status == 400
    assert "raw" in error["error"]


def test_a_server_without_documents_says_how_to_allow_some() -> None:
    with serving() as server:
        wait_until(lambda: server.ask("GET", "/health")[0] == 200)
        status, answer = ask(server, docs="manual")
        assert status == 400
        assert "edge serve --docs" in answer["error"]["message"]


def test_the_description_has_the_field(running: Serving) -> None:
    _, _, page = running.ask("GET", "/openapi.json")
    body = page["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    properties = page["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]
    assert properties["docs"]
    assert any("citations" in schema.get("properties", {}) for schema in page["components"]["schemas"].values())


def test_the_files_stay_private(running: Serving) -> None:
    folder: Path = running.service.settings.paths.documents_dir
    assert all(file.stat().st_mode & 0o077 == 0 for file in (folder / "manual").iterdir())


def test_the_option_says_what_is_allowed() -> None:
    from edge_cli.app import App
    from edge_cli.options import settings_from

    assert settings_from(App(), {"docs": ("manual", "faq")}).server.docs == ("manual", "faq")
    assert settings_from(App(), {"docs": ()}).server.docs == ()
