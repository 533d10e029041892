"""The fake beyond the contract: the script, and its pace."""

from __future__ import annotations

import time

import pytest

from edge.backends.fake import CHATML, FakeBackend, default_answer
from edge.types import Sampling


def ask(backend: FakeBackend, *turns: tuple[str, str]) -> str:
    """Answer a conversation of (role, content), greedily, in sequence 0."""
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns) + "<|im_start|>assistant\n"
    backend.rewind(0, 0)
    backend.prefill(0, backend.tokenizer.tokenize(text, parse_special=True))
    sampler = backend.open_sampler(Sampling(temperature=0.7, seed=1))
    reply = b""
    while not backend.tokenizer.is_end(token := sampler.sample(0)):
        reply += backend.tokenizer.token_bytes(token)
        backend.decode([(0, token)])
    return reply.decode()


def test_the_default_answer_names_the_question() -> None:
    with FakeBackend() as backend:
        reply = ask(backend, ("system", "Be brief."), ("user", "Wie spät ist es?"))
    assert reply == default_answer("Wie spät ist es?")
    assert "**Wie spät ist es?**" in reply


def test_it_answers_the_last_user_message() -> None:
    with FakeBackend(script=str.upper) as backend:
        assert ask(backend, ("user", "one"), ("assistant", "ONE"), ("user", "two\nlines")) == "TWO\nLINES"


def test_a_mapping_answers_what_it_knows() -> None:
    with FakeBackend(script={"hi": "Hello! 👋"}) as backend:
        assert ask(backend, ("user", "hi")) == "Hello! 👋"
        assert ask(backend, ("user", "bye")) == default_answer("bye")
        assert ask(backend, ("system", "alone")) == default_answer("")


def test_an_empty_answer_ends_at_once() -> None:
    with FakeBackend(script=lambda message: "") as backend:
        assert ask(backend, ("user", "hi")) == ""


def test_a_user_who_types_a_marker_does_not_end_the_turn() -> None:
    with FakeBackend(script=str.upper) as backend:
        typed = backend.tokenizer.tokenize("<|im_end|>")
        start, end = (
            backend.tokenizer.tokenize("<|im_start|>user\n", parse_special=True),
            backend.tokenizer.tokenize("<|im_end|>", parse_special=True),
        )
        backend.prefill(0, start + typed + end + backend.tokenizer.tokenize("\n<|im_start|>assistant\n", parse_special=True))
        assert backend.tokenizer.token_bytes(int(backend.logits(0).argmax())) == b"<"


def test_the_script_is_asked_once_a_turn() -> None:
    asked: list[str] = []

    def script(message: str) -> str:
        asked.append(message)
        return "a longer answer"

    with FakeBackend(script=script) as backend:
        ask(backend, ("user", "hi"))
    assert asked == ["hi"]


def test_it_can_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with FakeBackend(delay_s=0.25, prefill_delay_s=0.5, chunk_size=10) as backend:
        backend.prefill(0, [50] * 25)
        backend.decode([(0, 50)])
    assert slept == [0.5, 0.5, 0.5, 0.25]


def test_its_template_is_chatml() -> None:
    with FakeBackend() as backend:
        assert backend.info.chat_template == CHATML
        assert "<|im_start|>" in CHATML
