"""Repetition of replies: sequences of words that come again, and loops."""

from __future__ import annotations

import pytest

from edge_convert.evaluate.tasks.repetition import compare, is_loop, read_prompts, repeated_share

PROSE = (
    "A lighthouse stood at the end of the pier, and its keeper counted the boats that came home each evening. One night a "
    "small boat was missing, so he lit every lamp that he could find and rowed out into the fog until he heard a child's voice."
)


def test_share_of_repeated_sequences() -> None:
    assert repeated_share("one two three") == 0.0
    assert repeated_share(PROSE) == 0.0
    assert repeated_share("a b c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repeated_share("Go on! " * 50) > 0.9


def test_loops() -> None:
    sentence = "The keeper went back to the lighthouse and lit the lamp again, and the boats came home. "
    assert is_loop(PROSE + " " + sentence * 8)
    assert not is_loop(PROSE)
    assert not is_loop("")


def test_comparison() -> None:
    result = compare([PROSE, "so it goes on and on and on, " * 60], [PROSE, PROSE])
    assert (result.loops.n_yes, result.loops.n) == (1, 2)
    assert result.repeated.value > 0.4
    assert result.teacher_loops and result.teacher_loops.n_yes == 0
    assert result.teacher_repeated and result.teacher_repeated.value == 0.0


def test_short_replies_do_not_count() -> None:
    result = compare(["Yes.", PROSE, ""])
    assert (result.loops.n, result.repeated.n) == (1, 1)


def test_prompts_ask_for_long_replies_and_differ() -> None:
    prompts = read_prompts()
    assert len(prompts) == len(set(prompts)) == 28
