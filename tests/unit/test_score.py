"""How likely given continuations are, token by token, of one prompt and of many."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge import Assistant, Scored
from edge.backends.fake import FakeBackend
from edge.errors import BackendError, ContextFullError, UsageError

CHOICES = ["yes", "no", "not at all", "z"]
ENDS = (257, 258)
"""Tokens of the fake engine that end a reply."""


class Undecided(FakeBackend):
    """Its script does not make it certain, so that all answers have a chance."""

    def _scripted_token(self, cells: Any) -> int | None:
        return None

    def _logits_after(self, cells: Any) -> Any:
        values = super()._logits_after(cells)
        values[list(b"yesnotalprh ")] += 4
        return values


@pytest.fixture(params=[False, True], ids=["token by token", "in packs"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Assistant]]:
    made: list[Assistant] = []

    def build(**options: Any) -> Assistant:
        made.append(Assistant(Undecided(**{"drafts": request.param, **options})))
        return made[-1]

    yield build
    for assistant in made:
        assistant.close()


def by_hand(prompt: str, answer: bytes) -> list[float]:
    """The logprob of each byte of an answer and of its end, behind a prompt as the model reads it."""
    backend = Undecided()
    backend.prefill(0, backend.tokenizer.tokenize(prompt, parse_special=True))
    found = []
    for token in [*answer, 257]:
        logits = backend.logits(0).astype(np.float64)
        found.append(float(logits[token]) - math.log(np.exp(logits).sum()))
        backend.decode([(0, token)])
    return found


def chat(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


async def test_scores_are_those_of_each_token_by_hand(make: Callable[..., Assistant]) -> None:
    assistant = make()
    result = assistant.score("Really?", CHOICES)
    expected = {choice: by_hand(chat("Really?"), choice.encode()) for choice in CHOICES}
    assert [one.text for one in result.choices] == CHOICES
    for one in result.choices:
        *tokens, end = expected[one.text]
        assert [token.logprob for token in one.tokens] == pytest.approx(tokens, abs=1e-4)
        assert one.end_logprob == pytest.approx(end, abs=1e-4)
        assert one.logprob == pytest.approx(sum(tokens), abs=1e-4)
        assert one.mean == pytest.approx(sum(tokens) / len(tokens), abs=1e-4)
        assert one.total == pytest.approx(sum(tokens) + end, abs=1e-4)
        assert one.n_tokens == len(one.text)
    assert str(result) == result.best.text == result.ranked[0].text == max(expected, key=lambda one: sum(expected[one]))
    assert result.probabilities == pytest.approx(assistant.choose("Really?", CHOICES).probabilities, rel=1e-4)
    means = await assistant.ascore("Really?", CHOICES, by="mean")
    order = sorted(CHOICES, key=lambda one: sum(expected[one][:-1]) / len(one), reverse=True)
    assert [one.text for one in means.ranked] == order
    assert order != [one.text for one in result.ranked], "or the test shows nothing"
    assert means.n_computed < means.n_prompt, "the prompt is in the KV cache"


def test_a_plain_text_is_scored_without_template_and_end(make: Callable[..., Assistant]) -> None:
    result = make().score("I say ", ["yes", "no"], chat=False)
    for one in result.choices:
        assert one.end_logprob is None
        assert one.total == one.logprob == pytest.approx(sum(by_hand("I say ", one.text.encode())[:-1]), abs=1e-4)


def test_many_prompts_are_scored_as_each_alone_and_share_their_prefix(
    make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch
) -> None:
    n_tokens: list[int] = []
    prefill = Undecided.prefill

    def note(self: Undecided, seq_id: int, tokens: Any, **options: Any) -> int:
        n_tokens.append(len(tokens))
        return prefill(self, seq_id, tokens, **options)

    items = [("x" * 500 + f" {number:03}", CHOICES[: 1 + number % 3]) for number in range(20)]
    alone = [make().score(prompt, choices) for prompt, choices in items[:3]]

    def note_pack(self: Undecided, parts: Any) -> None:
        n_tokens.append(sum(len(part.tokens) for part in parts))
        extend(self, parts)

    extend = Undecided.extend
    monkeypatch.setattr(Undecided, "prefill", note)
    monkeypatch.setattr(Undecided, "extend", note_pack)
    assistant = make(n_seq=8)
    found = dict(assistant.score_batch(items))
    assert sorted(found) == list(range(20))
    for number, expected in enumerate(alone):
        got = found[number]
        assert isinstance(got, Scored)
        assert [one.total for one in got.choices] == pytest.approx([one.total for one in expected.choices], abs=1e-4)
    assert sum(n_tokens) < assistant.count(items[0][0]).n_tokens + 20 * 60, "the prefix was computed once"


def test_what_cannot_be_scored_does_not_stop_the_others(make: Callable[..., Assistant]) -> None:
    items: list[Any] = [("hi", []), ("hi", ["a"]), ("x" * 3000, ["a", "b"]), ("", ["a"]), ("hi", ["b"])]
    found = dict(make(n_ctx=512).score_batch(items))
    assert {number: type(one) for number, one in found.items()} == {
        0: UsageError, 1: Scored, 2: ContextFullError, 3: UsageError, 4: Scored,
    }  # fmt: skip


def test_a_continuation_that_does_not_fit_is_no_score(make: Callable[..., Assistant]) -> None:
    with pytest.raises(ContextFullError, match="window"):
        make(n_ctx=128).score("x" * 100, ["y" * 60], chat=False)


def test_leaving_the_loop_stops_what_runs(make: Callable[..., Assistant]) -> None:
    assistant = make(n_seq=2)
    loop = assistant.score_batch([(f"{number}", CHOICES) for number in range(50)])
    next(loop)
    loop.close()  # type: ignore[attr-defined]
    assert assistant.generate("hi", max_tokens=1).wait() is not None
    assert assistant.n_running == 0


def test_a_batch_takes_far_fewer_passes_in_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    for name in ("prefill", "decode", "extend"):
        usual = getattr(Undecided, name)
        monkeypatch.setattr(
            Undecided, name, lambda self, *a, name=name, usual=usual, **k: (passes.append(name), usual(self, *a, **k))[1]
        )
    counts = []
    for drafts in (False, True):
        with Assistant(Undecided(n_seq=8, drafts=drafts)) as assistant:
            assistant.score("x" * 500, ["y"], chat=False)
            passes.clear()
            assert len(dict(assistant.score_batch([(f"{'x' * 500}{n:02}", CHOICES) for n in range(16)], chat=False))) == 16
            counts.append(len(passes))
    assert counts[1] < counts[0] / 2 and "extend" in passes


def test_replies_beside_it_go_the_usual_way_and_what_is_scored_is_right(make: Callable[..., Assistant]) -> None:
    assistant = make(n_seq=4, n_ctx=8192)
    expected = [one.total for one in assistant.score("Really?", CHOICES).choices]
    endless = dict.fromkeys(ENDS, -math.inf)
    with assistant.generate("Talk", max_tokens=3000, max_repeats=0, logit_bias=endless) as reply:
        found = [one.total for one in assistant.score("Really?", CHOICES).choices]
        assert not reply.is_done
    assert found == pytest.approx(expected, abs=1e-4)


def test_cells_that_do_not_suffice_for_a_pack_are_made_room_for(make: Callable[..., Assistant]) -> None:
    assistant = make(n_seq=6, n_ctx=256)
    items = [(f"{number}" + "x" * 90, ["y" * 20, "z" * 30]) for number in range(9)]
    found = dict(assistant.score_batch(items))
    assert all(isinstance(one, Scored) for one in found.values()) and len(found) == 9


async def test_texts_are_classified_and_items_are_ranked() -> None:
    script = {"good": "Spotless", "bad": "Rats"}

    def answer(prompt: str) -> str:
        if "So far:" in prompt:
            return "Ubik" if "Dune" in prompt else "Emma"
        text = prompt.rpartition("Text: ")[2]
        return next((label for label, word in script.items() if word in text), "bad")

    with Assistant(FakeBackend(script=answer, n_seq=4, n_ctx=8192, drafts=True)) as assistant:
        texts, task = ["Spotless rooms.", "Rats in the bath."], "Is the review good or bad?"
        found = assistant.classify(texts, ["good", "bad"], task=task, examples=[("Fine.", "good")])
        assert [one.best.text for one in found] == ["good", "bad"]
        assert found[0].n_computed < found[0].n_prompt or found[1].n_computed < found[1].n_prompt, "they share a prefix"
        assert assistant.rank(["Dune", "Solaris"], ["Emma", "Ubik"]).best.text == "Ubik"
        ranked = assistant.rank(["Persuasion"], ["Ubik", "Emma"], task="Say which book is next.")
        assert [one.text for one in ranked.ranked] == ["Emma", "Ubik"] and ranked.by == "mean"
        (rats,) = await assistant.aclassify(texts[1:], ["good", "bad"], task=task)
        assert rats.best.text == "bad"
        assert (await assistant.arank(["Dune", "Solaris"], ["Emma", "Ubik"])).best.text == "Ubik"
        for wrong in ({"texts": "one"}, {"labels": []}, {"examples": [("a", "else")]}):
            with pytest.raises(UsageError):
                assistant.classify(**{"texts": ["a"], "labels": ["good", "bad"], **wrong})  # type: ignore[arg-type]


async def test_classifying_that_is_cancelled_stops_what_runs() -> None:
    passes: list[int] = []
    has_begun = threading.Event()

    class Slow(FakeBackend):
        def prefill(self, seq: Any, tokens: Any, *rest: Any, **options: Any) -> Any:
            passes.append(len(tokens))
            has_begun.set()
            time.sleep(0.01)
            return super().prefill(seq, tokens, *rest, **options)

    n_texts = 200
    with Assistant(Slow(n_seq=2, n_ctx=4096)) as assistant:
        work = asyncio.create_task(assistant.aclassify([f"{number} is a text" for number in range(n_texts)], ["good", "bad"]))
        assert await asyncio.to_thread(has_begun.wait, 30)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        before = -1
        while before != len(passes):  # until nothing runs any more
            before = len(passes)
            await asyncio.sleep(0.3)
        assert before < n_texts, "cancelling left the texts running"


@pytest.mark.parametrize("wrong", [{"by": "best"}, {"by": None}, {"n_at_once": 0}])
def test_wrong_arguments_are_refused_at_once(make: Callable[..., Assistant], wrong: Any) -> None:
    with pytest.raises(UsageError):
        make().score_batch([], **wrong)
    with pytest.raises(UsageError):
        make().score([{"role": "user", "content": "hi"}], ["a"], chat=False)
    closed = make()
    closed.close()
    with pytest.raises(BackendError):
        list(closed.score_batch([]))


@pytest.mark.model
def test_a_real_model_gives_the_logprobs_that_it_generates_by(model_path: Any) -> None:
    import edge

    with edge.load(str(model_path), context=1024, threads=1) as assistant:
        text = "The capital of France is"
        reply = assistant.complete(text, max_tokens=1, temperature=0, logprobs=5)
        reply.wait()
        top = {one.text: one.logprob for one in reply.logprobs[0].top}
        result = assistant.score(text, list(top), chat=False)
        assert {one.text: one.logprob for one in result.choices} == pytest.approx(top, abs=1e-3)
        assert result.best.text == " Paris"
    items = [(f"Reviews of a hotel: {one} Good or bad?", ["good", "bad"]) for one in ("Clean!", "Rats.", "Lovely.")]
    with edge.load(str(model_path), context=1024, threads=1, settings=edge.load_settings({"kv.exact": True})) as exact:
        many = dict(exact.score_batch(items))
        assert [many[number] for number in range(3)] == [
            replace(exact.score(prompt, choices), n_computed=found.n_computed)
            for number, (prompt, choices) in enumerate(items)
            if isinstance(found := many[number], Scored)
        ], "bit for bit, whatever was computed before"
