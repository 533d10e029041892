"""Drafts: what is looked up, and how much of it is worth a pass."""

from __future__ import annotations

import random

import pytest

from edge.backends.base import MAX_DRAFT
from edge.engine.drafting import Lookup, Planner


def slow_draft(text: list[int], n_most: int) -> int:
    """Return the longest suffix of a text, up to 32 tokens, that occurred before and is found by 2 tokens or more."""
    best = 0
    for end in range(1, len(text)):
        n_same = 0
        while n_same < min(32, end) and text[end - 1 - n_same] == text[-1 - n_same]:
            n_same += 1
        best = max(best, n_same)
    return best if best >= 2 else 0


def test_what_followed_the_same_words_before() -> None:
    assert Lookup([1, 2, 3, 4, 5, 1, 2]).draft(3) == ([3, 4, 5], 2)
    assert Lookup([1, 2, 3, 4, 5]).draft(3) == ([], 0)
    assert Lookup().draft(3) == ([], 0)
    assert Lookup([1]).draft(3) == ([], 0)


def test_the_longest_match_wins_over_the_newest() -> None:
    text = [9, 8, 7, 6, 5, 4, 0, 5, 4, 1, 9, 8, 7, 6, 5, 4]
    assert Lookup(text).draft(1) == ([0], 6), "found by 4 tokens, where the newest 2 lead elsewhere"


def test_of_equal_matches_the_newest_wins() -> None:
    assert Lookup([1, 2, 7, 3, 1, 2, 8, 4, 1, 2]).draft(1) == ([8], 2)


def test_a_draft_that_came_true_is_continued() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2])
    assert lookup.draft(2) == ([3, 4], 2)
    lookup.extend([3, 4])
    assert lookup.draft(2) == ([5, 6], 4)
    lookup.extend([9, 9])
    assert lookup.draft(2) == ([9, 9], 1) or lookup.draft(2) == ([], 0)


def test_a_text_that_repeats_itself_goes_on_repeating() -> None:
    assert Lookup([5, 1, 2, 3, 1, 2, 3]).draft(7) == ([1, 2, 3, 1, 2, 3, 1], 3)
    assert Lookup([4, 4, 4]).draft(5) == ([4, 4, 4, 4, 4], 2)


def test_piece_by_piece_is_as_at_once_and_matches_are_real() -> None:
    rng = random.Random(7)
    for _ in range(200):
        text = [rng.randrange(4) for _ in range(rng.randrange(2, 60))]
        grown = Lookup()
        for token in text:
            grown.extend([token])
            grown.draft(4)
        for lookup in (grown, Lookup(text)):
            draft, n_match = lookup.draft(4)
            assert n_match <= slow_draft(text, 4)
            assert bool(draft) == (n_match > 0)
        # What is found by 8, 4 or 2 tokens is as long as the best that those tokens lead to.
        assert (Lookup(text).draft(4)[1] >= 2) == (slow_draft(text, 4) >= 2)


def fill(planner: Planner, n_match: int, share: float) -> None:
    for number in range(400):
        planner.note_draft(n_match, int(number % 100 < share * 100), 1)


def test_no_draft_where_little_comes_true() -> None:
    planner = Planner()
    fill(planner, 2, 0.05)
    assert planner.length(2, 0, MAX_DRAFT) == 0


def test_long_drafts_where_all_comes_true_and_passes_are_cheap() -> None:
    planner = Planner()
    for bucket in (2, 4, 8, 16, 32):
        fill(planner, bucket, 1.0)
    for n_tokens in range(1, MAX_DRAFT + 2):
        planner.note_pass(n_tokens, 10.0)
    assert planner.length(32, 0, MAX_DRAFT) == MAX_DRAFT
    assert planner.length(32, 0, 3) == 3
    assert planner.length(32, 0, 0) == 0


def test_no_draft_where_a_pass_over_two_tokens_takes_twice_as_long() -> None:
    planner = Planner()
    fill(planner, 32, 1.0)
    for n_tokens in range(1, MAX_DRAFT + 2):
        planner.note_pass(n_tokens, 10.0 * n_tokens)
    assert planner.length(32, 0, MAX_DRAFT) == 0


def test_other_replies_in_the_pass_make_drafts_dearer() -> None:
    planner = Planner()
    for bucket in (2, 4, 8, 16, 32):
        fill(planner, bucket, 0.9)
    costs = [10, 11, 12, 13, 30, 60, 120, 240]
    for n_tokens, ms in enumerate(costs, 1):
        planner.note_pass(n_tokens, float(ms))
    assert planner.length(32, 0, MAX_DRAFT) == 3
    assert planner.length(32, 3, MAX_DRAFT) == 0


def test_what_stopped_coming_true_is_given_up_and_tried_again_rarely() -> None:
    planner = Planner()
    assert planner.length(32, 0, MAX_DRAFT) > 0
    for _ in range(60):
        planner.note_draft(32, 0, 1)
    lengths = [planner.length(32, 0, MAX_DRAFT) for _ in range(1000)]
    assert 0 < sum(length > 0 for length in lengths) <= 10
    assert max(lengths) <= 4


def test_a_pass_that_waited_for_another_program_counts_little() -> None:
    planner = Planner()
    for _ in range(10):
        planner.note_pass(1, 10.0)
    planner.note_pass(1, 1000.0)
    assert planner.pass_ms(1) == pytest.approx(12.0)


def test_times_that_were_not_measured_follow_from_those_that_were() -> None:
    planner = Planner()
    assert planner.pass_ms(1) == 1.0 < planner.pass_ms(2) < planner.pass_ms(5) < planner.pass_ms(17) < planner.pass_ms(50)
    planner.note_pass(1, 20.0)
    assert planner.pass_ms(2) == pytest.approx(30.0)
    planner.note_pass(8, 40.0)
    assert planner.pass_ms(8) == 40.0
    assert planner.pass_ms(9) < 60.0


def test_measured_costs_are_where_it_begins() -> None:
    cheap, dear = Planner({1: 1.0, 2: 1.05, 4: 1.2, 8: 1.5, 16: 2.2}), Planner({1: 1.0, 2: 2.1, 4: 4.3, 8: 8.0, 16: 16.0})
    assert cheap.length(32, 0, MAX_DRAFT) > Planner().length(32, 0, MAX_DRAFT) > dear.length(32, 0, MAX_DRAFT) == 0
    assert cheap.pass_ms(6) == pytest.approx(1.35)
    cheap.note_pass(1, 20.0)
    assert cheap.pass_ms(8) == pytest.approx(30.0)
    cheap.note_pass(8, 80.0)  # and it goes on learning
    assert cheap.pass_ms(8) == 80.0


@pytest.mark.parametrize("costs", [{1: 1.0}, {1: 1.0, 2: 0.8, 4: 0.9}, {1: 1.0, 16: 3.0}, {32: 4.0}, {}])
def test_any_measured_costs_rise_with_the_tokens(costs: dict[int, float]) -> None:
    times = [Planner(costs).pass_ms(n_tokens) for n_tokens in range(1, 60)]
    assert times == sorted(times) and times[0] == 1.0


def test_a_short_chunk_of_a_prompt_says_what_a_draft_costs() -> None:
    """So the first reply of a process drafts where passes are cheap, and does not where they are dear."""
    for chunk_ms, is_worth in ((11.0, True), (70.0, False)):
        planner = Planner()
        planner.note_chunk(8, chunk_ms)
        assert planner.pass_ms(1) == 1.0, "alone it says nothing: no pass over one token to compare it with"
        planner.note_pass(1, 10.0)
        assert planner.pass_ms(8) == pytest.approx(1.2 * chunk_ms)
        assert 10.0 < planner.pass_ms(3) < planner.pass_ms(8) < planner.pass_ms(12)
        assert (planner.length(8, 0, MAX_DRAFT) > 0) == is_worth
        planner.note_pass(8, 30.0)
        assert planner.pass_ms(8) == 30.0, "a pass that was measured counts more"
    planner = Planner()
    planner.note_pass(1, 10.0)
    before = planner.pass_ms(4)
    planner.note_chunk(512, 1.0)
    planner.note_chunk(1, 1.0)
    assert planner.pass_ms(4) == before, "a long chunk, or one token, says nothing of a draft"
