"""Libraries and programs of others that speak OpenAI's protocol, in their main call styles, none of which phones home."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.backends.fake import default_answer
from tests.ecosystem.conftest import Others
from tests.serving import Serving, serving

HERE = Path(__file__).parent
HI = default_answer("hi")
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": PARAMETERS}}]
DIGIT = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
CALL = ["weather", {"city": "Paris"}]
WRITTEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    with serving(script={"weather?": WRITTEN}, n_ctx=8192) as server:
        yield server


def ask(others: Others, program: str, *arguments: str, **variables: str) -> Any:
    """Run one of the programs beside this file, and return what it printed."""
    guard = {"PYTHONPATH": str(HERE / "guard")}
    done = others.run("python", HERE / "programs" / program, *arguments, **guard, **variables)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "PHONED HOME" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_litellm_over_all_protocols(others: Others, running: Serving) -> None:
    here = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it fetches prices
    found = ask(others, "ask_litellm.py", running.url, json.dumps(TOOLS), **here)
    for protocol in ("openai/tiny", "anthropic/tiny", "ollama_chat/tiny"):
        one = found[protocol]
        assert one["text"] == one["streamed"] == one["async"] == HI, protocol
        assert (one["tokens"], one["calls"], one["reason"]) == (len(HI), [CALL], "tool_calls"), protocol
    assert isinstance(found["digit"], int)
    assert (found["text completion"], found["response"], found["too long"]) == (3, HI, "ContextWindowExceededError")


def test_instructor_gets_its_types(others: Others, running: Serving) -> None:
    found = ask(others, "ask_instructor.py", running.url)
    assert set(found) == {"TOOLS", "TOOLS partly", "JSON_SCHEMA", "JSON_SCHEMA partly", "async"}
    for digit in found.values():
        assert isinstance(digit["n"], int) and isinstance(digit["is_odd"], bool)


def test_langchain(others: Others, running: Serving) -> None:
    found = ask(others, "ask_langchain.py", running.url)
    assert found["text"] == found["streamed"] == found["async"] == found["after"] == found["response"] == HI
    assert found["batch"] == [HI, HI]
    assert found["usage"] == len(HI)
    assert found["calls"] == found["streamed calls"] == [CALL]
    assert isinstance(found["json schema"], int) and isinstance(found["function"], int)
    assert found["completion"]


def test_llm_with_its_openai_plugin(others: Others, running: Serving, tmp_path: Path) -> None:
    """https://llm.datasette.io/en/stable/other-models.html#openai-compatible-models"""
    model = {"model_id": "edge", "model_name": "tiny", "api_base": f"{running.url}/v1", "supports_tools": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([{**model, "supports_schema": True, "can_stream": True}]))

    def llm(*arguments: str) -> str:
        env = {"LLM_USER_PATH": str(tmp_path), "PYTHONPATH": str(HERE / "guard"), "OPENAI_API_KEY": "none"}
        done = others.run("llm", *arguments, **env)
        assert done.returncode == 0 or "Chain limit" in done.stderr, done.stderr[-4000:]
        assert "PHONED HOME" not in done.stderr
        return done.stdout.strip() or done.stderr

    assert llm("-m", "edge", "hi") == llm("-m", "edge", "hi", "--no-stream") == HI.strip()
    assert llm("-c", "hi") == HI.strip()  # goes on with the last conversation
    assert isinstance(json.loads(llm("-m", "edge", "form", "--schema", json.dumps(DIGIT)))["n"], int)
    functions = "def weather(city: str) -> str:\n    'Give the weather'\n    return 'sunny in ' + city"
    shown = llm("-m", "edge", "weather?", "--functions", functions, "--chain-limit", "2", "--td", "--no-stream")
    assert "weather({'city': 'Paris'})" in shown and "sunny in Paris" in shown
    assert "Chain limit of 2" in shown  # the model by script calls again when it gets the result
