"""Adapters in requests, as llama.cpp's server takes them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from anthropic import Anthropic
from ollama import Client
from openai import OpenAI

from tests.adapters import fake_adapters
from tests.serving import Serving, serving, wait_until

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    with serving(adapters=(*fake_adapters("pirate"), *fake_adapters("x", "formal", scale=0.0)[1:])) as server:
        wait_until(lambda: server.ask("GET", "/health")[0] == 200)
        yield server


def ask(running: Serving, lora: Any) -> tuple[int, Any]:
    body = {"messages": HI, "max_tokens": 40, **({} if lora is None else {"lora": lora})}
    status, _, answer = running.post("/v1/chat/completions", body)
    return status, answer["choices"][0]["message"]["content"] if status == 200 else answer["error"]


@pytest.mark.parametrize(
    ("lora", "begin"),
    [
        (None, "[pirate] "),
        ([], "You said"),
        ([{"id": 0, "scale": 0.5}], "[pirate at 0.5] "),
        ([{"id": 1}], "[formal] "),
        ([{"id": "formal", "scale": 2}, {"id": "pirate"}], "[pirate, formal at 2] "),
        ([{"id": 0, "scale": 0}], "You said"),
    ],
)
def test_a_request_names_its_adapters(running: Serving, lora: Any, begin: str) -> None:
    status, text = ask(running, lora)
    assert status == 200 and text.startswith(begin)


@pytest.mark.parametrize("lora", [[{"id": 2}], [{"id": "late"}], [{"id": -1}], [{"id": 0, "scale": 1e9}], [{"id": 0}] * 65])
def test_what_cannot_be_is_a_400_that_names_the_field(running: Serving, lora: Any) -> None:
    status, error = ask(running, lora)
    assert (status, error["param"]) == (400, "lora")


@pytest.mark.parametrize("lora", ["pirate", [{"scale": 1}], [{"id": 0, "scale": "much"}], {"id": 0}])
def test_a_wrong_type_is_a_400(running: Serving, lora: Any) -> None:
    assert ask(running, lora)[0] == 400


def test_completions_and_responses_take_them_too(running: Serving) -> None:
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", _strict_response_validation=True) as client:
        extra = {"lora": [{"id": 1, "scale": 0.5}]}
        text = client.completions.create(model="tiny", prompt=prompt, max_tokens=30, extra_body=extra).choices[0].text
        assert text.startswith("[formal at 0.5] ")
        made = client.responses.create(model="tiny", input="Hi", max_output_tokens=30, extra_body=extra)
        assert made.output_text.startswith("[formal at 0.5] ")


def test_the_other_protocols_take_them_as_an_extension(running: Serving) -> None:
    lora = [{"id": 1, "scale": 0.5}]
    with Anthropic(base_url=running.url, api_key="none", _strict_response_validation=True) as client:
        made = client.messages.create(model="tiny", messages=HI, max_tokens=40, extra_body={"lora": lora})
        assert made.content[0].text.startswith("[formal at 0.5] ")
        with client.messages.stream(model="tiny", messages=HI, max_tokens=40, extra_body={"lora": []}) as stream:
            assert stream.get_final_text().startswith("You said")
    options = {"num_predict": 40, "lora": lora}
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    with Client(host=running.url) as ollama:
        assert ollama.chat("tiny", messages=HI, options=options).message.content.startswith("[formal at 0.5] ")
        assert ollama.generate("tiny", "Hi", options=options).response.startswith("[formal at 0.5] ")
        assert ollama.generate("tiny", prompt, raw=True, options=options).response.startswith("[formal at 0.5] ")


def test_the_other_protocols_say_in_their_own_form_what_cannot_be(running: Serving) -> None:
    bad: list[dict[str, Any]] = [{"id": "late"}]
    status, _, error = running.post("/v1/messages", {"model": "tiny", "messages": HI, "max_tokens": 9, "lora": bad})
    assert (status, error["type"], error["error"]["type"]) == (400, "error", "invalid_request_error")
    assert "late" in error["error"]["message"]
    status, _, error = running.post("/api/chat", {"model": "tiny", "messages": HI, "options": {"lora": bad}})
    assert status == 400 and "late" in error["error"]
    status, _, error = running.post("/api/chat", {"model": "tiny", "messages": HI, "options": {"lora": "late"}})
    assert status == 400 and "options" in error["error"]


def test_adapters_are_listed(running: Serving) -> None:
    status, _, found = running.ask("GET", "/lora-adapters")
    assert status == 200
    assert found == [
        {"id": 0, "path": "pirate.gguf", "name": "pirate", "scale": 1.0},
        {"id": 1, "path": "formal.gguf", "name": "formal", "scale": 0.0},
    ]
    assert running.post("/lora-adapters", [])[0] == 405


def test_clients_with_different_adapters_are_answered_side_by_side(running: Serving) -> None:
    mixes = [None, [], [{"id": 1}], [{"id": 0, "scale": 0.5}]] * 4
    begins = ["[pirate] ", "You said", "[formal] ", "[pirate at 0.5] "] * 4
    with ThreadPoolExecutor(8) as pool:
        for (status, text), begin in zip(pool.map(lambda lora: ask(running, lora), mixes), begins, strict=True):
            assert status == 200 and text.startswith(begin)
