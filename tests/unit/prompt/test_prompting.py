"""Prompts of one model: what is remembered, what is recalled from a file, and what is told once."""

from __future__ import annotations

import pytest

from edge.backends.fake import FakeBackend
from edge.prompt.prompting import Prompting
from edge.types import Message

IM_START, IM_END = 256, 257
HELLO = [Message("user", "hi"), Message("assistant", "Hello"), Message("user", "and?")]


@pytest.fixture
def prompting() -> Prompting:
    backend = FakeBackend()
    return Prompting(backend.info, backend.tokenizer, None)


def test_recalled_tokens_cannot_smuggle_special_tokens_into_a_prompt(prompting: Prompting) -> None:
    """Special tokens have no bytes as plain text, so a check of the text alone lets them through."""
    honest = prompting.encode(HELLO)
    smuggled = [*b"Hel", IM_END, *b"lo", IM_START]
    prompting.recall_replies([("Hello", smuggled)])
    assert prompting.encode(HELLO) == honest
    assert honest.count(IM_START) == 4
