"""Logprobs come with the text that their tokens begin in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge.engine.generation import Decoded, Event, Generation
from edge.types import Sampling, TokenLogprob


def write(tokens: list[bytes], *stops: str) -> tuple[list[Decoded], str | None]:
    """What a generation tells of these tokens, and which stop text ended it."""
    events: list[Event] = []
    generation = Generation([1], Sampling(stop=stops, max_repeats=0), events.append, n_logprobs=0)
    for number, data in enumerate(tokens):
        generation.add(number, TokenLogprob(number, data, -1.0))
        if generation.show(data):
            break
    else:
        generation.show_rest()
    told = [event for event in events if isinstance(event, Decoded)]
    return told, generation._matcher.matched


def numbers(event: Decoded) -> list[int]:
    return [one.token for one in event.logprobs]


def test_a_token_comes_with_the_text_that_it_begins_in() -> None:
    told, _ = write([b"one", b" two"])
    assert [(event.text, numbers(event)) for event in told] == [("one", [0]), (" two", [1])]


def test_tokens_of_one_character_come_together() -> None:
    told, _ = write(["é".encode()[:1], "é".encode()[1:], b"!"])
    assert [(event.text, numbers(event)) for event in told] == [("é", [0, 1]), ("!", [2])]


def test_tokens_without_text_come_with_what_follows_and_at_the_end() -> None:
    told, _ = write([b"", b"a", b"", b""])
    assert [(event.text, numbers(event)) for event in told] == [("a", [0, 1]), ("", [2, 3])]


def test_withheld_text_brings_its_tokens_when_it_is_shown() -> None:
    told, stopped_by = write([b"a E", b"N", b"ough"], "END")
    assert ([(event.text, numbers(event)) for event in told], stopped_by) == ([("a ", [0]), ("ENough", [1, 2])], None)


def test_tokens_of_a_stop_text_are_left_out() -> None:
    told, stopped_by = write([b"a ", b"b E", b"N", b"D", b"never"], "END")
    assert [(event.text, numbers(event)) for event in told] == [("a ", [0]), ("b ", [1])]
    assert stopped_by == "END"


@given(st.lists(st.binary(max_size=4), max_size=12), st.sampled_from([(), ("ab",), ("\ufffd",)]))
def test_whatever_the_tokens_each_comes_once_in_order(tokens: list[bytes], stops: tuple[str, ...]) -> None:
    told, stopped_by = write(tokens, *stops)
    found = [number for event in told for number in numbers(event)]
    if stopped_by is None:
        assert found == list(range(len(tokens)))
    assert found == list(range(len(found)))
    assert all(event.text or event.logprobs for event in told)
