"""Tool calls that are held to their schemas once they begin, in replies that are otherwise free."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

import edge
from edge import Tool
from edge.assistant import Assistant
from edge.backends.fake import CHATML, FakeBackend, FakeTokenizer
from edge.constraint import Constraint
from edge.errors import ConstraintError
from edge.prompt.tools.forced import held_call
from edge.prompt.tools.hermes import HERMES, QWEN_XML
from edge.structured.compiler import Compiler
from edge.structured.triggered import TriggeredMatcher, Watch
from edge.types import Sampling

QWEN = (Path(__file__).parents[2] / "fixtures" / "templates" / "qwen3.jinja").read_text("utf-8")
OPEN, THOUGHT = re.compile(b"<tool_call>"), (b"<think>", b"</think>")
LIGHT = Tool(
    "light",
    "Switch a light",
    {"properties": {"room": {"enum": ["hall", "attic"]}, "on": {"type": "boolean"}}, "required": ["room", "on"]},
)
CLOCK = Tool("clock")


def begin(*tools: Tool) -> tuple[TriggeredMatcher, FakeTokenizer]:
    tokenizer = FakeTokenizer()
    held = held_call(HERMES, tools, lambda word: None)
    assert held is not None
    compiled = Compiler(tokenizer).compile(Constraint.lark(held.grammar))
    watch = Watch(re.compile(held.opening.encode()), held.longest, held.is_first, THOUGHT)
    return TriggeredMatcher(watch, compiled.matcher_behind, tokenizer), tokenizer


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (b"Hello <tool_call>\n{", b"\n{"),
        (b"<tool_call>", b""),
        (b"a <tool_cal l> <tool_call", None),
        (b"<think> <tool_call> </think> no", None),
        (b"<think> <tool_call> </think> yes <tool_call>x", b"x"),
        (b"</think> <tool_call>", b""),
        (b"<<tool_call>", b""),
    ],
)
def test_the_opening_word_is_found_however_the_text_is_split(text: bytes, rest: bytes | None) -> None:
    for cuts in itertools.chain.from_iterable(itertools.combinations(range(1, len(text)), n) for n in (0, 1, 2)):
        watch, found = Watch(OPEN, 11, thought=THOUGHT), None
        pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
        for number, piece in enumerate(pieces):
            found = watch.feed(piece)
            if found is not None:
                found += b"".join(pieces[number + 1 :])
                break
        assert found == rest, pieces


def test_a_reply_that_begins_in_a_thought_opens_no_call_there() -> None:
    watch = Watch(OPEN, 11, thought=THOUGHT, is_thinking=True)
    assert watch.feed(b"<tool_call>") is None
    assert watch.feed(b"</think><tool_call>\n") == b"\n"


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_chosen_a_call_is_valid_and_free_text_follows(seed: int) -> None:
    matcher, tokenizer = begin(LIGHT, CLOCK)
    chance, text = random.Random(seed), b""
    for token in tokenizer.tokenize("Well: {}<tool_call"):
        assert matcher.allowed() is None and matcher.is_complete and not matcher.forced()
        matcher.accept(token)
    matcher.accept(ord(">"))
    while (mask := matcher.allowed()) is not None:
        assert not matcher.is_complete and not matcher.is_over
        choices = [int(token) for token in np.flatnonzero(mask)]
        token = chance.choice([one for one in choices if one in b'"}'] or choices)  # so that strings and objects end soon
        assert matcher.n_valid([token]) == 1
        matcher.accept(token)
        text += bytes([token])
    assert text.endswith(b"</tool_call>")
    call = json.loads(text.removesuffix(b"</tool_call>"))
    assert call["name"] in ("light", "clock")
    assert call["name"] == "clock" or call["arguments"].keys() == {"room", "on"}
    if call["name"] == "light":
        assert call["arguments"]["room"] in ("hall", "attic") and isinstance(call["arguments"]["on"], bool)
    for token in tokenizer.tokenize(" and <tool_call>"):
        assert matcher.allowed() is None
        matcher.accept(token)
    assert matcher.allowed() is not None, "the next call is held as well"


def test_drafts_are_checked_up_to_a_call_and_in_it() -> None:
    matcher, tokenizer = begin(LIGHT)
    assert matcher.n_valid(tokenizer.tokenize("free <tool_call>nonsense")) == len("free <tool_call>")
    matcher.resume(tokenizer.tokenize("free <tool_call>\n"))
    assert matcher.n_valid(tokenizer.tokenize('{"name": "light", "argument":')) == len('{"name": "light", "argument')
    assert bytes(matcher.forced()) == b'{"name": "light", "arguments": {"room": "'
    with pytest.raises(ConstraintError):
        matcher.accept(ord("x"))


def test_a_reply_that_went_another_way_is_left_alone() -> None:
    """Such as one that was stopped in a call and goes on."""
    matcher, tokenizer = begin(LIGHT)
    matcher.resume(tokenizer.tokenize("<tool_call>nonsense"))
    assert matcher.allowed() is None
    matcher.accept(ord("x"))


def test_formats_that_models_write_in_more_than_one_way_are_not_held() -> None:
    assert held_call(QWEN_XML, (LIGHT,), lambda word: None) is None


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("template", [QWEN, CHATML])
def test_a_call_that_a_model_would_get_wrong_is_right(template: str, drafts: bool) -> None:
    said = 'I do.\n<tool_call>\n{"name": "lights", "arguments": {"room": "cellar", "lamp": 7}}\n</tool_call>'
    backend = FakeBackend(script={"Go": said, "Hi": "Hello {you}."}, chat_template=template, n_ctx=16384, drafts=drafts)
    with Assistant(backend) as ai:
        options = {"tools": [LIGHT], "tool_format": "prompt", "max_tokens": 300}
        for seed in range(3):
            reply = ai.generate("Go", Sampling(temperature=0.0 if not seed else 2.0, seed=seed or None), **options)
            reply.wait()
            (call, *_) = reply.tool_calls
            assert reply.text.startswith("I do.")
            assert call.name == "light"
            assert call.arguments["room"] in ("hall", "attic") and isinstance(call.arguments["on"], bool)
        assert ai.generate("Hi", temperature=0, **options).wait() == "Hello {you}.", "free text is as it was"


def test_a_schema_that_cannot_be_compiled_leaves_the_call_free() -> None:
    odd = edge.Tool("odd", "", {"properties": {"a": {"type": "string", "pattern": "(?=x)"}}})
    backend = FakeBackend(
        script={"Go": '<tool_call>\n{"name": "odd", "arguments": {"a": "b"}}\n</tool_call>'}, chat_template=QWEN, n_ctx=16384
    )
    with Assistant(backend) as ai:
        reply = ai.generate("Go", tools=[odd], temperature=0)
        reply.wait()
        assert [call.arguments for call in reply.tool_calls] == [{"a": "b"}]
