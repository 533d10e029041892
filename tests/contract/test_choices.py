"""Several replies to one prompt, for every engine: it is prefilled once, and each reply is what it is alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from edge.engine.generation import Finished, Generation, SharedPrompt
from edge.engine.scheduler import Scheduler
from edge.types import Sampling
from tests.contract.entries import Bench
from tests.unit.engine.test_scheduler import Listener


@pytest.fixture
def prefilled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each chunk that the backend prefills; and closing a scheduler leaves it open."""
    n_tokens: list[int] = []
    prefill = bench.backend.prefill

    def note(seq_id: int, tokens: Sequence[int], **options: Any) -> int:
        n_tokens.append(prefill(seq_id, tokens, **options))
        return n_tokens[-1]

    monkeypatch.setattr(bench.backend, "prefill", note)
    monkeypatch.setattr(bench.backend, "close", lambda: None)
    return n_tokens


def ask(bench: Bench, prompt: list[int], seeds: Sequence[int], shared: SharedPrompt | None) -> list[Finished]:
    for seq_id in range(bench.backend.capabilities.n_seq):
        bench.backend.rewind(seq_id, 0)
    scheduler = Scheduler(bench.backend)
    listeners = [Listener() for _ in seeds]
    for seed, listener in zip(seeds, listeners, strict=True):
        sampling = Sampling(temperature=1.0, seed=seed, max_tokens=6, max_repeats=0)
        scheduler.submit(Generation(prompt, sampling, listener.events.put, shared=shared))
    ends: list[Finished] = [listener.until(Finished) for listener in listeners]
    scheduler.close()
    return ends


def test_choices_of_a_prompt_are_prefilled_once(bench: Bench, prefilled: list[int]) -> None:
    prompt = bench.tokens(90, seed=41)
    ends = ask(bench, prompt, [1, 2, 3], SharedPrompt())
    if not bench.backend.capabilities.rewind:
        pytest.skip("a sequence cannot be shared in front of its end")
    assert sum(prefilled) == 90 + 2, "the others compute the last token, for its logits"
    assert sorted(end.usage.n_reused for end in ends) == [0, 89, 89]
    assert all(end.usage.n_prompt == 90 for end in ends)


def test_each_choice_is_what_its_seed_says(bench: Bench, prefilled: list[int]) -> None:
    if bench.tolerance:
        pytest.skip("the last bits depend on how tokens are computed together")
    prompt = bench.tokens(90, seed=42)
    together = [end.tokens for end in ask(bench, prompt, [1, 2, 3], SharedPrompt())]
    alone = [ask(bench, prompt, [seed], None)[0].tokens for seed in (1, 2, 3)]
    assert together == alone
    assert len(set(alone)) == 3


def test_more_choices_than_sequences(bench: Bench, prefilled: list[int]) -> None:
    n = bench.backend.capabilities.n_seq + 2
    ends = ask(bench, bench.tokens(40, seed=43), list(range(n)), SharedPrompt())
    assert [end.reason in ("stop", "length") for end in ends] == [True] * n


class _Failing:
    """Fails the first prefill."""

    def __init__(self, prefill: Callable[..., int]) -> None:
        self.prefill, self.n_calls = prefill, 0

    def __call__(self, *arguments: Any, **options: Any) -> int:
        self.n_calls += 1
        if self.n_calls == 1:
            raise RuntimeError("the first one fails")
        return self.prefill(*arguments, **options)


def test_the_others_go_on_when_the_first_one_fails_or_is_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.backend, "close", lambda: None)
    monkeypatch.setattr(bench.backend, "prefill", _Failing(bench.backend.prefill))
    scheduler, shared, listeners = Scheduler(bench.backend), SharedPrompt(), [Listener() for _ in range(4)]
    prompt = bench.tokens(50, seed=44)
    asked = [
        Generation(prompt, Sampling(temperature=0, max_tokens=3, max_repeats=0), one.events.put, shared=shared)
        for one in listeners
    ]
    asked[1].cancel()
    for one in asked:
        scheduler.submit(one)
    ends = [_last(listener) for listener in listeners]
    scheduler.close()
    assert ends == ["Failed", "cancelled", *[ends[2]] * 2]
    assert ends[2] in ("stop", "length")


def _last(listener: Listener) -> str:
    while True:
        event = listener.events.get(timeout=30)
        if type(event).__name__ == "Failed":
            return "Failed"
        if isinstance(event, Finished):
            return event.reason
