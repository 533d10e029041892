"""The real model drafting for itself: it guesses right, and greedy replies stay the same."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.backends.base import Backend, open_backend
from edge.device import probe
from edge.engine.draft_model import DraftModel, check_draft
from edge.engine.drafting import Planner
from edge.engine.generation import Event, Failed, Finished, Generation
from edge.engine.scheduler import Scheduler
from edge.formats.artifact import open_artifact
from edge.plan import Plan, PlanRequest, make_plan
from edge.types import Sampling

PROMPTS = ("One, two, three, four, five,", "Monday, Tuesday, Wednesday,", "January, February, March, April,")


class Always(DraftModel):
    """Guesses four tokens each time, whatever that takes, so that a busy machine tests the same."""

    def guess(self, seq_id, tokens, n_most, n_other, *_):  # type: ignore[no-untyped-def]  # as the base
        return super().guess(seq_id, tokens, min(n_most, 4), n_other, 1e9, lambda n_tokens: 1.0)

    @property
    def _has_paid(self) -> bool:
        return True

    def _goes_on(self, *_: object) -> bool:
        return True


@pytest.fixture(scope="module")
def plan(model_path: Path) -> Plan:
    return make_plan(probe(), open_artifact(model_path), PlanRequest(context=512, n_seq=1, threads=1))


@pytest.fixture(scope="module")
def draft(plan: Plan) -> Iterator[Backend]:
    with open_backend(plan) as backend:
        yield backend


def answers(plan: Plan, draft: Backend | None) -> list[Finished]:
    backend = open_backend(plan)
    if draft is not None:
        check_draft(backend, draft)
    model = Always(draft, backend.info.n_vocab) if draft is not None else None
    scheduler, ends = Scheduler(backend, planner=Planner(), draft=model), []
    for text in PROMPTS:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        tokens = backend.tokenizer.tokenize(text, add_special=True)
        scheduler.submit(Generation(tokens, Sampling(temperature=0, max_tokens=16), events.put))
        while not isinstance(event := events.get(timeout=600), Finished):
            assert not isinstance(event, Failed), event
        ends.append(event)
    scheduler.close()
    return ends


def test_greedy_replies_are_the_same_and_most_guesses_right(plan: Plan, draft: Backend) -> None:
    plain, guessed = answers(plan, None), answers(plan, draft)
    assert [end.tokens for end in guessed] == [end.tokens for end in plain]
    n_drafted = sum(end.usage.n_drafted for end in guessed)
    n_accepted = sum(end.usage.n_accepted for end in guessed)
    assert n_drafted >= 24
    assert n_accepted > 0.8 * n_drafted
