"""OpenAI's protocol, asked by OpenAI's own client in its strict mode."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from edge.backends.fake import default_answer
from tests.serving import Serving, serving

HI: Any = [{"role": "user", "content": "hi there"}]


def test_a_chat_completion_has_text_reason_and_usage(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HI, temperature=0)
    assert reply.object == "chat.completion"
    assert reply.model == "tiny"
    choice = reply.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", default_answer("hi there"))
    assert choice.finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(default_answer("hi there"))
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_the_same_prompt_again_is_counted_as_cached(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "count what is cached"}]
    first = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
    again = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
    assert first.usage and again.usage and first.usage.prompt_tokens_details and again.usage.prompt_tokens_details
    assert first.usage.prompt_tokens == again.usage.prompt_tokens
    assert isinstance(first.usage.prompt_tokens_details.cached_tokens, int)
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


def test_a_stream_has_role_text_reason_usage_and_end_in_this_order(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=HI, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    first, *middle, last, usage = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in middle) == default_answer("hi there")
    assert all(chunk.choices[0].delta.role is None and chunk.choices[0].finish_reason is None for chunk in middle)
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].delta.model_dump(exclude_unset=True) == {}
    assert usage.choices == []
    assert usage.usage is not None and usage.usage.completion_tokens == len(default_answer("hi there"))
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_without_the_option_has_no_usage(running: Serving) -> None:
    status, headers, body = running.post("/v1/chat/completions", {"messages": HI, "stream": True, "max_tokens": 2})
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-accel-buffering"] == "no"
    assert b"usage" not in body
    assert body.endswith(b"data: [DONE]\n\n")


def test_streamed_or_not_is_the_same_text(client: OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=HI, temperature=0) as stream:
        streamed = stream.get_final_completion().choices[0].message.content
    whole = client.chat.completions.create(model="tiny", messages=HI, temperature=0).choices[0].message.content
    assert streamed == whole


async def test_the_async_client(running: Serving) -> None:
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", _strict_response_validation=True) as client:
        reply = await client.chat.completions.create(model="tiny", messages=HI, temperature=0)
        assert reply.choices[0].message.content == default_answer("hi there")
        stream = await client.chat.completions.create(model="tiny", messages=HI, temperature=0, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == default_answer("hi there")


def test_max_tokens_in_both_spellings_ends_as_length(client: OpenAI) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        reply = client.chat.completions.create(model="tiny", messages=HI, **limit)  # type: ignore[call-overload]
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage.completion_tokens == 3


def test_a_stop_text_is_not_part_of_the_reply(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HI, temperature=0, stop=["- words"])
    assert reply.choices[0].message.content == default_answer("hi there").partition("- words")[0]
    assert reply.choices[0].finish_reason == "stop"


def test_content_parts_are_joined_and_roles_understood(client: OpenAI) -> None:
    messages: Any = [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "in"}, {"type": "text", "text": "parts"}]},
    ]
    reply = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert reply.choices[0].message.content == default_answer("in\nparts")


def test_an_assistant_without_content_is_taken(client: OpenAI) -> None:
    messages: Any = [*HI, {"role": "assistant", "content": None}, {"role": "user", "content": "go on"}]
    reply = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert reply.choices[0].message.content == default_answer("go on")


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}, "pictures"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "audio"),
        ({"type": "file", "file": {"file_id": "x"}}, "files"),
    ],
)
def test_what_the_model_cannot_read_is_refused_by_name(client: OpenAI, part: Any, what: str) -> None:
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "look"}, part]}]
    with pytest.raises(openai.BadRequestError, match=what) as caught:
        client.chat.completions.create(model="tiny", messages=messages)
    assert caught.value.param == "messages[0].content[1]"


def test_an_unknown_model_is_404_with_the_names_of_the_known(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny, other") as caught:
        client.chat.completions.create(model="gpt-9", messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_another_model_is_loaded_when_it_is_asked_for(client: OpenAI, running: Serving) -> None:
    reply = client.chat.completions.create(model="other", messages=HI, max_tokens=1)
    assert reply.model == "other"
    assert "other" in running.backends


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_400_with_both_numbers(client: OpenAI, stream: bool) -> None:
    messages: Any = [{"role": "user", "content": "x" * 2000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=messages, stream=stream)
    error: Any = caught.value.body
    assert caught.value.code == "context_length_exceeded"
    assert error["n_ctx"] == 1024
    assert error["n_prompt_tokens"] > 2000


def test_a_prompt_that_just_fits_is_answered(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 950}])
    assert reply.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, None),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tool_choice": True}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": []}, "tool_choice"),
    ],
)
def test_a_wrong_value_is_400_and_named(running: Serving, fields: dict[str, Any], param: str | None) -> None:
    status, _, body = running.post("/v1/chat/completions", {"messages": HI, **fields})
    if "logit_bias" not in fields:  # the vocabulary is looked at when tokens are chosen
        assert running.post("/v1/chat/completions/input_tokens", {"messages": HI, **fields})[0] == 400
    assert status == 400, body
    assert body["error"]["type"] == "invalid_request_error"
    if param is not None:
        assert body["error"]["param"] == param, body


def test_fields_that_nobody_reads_are_named(running: Serving) -> None:
    body = {"messages": HI, "max_tokens": 1, "mirostat": 2, "user": "me", "another": None, "bad name": 1}
    status, headers, _ = running.post("/v1/chat/completions", body)
    assert status == 200
    assert headers["x-edge-ignored"] == "mirostat"


def test_logprobs_are_those_of_the_tokens_streamed_or_not(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=HI, temperature=0, max_tokens=5, logprobs=True, top_logprobs=2
    )
    found = reply.choices[0].logprobs
    assert found is not None and found.content is not None
    assert "".join(token.token for token in found.content) == reply.choices[0].message.content
    for token in found.content:
        assert token.bytes == list(token.token.encode())
        assert len(token.top_logprobs) == 2
        assert token.logprob == token.top_logprobs[0].logprob <= 0
    stream = client.chat.completions.create(
        model="tiny", messages=HI, temperature=0, max_tokens=5, logprobs=True, top_logprobs=2, stream=True
    )
    streamed = [token for chunk in stream if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content or []]
    assert streamed == found.content
    without = client.chat.completions.create(model="tiny", messages=HI, max_tokens=1)
    assert without.choices[0].logprobs is None


def test_several_choices_share_their_prompt(client: OpenAI) -> None:
    ask: Any = {"model": "tiny", "messages": [{"role": "user", "content": "three times"}], "n": 3, "max_tokens": 4}
    reply = client.chat.completions.create(**ask)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert {choice.message.content for choice in reply.choices} == {"You "}
    one = client.chat.completions.create(**{**ask, "n": 1})
    assert reply.usage is not None and one.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (one.usage.prompt_tokens, 12)
    texts = ["", "", ""]
    reasons: list[str | None] = [None] * 3
    for chunk in client.chat.completions.create(**ask, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert (texts, reasons) == (["You "] * 3, ["length"] * 3)


def test_a_completion_has_logprobs(client: OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt="Once", max_tokens=3, temperature=0, logprobs=2, echo=True)
    found = reply.choices[0].logprobs
    assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs and found.text_offset
    assert (len(found.tokens), len(found.token_logprobs), found.text_offset[0]) == (3, 3, len("Once"))
    assert all(1 <= len(top) <= 3 for top in found.top_logprobs)  # parts of characters look the same
    none = client.completions.create(model="tiny", prompt="Once", max_tokens=1, logprobs=0).choices[0].logprobs
    assert none is not None and none.tokens and none.token_logprobs  # the token itself is always there
    assert none.top_logprobs == [{none.tokens[0]: none.token_logprobs[0]}]


def test_a_completion_continues_a_text(client: OpenAI, running: Serving) -> None:
    reply = client.completions.create(model="tiny", prompt="Once upon", max_tokens=4, seed=1, temperature=0)
    assert reply.object == "text_completion"
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None and reply.usage.completion_tokens == 4
    echo = client.completions.create(model="tiny", prompt="Once upon", max_tokens=4, seed=1, temperature=0, echo=True)
    assert echo.choices[0].text == "Once upon" + reply.choices[0].text
    # The types of the client have no null here, which OpenAI's own server sends.
    lenient = OpenAI(base_url=f"{running.url}/v1", api_key="none")
    stream = lenient.completions.create(model="tiny", prompt="Once upon", max_tokens=4, seed=1, temperature=0, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == reply.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "fields",
    [{"suffix": "x"}, {"best_of": 2}, {"n": 2}, {"prompt": ""}, {"prompt": ["a", "b"]}, {"prompt": [1]}, {"logprobs": 21}],
)
def test_a_completion_refuses_what_it_cannot_do(running: Serving, fields: dict[str, Any]) -> None:
    status, _, body = running.post("/v1/completions", {"prompt": "a", **fields})
    assert (status, body["error"]["param"]) == (400, next(iter(fields)))


def test_models_are_listed_and_shown(client: OpenAI, running: Serving) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["tiny", "other"]
    assert client.models.retrieve("other").id == "other"
    assert running.ask("GET", "/v1/models/")[2]["object"] == "list"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_texts_become_tokens_and_texts_again(running: Serving) -> None:
    _, _, body = running.post("/tokenize", {"content": "h\N{LATIN SMALL LETTER E WITH ACUTE}", "with_pieces": False})
    assert body["tokens"] == list("h\N{LATIN SMALL LETTER E WITH ACUTE}".encode())
    assert running.post("/detokenize", {"tokens": body["tokens"]})[2]["content"] == "h\N{LATIN SMALL LETTER E WITH ACUTE}"
    assert running.post("/tokenize", {"content": "<|im_end|>"})[2]["count"] > 1
    assert running.post("/tokenize", {"content": "<|im_end|>", "parse_special": True})[2]["tokens"] == [257]
    assert running.post("/detokenize", {"tokens": [9999]})[0] == 400
    assert running.post("/tokenize", {})[0] == 400


def test_a_server_wide_limit_holds_where_a_request_gives_none() -> None:
    from edge.types import Sampling

    with serving(settings={"sampling": Sampling(max_tokens=2)}) as server:
        _, _, body = server.post("/v1/chat/completions", {"messages": HI})
        assert body["usage"]["completion_tokens"] == 2
