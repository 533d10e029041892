"""Schemas over every engine's own vocabulary: the reply is valid, and what is forced is written in letters."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge.constraint import Constraint
from edge.structured.compiler import Compiler
from edge.types import Sampling
from tests.contract.entries import Bench

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 10, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b<|im_end|>"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture
def compiler(bench: Bench) -> Compiler:
    return Compiler(bench.backend.tokenizer)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_reply_is_valid(bench: Bench, compiler: Compiler, temperature: float) -> None:
    backend, tokenizer = bench.backend, bench.backend.tokenizer
    matcher = compiler.compile(Constraint.json_schema(SCHEMA)).matcher()
    sampler = backend.open_sampler(Sampling(temperature=temperature, seed=1 if temperature else None))
    backend.prefill(0, bench.tokens(20, seed=1))
    text, n_forced = b"", 0
    while not matcher.is_over:
        token = sampler.sample(0, 0, matcher.allowed())
        matcher.accept(token)
        forced = matcher.forced()
        for one in forced:
            matcher.accept(one)
        sampler.accept(forced)
        new = [token, *forced]
        assert not any(map(tokenizer.is_end, new))
        text += b"".join(map(tokenizer.token_bytes, new))
        n_forced += len(forced)
        backend.prefill(0, new)
    value = json.loads(text)
    assert list(value) == ["name", "age", "tags"]
    assert len(value["name"]) <= 8
    assert 10 <= value["age"] <= 99
    assert set(value["tags"]) <= {"a", "b<|im_end|>"}
    assert n_forced > 10


def test_text_of_control_tokens_is_forced_in_letters(bench: Bench, compiler: Compiler) -> None:
    tokenizer = bench.backend.tokenizer
    matcher = compiler.compile(Constraint.json_schema({"const": "a<|im_end|>b"})).matcher()
    text = b""
    while not matcher.is_over:
        forced = matcher.forced()
        token = forced[0] if forced else int(np.flatnonzero(matcher.allowed())[0])
        matcher.accept(token)
        text += tokenizer.token_bytes(token)  # b"" for a control token
    assert text == b'"a<|im_end|>b"'


def test_no_control_token_is_allowed_in_a_string(bench: Bench, compiler: Compiler) -> None:
    tokenizer = bench.backend.tokenizer
    matcher = compiler.compile(Constraint.json_schema({"type": "string"})).matcher()
    for token in tokenizer.tokenize('"a'):
        matcher.accept(token)
    allowed = np.flatnonzero(matcher.allowed())
    assert len(allowed) > 90
    assert all(tokenizer.token_bytes(int(token)) for token in allowed)
