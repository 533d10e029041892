"""Choosing among answers by how likely the model finds each as a whole."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edge import Assistant, Message, Sampling
from edge.backends.fake import FakeBackend
from edge.errors import BackendError, ContextFullError, UsageError
from edge.prompt.template import ChatTemplate

CHOICES = ["yes", "no", "not at all", "perhaps", "n"]


class Undecided(FakeBackend):
    """Its script does not make it certain, so that all answers have a chance."""

    def _scripted_token(self, cells: Any) -> int | None:
        return None

    def _logits_after(self, cells: Any) -> Any:
        values = super()._logits_after(cells)
        values[list(b"yesnotalprh ")] += 4
        return values


@pytest.fixture
def make() -> Iterator[Callable[..., Assistant]]:
    made: list[Assistant] = []

    def build(kind: type[FakeBackend] = Undecided, **options: Any) -> Assistant:
        made.append(Assistant(kind(**options), sampling=Sampling(stop="e", max_tokens=2, logit_bias={ord("n"): 50})))
        return made[-1]

    yield build
    for assistant in made:
        assistant.close()


def by_hand(prompt: str, answer: str) -> float:
    """The probability of an answer, token by token."""
    backend = Undecided()
    tokens = backend.tokenizer.tokenize(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", parse_special=True)
    backend.prefill(0, tokens)
    likely = 1.0
    for token in [*answer.encode(), 257]:
        logits = backend.logits(0).astype(np.float64)
        likely *= math.exp(logits[token]) / np.exp(logits).sum()
        backend.decode([(0, token)])
    return likely


async def test_probabilities_are_those_of_whole_answers(make: Callable[..., Assistant]) -> None:
    assistant = make()
    expected = {answer: by_hand("Really?", answer) for answer in CHOICES}
    total = sum(expected.values())
    chosen = assistant.choose("Really?", CHOICES)
    assert chosen.probabilities == pytest.approx({answer: one / total for answer, one in expected.items()}, rel=1e-4)
    assert list(chosen.probabilities) == CHOICES
    assert chosen.total == pytest.approx(total, rel=1e-4)
    assert chosen.text == str(chosen) == max(expected, key=expected.__getitem__)
    again = await assistant.achoose([Message("user", "Really?")], CHOICES)
    assert again.text == chosen.text
    assert again.probabilities == pytest.approx(chosen.probabilities, rel=1e-6)


def test_what_the_model_would_say_is_chosen(make: Callable[..., Assistant]) -> None:
    assistant = make(FakeBackend, script=lambda message: "no" if "spam" in message else "perhaps")
    chosen = assistant.choose("spam", CHOICES)
    assert chosen.text == "no"
    assert chosen.probabilities["no"] == pytest.approx(1)
    assert chosen.total == pytest.approx(1)
    alone = assistant.choose("spam", ["yes"])
    assert (alone.text, alone.probabilities["yes"]) == ("yes", 1)
    assert alone.total < 1e-6, "it would not say so"


def test_the_prompt_is_prefilled_once(make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch) -> None:
    n_tokens: list[int] = []
    prefill = Undecided.prefill

    def note(self: Undecided, seq_id: int, tokens: Any, **options: Any) -> int:
        n_tokens.append(len(tokens))
        return prefill(self, seq_id, tokens, **options)

    monkeypatch.setattr(Undecided, "prefill", note)
    assistant = make(n_seq=8)
    assistant.choose("x" * 500, CHOICES)
    assert sum(n_tokens) == assistant.count("x" * 500).n_tokens + len(CHOICES) - 1


def test_more_answers_than_sequences(make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [f"{n}" for n in range(20)]
    assistant, n_running = make(n_seq=2), list[int]()
    submit = assistant._scheduler.submit

    def note(generation: Any) -> None:
        n_running.append(len(assistant._turns._running))
        submit(generation)

    monkeypatch.setattr(assistant._scheduler, "submit", note)
    assert list(assistant.choose("hi", choices).probabilities) == choices
    assert len(n_running) == 20
    assert max(n_running) <= 8, "each takes a thread"


def test_an_error_ends_the_choice(make: Callable[..., Assistant]) -> None:
    with pytest.raises(ContextFullError):
        make(n_ctx=256).choose("x" * 1000, CHOICES)
    with pytest.raises(BackendError):
        assistant = make()
        assistant.close()
        assistant.choose("hi", CHOICES)


async def test_it_stops_in_time(make: Callable[..., Assistant]) -> None:
    assistant = make(prefill_delay_s=0.05)
    with pytest.raises(TimeoutError):
        assistant.choose("x" * 3000, CHOICES, timeout_s=0.1)
    with pytest.raises(TimeoutError):
        await assistant.achoose("x" * 3000, CHOICES, timeout_s=0.1)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(assistant.achoose("y" * 3000, CHOICES), 0.05)


@pytest.mark.parametrize("choices", ["yes", b"yes", [], None, 5, [5], [""], ["a", "a"], {"a", "b"}])
def test_answers_that_cannot_be_chosen_from(make: Callable[..., Assistant], choices: Any) -> None:
    with pytest.raises(UsageError) as caught:
        make().choose("hi", choices)
    assert caught.value.hint


@pytest.mark.model
def test_a_real_model_has_a_mind_of_its_own(model_path: Any) -> None:
    import edge

    with edge.load(str(model_path), context=512, threads=1) as assistant:
        chosen = assistant.choose("What is the capital of France? Answer with one word.", ["Paris", "Berlin", "Madrid"])
    assert chosen.text == "Paris"
    assert sum(chosen.probabilities.values()) == pytest.approx(1)


def test_a_model_that_always_thinks_first_is_scored_behind_its_thought(
    make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = make()
    template = assistant._prompting.template
    thinks = ChatTemplate(
        template.source.replace("assistant\n", "assistant\n<think>\n") + "{# </think> #}", eos_text="<|im_end|>"
    )
    assert thinks.thinking is not None
    monkeypatch.setattr(assistant._prompting, "template", thinks)
    prompts: list[str] = []
    submit = assistant._scheduler.submit

    def note(generation: Any) -> None:
        prompts.append(assistant.text_of(generation.tokens))
        submit(generation)

    monkeypatch.setattr(assistant._scheduler, "submit", note)
    assistant.choose("hi", ["yes", "no"])
    assert [prompt.partition("assistant\n")[2] for prompt in prompts] == ["<think>\n\n</think>\n\n"] * 2
