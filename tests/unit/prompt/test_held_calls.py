"""What a call is held to once a model has begun it: all that models are known to write, and nothing that cannot be read."""

from __future__ import annotations

import random
import re

import jsonschema_rs
import numpy as np
import pytest

from edge import Tool, ToolCall
from edge.backends.fake import FakeTokenizer
from edge.constraint import Constraint
from edge.prompt.tokenizers import Token
from edge.prompt.tools.base import CallParser, Format
from edge.prompt.tools.forced import grammar_of_call, held_call
from edge.prompt.tools.lfm2 import read_python
from edge.structured.compiler import Compiler
from edge.structured.triggered import TriggeredMatcher, Watch
from tests.tool_samples import BY_NAME, SAMPLES, TOOLS

HELD = [name for name, format in BY_NAME.items() if format.hold is not None]

AGAINST_THE_FORMAT = {
    '"arguments": "{': "the object as text",
    '"a\nb"': "a line break within JSON",
    '[{"name": "now"}, {"name": "weather", "arguments": {"city": "Paris"}}]</tool_call>': "a list where one call belongs",
    "{not json": "no call",
    "(2.5,)": "a tuple, which JSON has not",
    'city:"Paris"': "JSON's quotes",
}
"""What samples have that models write by mistake. It is read where nothing is enforced, and cannot be written otherwise."""


class Marked(FakeTokenizer):
    """UTF-8 bytes, and the markers of a format as special tokens."""

    def __init__(self, format: Format) -> None:
        super().__init__()
        words = [word for word in format.markers if not word.isalpha() and len(word) > 1]
        self.specials = {word: self.n_vocab + number for number, word in enumerate(words)}
        self._words = {token: word for word, token in self.specials.items()}
        self.n_vocab += len(words)

    def _look_up(self, token: int) -> Token:
        return Token(b"", self._words[token].encode(), False) if token in self._words else super()._look_up(token)

    def split(self, text: str) -> list[int]:
        """Return the tokens of a reply, markers as special tokens."""
        if not self.specials:
            return self.tokenize(text)
        tokens: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, self.specials))})", text):
            tokens += [self.specials[part]] if part in self.specials else self.tokenize(part)
        return tokens


def hold(format: Format, tools: list[Tool], tokenizer: Marked) -> TriggeredMatcher:
    held = held_call(format, tools, tokenizer.specials.get)
    assert held is not None
    compiled = Compiler(tokenizer).compile(Constraint.lark(held.grammar))
    watch = Watch(re.compile(held.opening.encode()), held.longest, held.is_first)
    return TriggeredMatcher(watch, compiled.matcher_behind, tokenizer)


def unmarked(format: Format) -> Marked:
    tokenizer = Marked(format)
    tokenizer.specials = {}
    return tokenizer


def refused(matcher: TriggeredMatcher, tokens: list[int]) -> int | None:
    """Return the place of the first token that may not come."""
    for place, token in enumerate(tokens):
        mask = matcher.allowed()
        if mask is not None and not mask[token]:
            return place
        matcher.accept(token)
    return None


@pytest.mark.parametrize("make", [Marked, unmarked])
@pytest.mark.parametrize(("name", "text", "expected"), [(name, *sample) for name in HELD for sample in SAMPLES[name]])
def test_what_models_write_may_be_written(name, text, expected, make):
    tokenizer = make(BY_NAME[name])
    if make is Marked and any(word in str(part) for part in expected for word in BY_NAME[name].markers if len(word) > 1):
        pytest.skip("a text that spells a special token is written in letters")
    place = refused(hold(BY_NAME[name], TOOLS, tokenizer), tokenizer.split(text))
    mistakes = [mistake for mistake in AGAINST_THE_FORMAT if mistake in text]
    if place is not None:
        assert mistakes, text.encode()[:place]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llama3", '{"name": "Ada", "parameters": {"age": 36}}'),
        ("llama3", '{"answer": 42}'),
        ("llama3", 'Here: {"name": "weather", "no": 1}'),
        ("llama3", "<|python_tag|>print('hi')"),
        ("phi4-mini", "functools.cache and functools[0] are not the same"),
        ("phi4-mini", "Python's functools[{...}]"),
        ("mistral", "A list: [1, {}]"),
        ("granite3", "<|tool> [x]"),
    ],
)
def test_text_that_is_no_call_is_free(name, text):
    tokenizer = Marked(BY_NAME[name])
    assert refused(hold(BY_NAME[name], TOOLS, tokenizer), tokenizer.split(text)) is None


def random_schema(chance: random.Random, depth: int = 0) -> dict:
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "several"] + ["array", "object"] * (depth < 2)
    kind = chance.choice(kinds)
    if kind == "enum":
        values = ["a", "b, {c}", "d'e\"", "ü\n", 3, 2.5, True, None]
        return {"enum": chance.sample(values, chance.randint(1, len(values)))}
    if kind == "const":
        return {"const": chance.choice(["only", 7, False])}
    if kind == "several":
        return {"anyOf": [random_schema(chance, depth + 1), random_schema(chance, depth + 1)]}
    if kind == "array":
        return {"type": "array", "items": random_schema(chance, depth + 1)}
    if kind == "object":
        return random_object(chance, depth + 1)
    return {"type": kind}


NAMES = ["city", "days", "from", "max_n", "Unit", "x", "note", "k2", "of"]


def random_object(chance: random.Random, depth: int = 0) -> dict:
    names = chance.sample(NAMES, chance.choice([0, 1, 2, 3, 8]))
    schema: dict = {
        "type": "object",
        "properties": {name: random_schema(chance, depth) for name in names},
        "required": [name for name in names if chance.random() < 0.6],
    }
    if names and chance.random() < 0.3:
        schema["additionalProperties"] = chance.choice([True, {"type": "integer"}])
    return schema


def write_randomly(matcher, tokenizer: Marked, chance: random.Random, ends: tuple[str, ...]) -> list[int]:
    """Return tokens that are chosen by chance among those that may come, so that texts and lists end soon."""
    tokens: list[int] = []
    keys = [way.format(name) for name in NAMES for way in ("{}:", "{}=", '"{}": ')]
    closers = [tokenizer.split(text) for text in (*ends, '"', "'", "}", "]", ")", ":", "=", *keys)]
    while not matcher.is_over and (mask := matcher.allowed()) is not None:
        choices = [int(token) for token in np.flatnonzero(mask) if not tokenizer.is_end(int(token))]
        if not choices:
            break
        if tokens and chr(tokens[-1]) in "0123456789":
            choices = [token for token in choices if token not in map(ord, "eE")] or choices  # no number is out of range
        found = [closer for closer in closers if matcher.n_valid(closer) == len(closer)]
        plain = [token for token in choices if chr(token).isalnum() or token in map(ord, " \\_,")]
        is_soon = chance.random() < 0.3 + len(tokens) / 300
        new = chance.choice(found[: chance.choice((2, 99))]) if found and is_soon else [chance.choice(plain or choices)]
        assert len(tokens) < 5000, text_of(tokenizer, tokens)
        tokens += new
        for token in new:
            matcher.accept(token)
    return tokens


def text_of(tokenizer: Marked, tokens: list[int]) -> str:
    return b"".join(tokenizer.token_bytes(token, special=True) for token in tokens).decode("utf-8", "replace")


def check(format: Format, tools: list[Tool], text: str) -> None:
    parser = CallParser(format, tools)
    parts = parser.feed(text) + parser.end()
    assert parts and all(isinstance(part, ToolCall) for part in parts), (text, parts)
    by_name = {tool.name: tool for tool in tools}
    for call in parts:
        jsonschema_rs.validate(by_name[call.name].parameters, call.arguments)


def starts(format: Format) -> list[str]:
    return {
        "llama3": ['{"name": "get-it"', '<|python_tag|>{"type'],
        "phi4-mini": ["functools[{", "<|tool_call|>"],
        "mistral": ["[TOOL_CALLS]", "[TOOL_CALLS]["],
    }.get(format.name, list(format.opens))


@pytest.mark.parametrize("make", [Marked, unmarked])
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", HELD)
def test_whatever_is_chosen_can_be_read_and_keeps_the_schema(name, seed, make):
    chance, format = random.Random(seed), BY_NAME[name]
    tools = [Tool("get-it", "", random_object(chance)), Tool("a.b", "", random_object(chance))]
    tokenizer = make(format)
    for start in starts(format):
        matcher = hold(format, tools, tokenizer)
        begun = tokenizer.split(start)
        assert refused(matcher, begun) is None
        assert matcher.allowed() is not None, "a call is held"
        tokens = write_randomly(matcher, tokenizer, chance, format.closes)
        check(format, tools, text_of(tokenizer, [*begun, *tokens]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["lfm2", "functiongemma", "gemma4"])
def test_a_call_that_has_to_be_made_is_one_in_the_models_own_notation(name, seed):
    chance, format = random.Random(seed), BY_NAME[name]
    tools, tokenizer = [Tool("get-it", "", random_object(chance))], Marked(format)
    grammar = grammar_of_call(format, tools, tokenizer.specials.get)
    assert grammar is not None
    matcher = Compiler(tokenizer).compile(Constraint.lark(grammar)).matcher()
    tokens = write_randomly(matcher, tokenizer, chance, format.closes)
    text = text_of(tokenizer, tokens)
    assert text.startswith(format.opens[0])
    check(format, tools, text)
    assert text.count("get-it") == 1 or "get-it" in str(tools[0].parameters)


def test_references_are_followed_into_the_schema_of_the_tool():
    point = {"type": "object", "properties": {"x": {"type": "integer"}, "next": {"$ref": "#/$defs/P"}}, "required": ["x"]}
    tool = Tool("go", "", {"properties": {"to": {"$ref": "#/$defs/P"}}, "required": ["to"], "$defs": {"P": point}})
    for name, good, bad in [
        ("lfm2", '[go(to={"x": 1, "next": {"x": 2}})]', '[go(to={"x": "'),
        ("gemma4", "call:go{to:{x:1,next:{x:2}}}", "call:go{to:{x:<"),
    ]:
        tokenizer = Marked(BY_NAME[name])
        for text, is_right in ((good, True), (bad, False)):
            matcher = hold(BY_NAME[name], [tool], tokenizer)
            assert (refused(matcher, tokenizer.split(BY_NAME[name].opens[0] + text)) is None) == is_right


def test_names_that_python_has_not_are_read():
    code = 'get-time(from="Bern=", max-n=2, a="class=1 in-out("), x.y-z(class={"if": [1]})'
    calls = read_python(f"[{code}]")
    assert calls == [
        ToolCall("get-time", {"from": "Bern=", "max-n": 2, "a": "class=1 in-out("}),
        ToolCall("x.y-z", {"class": {"if": [1]}}),
    ]


def test_many_tools_compile_soon_enough():
    properties = {f"p{number}": {"type": "string"} for number in range(6)}
    tools = [Tool(f"tool{number}", "", {"properties": properties, "required": ["p0"]}) for number in range(30)]
    for name in HELD:
        tokenizer = Marked(BY_NAME[name])
        assert hold(BY_NAME[name], tools, tokenizer) is not None
