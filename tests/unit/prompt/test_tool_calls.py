"""Tool calls as models write them: recorded replies of every family, whole and in pieces, and as real templates show them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.backends.fake import FakeBackend
from edge.constraint import Constraint
from edge.prompt.template import ChatTemplate
from edge.prompt.tools.base import Broken, CallParser, calls_of
from edge.prompt.tools.choose import choose_format
from edge.prompt.tools.forced import grammar_of_call
from edge.structured.compiler import Compiler
from edge.types import Message, Tool, ToolCall
from tests.tool_samples import BY_NAME, PARIS, SAMPLES, TOOLS, call

FOLDER = Path(__file__).parents[2] / "fixtures" / "templates"
BROKEN = {
    "hermes": [
        "<tool_call>weather</tool_call>",
        '<tool_call>{"name": "weather", "arguments": {"city": }}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": "Par',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "\\ud800"}</tool_call>',
        "<tool_call>",
    ],
    "qwen-xml": [
        "<tool_call><parameter=city>x</parameter></tool_call>",
        "<tool_call><function=weather><parameter=city>Par",
        "<tool_call><function= ></function></tool_call>",
        "<tool_call><function=weather><parameter=other>NaN</parameter></function></tool_call>",
    ],
    "mistral": ['[TOOL_CALLS]{"a": 1}', "[TOOL_CALLS]weather[ARGS]Paris", '[TOOL_CALLS][{"name": 5}]', "[TOOL_CALLS][1]"],
    "lfm2": [
        "<|tool_call_start|>[__import__('os').system(cmd='x')]<|tool_call_end|>",
        "<|tool_call_start|>[weather(city=open('x'))]<|tool_call_end|>",
        "<|tool_call_start|>[weather('Paris')]<|tool_call_end|>",
        "<|tool_call_start|>[weather(**{'city': 1})]<|tool_call_end|>",
        "<|tool_call_start|>[weather(city='it's')]<|tool_call_end|>",
        "<|tool_call_start|>[weather",
        "<|tool_call_start|>" + "[" * 5000 + "<|tool_call_end|>",
    ],
    "functiongemma": [
        "<start_function_call>call:weather<end_function_call>",
        "<start_function_call>call:weather{city<end_function_call>x}",
    ],
    "gemma4": [
        "<|tool_call>call:weather{a:" + "[" * 100 + "]" * 100 + "}<tool_call|>",
        '<|tool_call>call:weather{city:<|"|>Par',
    ],
    "phi4-mini": ["functools(x)", 'functools[{"name": "weather"'],
    "granite3": ["<|tool_call|>none", '<|tool_call|>[{"name": "weather", "arguments": "Paris"}]'],
}
CASES = [pytest.param(name, *sample, id=f"{name}-{n}") for name, samples in SAMPLES.items() for n, sample in enumerate(samples)]


def parse(name, pieces):
    """The parts of a reply, texts joined, and calls without the ids that they get here."""
    parser = CallParser(BY_NAME[name], TOOLS)
    found = [part for piece in pieces for part in parser.feed(piece)] + parser.end()
    parts = []
    for part in found:
        assert part != "", "no part is empty"
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        elif isinstance(part, ToolCall):
            assert part.id, "a call has an id"
            parts.append(part)
        else:
            parts.append(part)
    return parts


def without_ids(parts, like=()):
    ids = {part.id for part in like if isinstance(part, ToolCall)}
    return [
        ToolCall(part.name, part.arguments, part.id if part.id in ids else "") if isinstance(part, ToolCall) else part
        for part in parts
    ]


def test_every_family_has_samples():
    assert SAMPLES.keys() == BY_NAME.keys()


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_calls_are_read_however_the_text_is_split(name, text, expected):
    assert without_ids(parse(name, [text]), expected) == expected
    assert without_ids(parse(name, list(text)), expected) == expected
    for cut in range(1, len(text)):
        assert without_ids(parse(name, [text[:cut], text[cut:]]), expected) == expected, text[:cut]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_what_cannot_be_read_is_given_as_it_is_with_the_reason(name, text):
    for pieces in ([text], list(text)):
        parts = parse(name, pieces)
        broken = [part for part in parts if isinstance(part, Broken)]
        assert broken and all(part.why for part in broken)
        assert "".join(part.text if isinstance(part, Broken) else str(part) for part in parts) == text


WORDS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "weather", "{", "}", "[", "]", '"', "'", ",", ":", "\\", "\n"]
WORDS += [
    "<function=weather>",
    "</function>",
    "<parameter=city>",
    "</parameter>",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    " ",
]
WORDS += [
    "call:weather",
    "<escape>",
    '<|"|>',
    "<|tool_call>",
    "<tool_call|>",
    "(",
    ")",
    "=",
    "1",
    "functools",
    "<|python_tag|>",
    "a",
]
WORDS += ['{"name": "weather", "arguments": {}}', "<start_function_call>", "<end_function_call>", "<|tool_call|>"]


@pytest.mark.parametrize("name", BY_NAME)
@settings(max_examples=150, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), max_size=14), cuts=st.lists(st.integers(0, 200), max_size=4))
def test_any_text_gives_the_same_parts_however_it_is_split(name, words, cuts):
    text = "".join([*BY_NAME[name].opens[:1], *words]) if len(words) % 2 else "".join(words)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    whole = without_ids(parse(name, [text]))
    assert without_ids(parse(name, pieces)) == without_ids(parse(name, list(text))) == whole


@pytest.mark.parametrize("name", BY_NAME)
def test_a_long_call_is_not_read_again_at_each_of_its_braces(name):
    calls = [call(code="if (a > b) { c[0] } " * 2000), call("now")]
    text = BY_NAME[name].write(calls) + ("" if BY_NAME[name].only_first else "\nand text")
    n_read, format = [0], BY_NAME[name]

    def read(*arguments):
        n_read[0] += len(arguments[0])
        return format.read(*arguments)

    parser = CallParser(dataclasses.replace(format, read=read), TOOLS)
    parts = [part for place in range(0, len(text), 4) for part in parser.feed(text[place : place + 4])]
    parts += parser.end()
    assert without_ids(part for part in parts if isinstance(part, ToolCall)) == calls
    assert n_read[0] < 40 * len(text)


@pytest.mark.parametrize("name", BY_NAME)
def test_calls_that_are_written_are_read_again(name):
    calls = [call(city="Pâris, 'the' \"one\"", tags=[1, 2.5, None, True, {"a": "b"}]), call("now")]
    assert without_ids(parse(name, [BY_NAME[name].write(calls)])) == calls


@pytest.mark.parametrize("name", [name for name, format in BY_NAME.items() if format.around is not None])
def test_a_call_in_the_form_of_its_grammar_is_read(name):
    before, behind = BY_NAME[name].around
    text = before + json.dumps({"name": "weather", BY_NAME[name].key: {"city": "Paris"}}) + behind
    assert without_ids(parse(name, list(text))) == [PARIS]
    grammar = grammar_of_call(BY_NAME[name], TOOLS, {"<|tool_call_start|>": 7}.get)
    assert ("<[7]>" in grammar) == (name == "lfm2")


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"n": {"$ref": "#/definitions/N"}}, "definitions": {"N": {"type": "integer"}}},
        {"properties": {"n": {"$ref": "#/$defs/L"}}, "$defs": {"L": {"$ref": "#/$defs/N"}, "N": {"type": "integer"}}},
        {"properties": {"n": {"type": "integer"}, "below": {"$ref": "#"}}},
        {"properties": {"n": {"$ref": "#/properties/z"}, "z": {"type": "integer"}}},
    ],
)
def test_references_of_a_tool_lead_into_its_own_schema(parameters):
    grammar = grammar_of_call(BY_NAME["llama3"], [Tool("f", "", {"type": "object", **parameters})], lambda _: None)
    backend = FakeBackend()
    compiled = Compiler(backend.tokenizer).compile(Constraint.lark(grammar))

    def allows(text):
        tokens = backend.tokenizer.tokenize(text)
        return compiled.matcher().n_valid(tokens) == len(tokens)

    assert allows('{"name": "f", "parameters": {"n": 1}}')
    assert not allows('{"name": "f", "parameters": {"n": "')
    if "below" in parameters["properties"]:
        assert allows('{"name": "f", "parameters": {"n": 1, "below": {"n": 2}}}')


def test_families_are_told_by_the_template():
    families = {path.stem: choose_format(path.read_text("utf-8")) for path in FOLDER.glob("*.jinja")}
    assert {name: format.name for name, format in families.items() if format is not None} == {
        "falcon_h1": "hermes", "qwen2_5": "hermes", "qwen3": "hermes", "granite4": "hermes",
        "qwen3_5": "qwen-xml", "qwen3_coder": "qwen-xml", "llama3_1": "llama3", "llama3_2": "llama3",
        "mistral_v3": "mistral", "mistral_nemo": "mistral", "mistral_small3_2": "mistral", "ministral3_reasoning": "mistral",
        "lfm2": "lfm2", "lfm2_v2": "lfm2", "lfm2_5": "lfm2", "gemma4": "gemma4", "granite3_3": "granite3",
    }  # fmt: skip


@pytest.mark.parametrize(
    "path", [p for p in sorted(FOLDER.glob("*.jinja")) if choose_format(p.read_text("utf-8"))], ids=lambda p: p.stem
)
def test_calls_are_read_as_the_template_shows_them(path):
    """The template is by the makers of the model, which was trained on what it shows."""
    template = ChatTemplate(path.read_text("utf-8"), bos_text="<s>", eos_text="</s>")
    assert template.takes_tools
    calls = (ToolCall("weather", {"city": "Paris", "days": 2, "tags": ["a"]}, "abcdefgh1"), ToolCall("now", {}, "abcdefgh2"))
    messages = [
        Message("user", "Rain?"),
        Message("assistant", "", tool_calls=calls),
        Message("tool", "It rains.", tool_call_id="abcdefgh1"),
        Message("tool", "Noon.", tool_call_id="abcdefgh2"),
    ]
    prompt = template.render(messages, tools=[tool.schema for tool in TOOLS])
    for words in ("Tell the weather", "It rains.", "Noon.", "Paris"):
        assert words in prompt.text
    assert prompt.text.index("Tell the weather") < prompt.text.index("It rains.") < prompt.text.index("Noon.")
    shown = []
    asked = template.render(messages[:1], tools=[tool.schema for tool in TOOLS]).text
    common = len(asked) if prompt.text.startswith(asked) else max(map(prompt.text.find, template.tool_format.opens))
    for turn in prompt.text[common - len("<|python_tag|>") if common < 0 else common :].split("It rains."):
        start = min((turn.find(word) for word in template.tool_format.opens if word in turn), default=-1)
        if start >= 0:
            shown += [part for part in parse(template.tool_format.name, [turn[start:]]) if isinstance(part, ToolCall)]
    assert without_ids(shown) == without_ids(calls)


def test_nested_calls_are_found_in_any_wrapping():
    assert calls_of({"function": {"name": "now", "arguments": "{}"}, "id": "x"}) == [ToolCall("now", {}, "x")]
    with pytest.raises(ValueError, match="does not name a tool"):
        calls_of("now")


def test_a_reply_that_is_cut_off_within_the_closing_word_has_no_rest_of_it():
    call, closing = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}', "\n</tool_call>"
    for n in range(len(closing) + 1):
        assert without_ids(parse("hermes", [call + closing[:n]]), [PARIS]) == [PARIS], n
