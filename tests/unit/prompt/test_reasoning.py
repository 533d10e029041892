"""Thoughts and answers, told apart however a reply is split."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.prompt.reasoning import Thinking, Thought, choose_thinking
from edge.prompt.reply_parser import ReplyParser
from edge.prompt.tools.hermes import HERMES
from edge.types import Tool, ToolCall

FOLDER = Path(__file__).parents[2] / "fixtures" / "templates"
THINK = Thinking("<think>", "</think>")
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def parse(pieces, *, is_open=False, format=None):
    parser = ReplyParser(THINK, is_open=is_open, format=format, tools=[Tool("now")])
    parts = []
    for part in [part for piece in pieces for part in parser.feed(piece)] + parser.end():
        if isinstance(part, ToolCall):
            part = ToolCall(part.name, part.arguments)
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        elif isinstance(part, Thought) and parts and isinstance(parts[-1], Thought):
            parts[-1] = Thought(parts[-1].text + part.text)
        else:
            parts.append(part)
    return parts


SAMPLES = [
    (False, "<think>\nA greeting.\n\nSo?\n</think>\n\nHello!\n", [Thought("A greeting.\n\nSo?"), "Hello!\n"]),
    (True, "\nA greeting.\n</think>\n\nHello!", [Thought("A greeting."), "Hello!"]),
    (False, "\n<think>\n\n</think>\n\nHello!", ["Hello!"]),
    (False, "Hello <think>no</think>", ["Hello <think>no</think>"]),
    (False, "<thin", ["<thin"]),
    (False, "  \n", ["  \n"]),
    (False, "<think>It never ends </thin", [Thought("It never ends </thin")]),
    (True, "a</think>", [Thought("a")]),
    (True, "a </think> <think>b</think>", [Thought("a"), "<think>b</think>"]),
    (True, "", []),
    (False, "", []),
]


@pytest.mark.parametrize(("is_open", "text", "expected"), SAMPLES)
def test_thoughts_are_told_apart_however_the_text_is_split(is_open, text, expected):
    assert parse([text], is_open=is_open) == expected
    assert parse(list(text), is_open=is_open) == expected
    for cut in range(len(text)):
        assert parse([text[:cut], text[cut:]], is_open=is_open) == expected


def test_calls_in_thoughts_are_thoughts():
    text = f"<think>I could {CALL}</think>\nI do.\n{CALL}"
    expected = [Thought(f"I could {CALL}"), "I do.", ToolCall("now")]
    for cut in range(len(text)):
        assert parse([text[:cut], text[cut:]], format=HERMES) == expected


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(["<think>", "</think>", "<th", "ink>", "\n", " ", "a", CALL, "<tool_call>", "</"]), max_size=8
    ),
    cuts=st.lists(st.integers(0, 60), max_size=3),
    is_open=st.booleans(),
)
def test_any_text_gives_the_same_parts_however_it_is_split(words, cuts, is_open):
    text = "".join(words)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in zip(places, places[1:], strict=False)]  # noqa: RUF007 (of one place there is no pair)
    whole = parse([text], is_open=is_open, format=HERMES)
    assert parse(pieces, is_open=is_open, format=HERMES) == parse(list(text), is_open=is_open, format=HERMES) == whole


def test_a_template_tells_the_words():
    found = {path.stem: choose_thinking(path.read_text("utf-8")) for path in FOLDER.glob("*.jinja")}
    assert {name for name, words in found.items() if words == THINK} == {
        "deepseek_r1_distill", "deepseek_v3", "glm4", "granite3_3", "lfm2_5", "phi4", "qwen3", "qwen3_5", "smollm3",
    }  # fmt: skip
    assert found["gemma4"] == Thinking("<|channel>thought", "<channel|>")
    assert found["ministral3_reasoning"] == Thinking("[THINK]", "[/THINK]")
    assert found["gemma3"] is None
