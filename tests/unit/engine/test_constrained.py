"""Replies under a constraint: only what it allows, with drafts and without; what it forces takes no pass of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.backends.fake import FakeBackend
from edge.engine.drafting import Planner
from edge.engine.generation import Failed, Finished, Generation, Prefilled
from edge.engine.scheduler import Scheduler
from edge.errors import ConstraintError
from edge.kv.cache import KVCache
from edge.types import Sampling
from tests.unit.engine.test_decoding import EagerPlanner, Watched, check_cache
from tests.unit.engine.test_scheduler import Listener, ask

GREEDY = Sampling(temperature=0)
END = 257


class Steps:
    """A matcher that is a list of sets: the bytes that each place of the reply may have. Forces where there is one."""

    def __init__(self, *steps: str | Sequence[str], forces: bool = True) -> None:
        self.steps = [set("".join(step).encode()) for step in steps]
        self.forces = forces
        self.place = 0
        self.n_masks = 0

    @property
    def is_complete(self) -> bool:
        return self.place == len(self.steps)

    @property
    def is_over(self) -> bool:
        return self.is_complete

    def allowed(self) -> npt.NDArray[np.bool_]:
        self.n_masks += 1
        allowed = np.zeros(259, dtype=bool)
        allowed[list(self.steps[self.place])] = True
        return allowed

    def accept(self, token: int) -> None:
        if self.n_valid([token]) != 1:
            raise ConstraintError(f"{token} is not allowed.")
        self.place += 1

    def n_valid(self, tokens: Sequence[int]) -> int:
        n_valid = 0
        for token, step in zip(tokens, self.steps[self.place :], strict=False):
            if token not in step:
                break
            n_valid += 1
        return n_valid

    def forced(self) -> list[int]:
        found: list[int] = []
        for step in self.steps[self.place :] if self.forces else ():
            if len(step) != 1:
                break
            found += step
        return found


def free(text: str, other: str = "#") -> list[str]:
    """Steps that leave a choice at every place of a text."""
    return [letter + other for letter in text]


def run(
    matcher: Any, text: str, sampling: Sampling = GREEDY, *, planner: Planner | None = None, exact: bool = False, **options: Any
) -> tuple[Finished | Failed, str, Watched, list[Prefilled]]:
    backend = Watched(**options)
    cache = KVCache(backend, exact=exact)
    scheduler = Scheduler(backend, cache, planner=planner)
    listener = Listener()
    scheduler.submit(Generation(ask(backend, text), sampling, listener.events.put, constraint=matcher))
    end = listener.until((Finished, Failed))  # type: ignore[arg-type]
    scheduler.call(lambda _: check_cache(cache, backend))
    scheduler.close()
    return end, listener.text, backend, [event for event in listener.seen if isinstance(event, Prefilled)]


def test_the_reply_is_the_likeliest_that_is_allowed_and_ends_with_it() -> None:
    end, text, _, _ = run(Steps("xy", "he", "l", "zl"), "hello there")
    assert isinstance(end, Finished)
    assert text[1:] in ("ell", "hll", "elz", "hlz")
    assert text[0] in "xy"
    assert (end.reason, end.is_partial) == ("stop", False)
    assert end.usage.n_generated == 4


def test_the_model_may_end_where_the_constraint_lets_it() -> None:
    class Optional(Steps):
        is_over = False
        is_complete = True

        def allowed(self) -> npt.NDArray[np.bool_]:
            allowed = super().allowed()
            allowed[END] = True
            return allowed

    end, text, _, _ = run(Optional(*free("hello"), *free("there")), "hello")
    assert (text, end.reason, end.is_partial) == ("hello", "stop", False)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 6])
def test_a_reply_that_was_cut_off_says_that_it_is_partial(max_tokens: int) -> None:
    matcher = Steps(*free("he"), *"llo!!")
    end, text, _, _ = run(matcher, "hello!!", Sampling(temperature=0, max_tokens=max_tokens))
    assert text == "hello!!"[:max_tokens]
    assert (end.reason, end.is_partial, end.usage.n_generated) == ("length", True, max_tokens)


def test_the_last_token_allowed_completes_the_reply_rather_than_the_limit() -> None:
    end, text, _, _ = run(Steps(*free("abc")), "abc", Sampling(temperature=0, max_tokens=3))
    assert (text, end.reason, end.is_partial) == ("abc", "stop", False)


def test_what_is_forced_takes_no_pass_and_no_mask() -> None:
    steps = [*free("ab"), *"cdefghij", *free("kl"), *"mnop"]
    matcher, slow = Steps(*steps), Steps(*steps, forces=False)
    end, text, backend, read = run(matcher, "abcdefghijklmnop")
    slow_end, slow_text, slow_backend, slow_read = run(slow, "abcdefghijklmnop")
    assert text == slow_text == "abcdefghijklmnop"
    assert end.tokens == slow_end.tokens
    assert (end.usage.n_forced, slow_end.usage.n_forced) == (12, 0)
    assert end.usage.n_generated == slow_end.usage.n_generated == 16
    assert (matcher.n_masks, slow.n_masks) == (4, 16)
    assert backend.n_passes == 2  # behind a, and behind k; b and l are prefilled with what they force
    assert slow_backend.n_passes == 15
    assert read == slow_read  # only the prompt is one


def test_one_forced_token_is_decoded_as_usual() -> None:
    end, text, backend, _ = run(Steps(*free("a"), "b", *free("c")), "abc")
    assert (text, end.usage.n_forced, backend.n_passes) == ("abc", 0, 2)


def test_nothing_is_forwarded_where_a_cold_run_must_be_repeated_bit_for_bit() -> None:
    end, text, backend, _ = run(Steps(*free("a"), *"bcdef"), "abcdef", exact=True, n_seq=1)
    assert (text, end.usage.n_forced, backend.n_passes) == ("abcdef", 0, 5)


@pytest.mark.parametrize("stop", ["d", "cd", "ef"])
def test_a_stop_text_ends_a_reply_among_forced_tokens(stop: str) -> None:
    end, text, _, _ = run(Steps(*free("a"), *"bcdefgh"), "abcdefgh", Sampling(temperature=0, stop=(stop,)))
    assert text == "abcdefgh"[: "abcdefgh".index(stop)]
    assert (end.reason, end.stopped_by, end.is_partial) == ("stop", stop, True)


@pytest.mark.parametrize("n_room", range(1, 9))
def test_the_end_of_the_window_ends_a_reply_among_forced_tokens(n_room: int) -> None:
    n_ctx = len(ask(FakeBackend(), "abcdefgh")) + n_room
    end, text, _, _ = run(Steps(*free("a"), *"bcdefgh", *free("ij")), "abcdefgh", n_ctx=n_ctx)
    assert (text, end.reason) == ("abcdefgh"[:n_room], "length")


def test_penalties_see_forced_tokens() -> None:
    steps = [*free("a"), *"bcb", "bx"]
    assert run(Steps(*steps), "abcbb")[1] == "abcbb"
    penalty = Sampling(temperature=0, presence_penalty=1000.0, repeat_last_n=2)  # of the prompt it sees no letter
    assert run(Steps(*steps), "abcbb", penalty)[1] == "abcbx"


@pytest.mark.parametrize("n_draft", [1, 3, 16])
@pytest.mark.parametrize("forces", [True, False])
def test_drafts_are_held_to_the_constraint(n_draft: int, forces: bool) -> None:
    text = "one two one two one two three one two three"
    wrong = text.replace("three", "th#ee")  # the model wants another letter there, and a draft would have it
    steps = [letter if letter == "#" else letter + "@" for letter in wrong]
    plain, plain_text, _, _ = run(Steps(*steps, forces=forces), text)
    end, same_text, backend, _ = run(Steps(*steps, forces=forces), text, planner=EagerPlanner(n_draft))
    assert same_text == plain_text
    assert len(same_text) == len(wrong)
    assert same_text[wrong.index("#")] == "#"
    assert end.tokens == plain.tokens
    assert backend.n_drafts > 0


def test_an_error_of_one_constraint_ends_that_reply_alone() -> None:
    backend = FakeBackend(script=lambda message: message)
    scheduler = Scheduler(backend)
    empty = Steps("a#", "b#")
    empty.steps[1] = set()
    listeners = [Listener(), Listener()]
    for listener, matcher in zip(listeners, (empty, None), strict=True):
        scheduler.submit(Generation(ask(backend, "abcd"), GREEDY, listener.events.put, constraint=matcher))
    failed = listeners[0].until(Failed)
    assert isinstance(failed.error, ConstraintError)
    assert listeners[0].text == "a"
    listeners[1].until(Finished)
    assert listeners[1].text == "abcd"
    scheduler.close()


def test_a_preempted_reply_goes_on_within_its_constraint() -> None:
    prompt = ask(FakeBackend(), "a" * 20)
    backend = Watched(n_ctx=2 * len(prompt) + 30, n_seq=2)
    cache = KVCache(backend)
    scheduler = Scheduler(backend, cache)
    listeners = [Listener(), Listener()]
    for listener in listeners:
        matcher = Steps(*(step for _ in range(5) for step in (*free("a"), *"aaa")))
        scheduler.submit(Generation(list(prompt), GREEDY, listener.events.put, constraint=matcher))
    for listener in listeners:
        assert listener.until(Finished).reason == "stop"
        assert listener.text == "a" * 20
    scheduler.call(lambda _: check_cache(cache, backend))
    scheduler.close()
