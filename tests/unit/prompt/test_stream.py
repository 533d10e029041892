"""TextStream and StopMatcher against slow, obvious references, over every way of cutting the input."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.prompt.stream import StopMatcher, TextStream


def cut(data, cuts):
    """Split a str or bytes at the given positions (taken modulo its length)."""
    places = sorted({c % (len(data) + 1) for c in cuts})
    edges = [0, *places, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


cut_places = st.lists(st.integers(0, 10_000), max_size=12)
# Text around the lengths of UTF-8 sequences, and bytes that are often broken ones.
some_bytes = st.one_of(
    st.text(alphabet="aé€😀\u0301\ufffd", max_size=20).map(str.encode),
    st.binary(max_size=20),
    st.lists(st.sampled_from([b"\xe2", b"\x82", b"\xac", b"\xf0", b"\x9f", b"\xff", b"\xc0", b"\xed\xa0\x80", b"a"])).map(
        b"".join
    ),
)


@given(some_bytes, cut_places)
@example("€".encode()[:2] + b"a", [1, 2])
def test_stream_equals_decoding_at_once(data, cuts):
    stream = TextStream()
    text = "".join(stream.feed(piece) for piece in cut(data, cuts)) + stream.final()
    assert text == data.decode("utf-8", "replace")


@given(st.text(max_size=30))
def test_stream_gives_each_character_with_its_last_byte(text):
    stream = TextStream()
    for char in text:
        *first, last = [bytes([b]) for b in char.encode("utf-8", "replace")]
        assert [stream.feed(b) for b in first] == [""] * len(first)
        assert stream.feed(last) == char.encode("utf-8", "replace").decode()
    assert stream.final() == ""


def test_stream_says_at_once_that_a_byte_is_broken():
    stream = TextStream()
    assert stream.feed(b"\xe2\x82") == ""
    assert stream.feed(b"A") == "\ufffdA"


def test_final_flushes_half_a_character_and_starts_again():
    stream = TextStream()
    assert stream.feed(b"ok \xf0\x9f\x98") == "ok "
    assert stream.final() == "\ufffd"
    assert stream.final() == ""
    assert stream.feed("ä".encode()) == "ä"


def reference(text, stops):
    """Return the part of `text` to show: up to the stop that is complete first, the longest of those that end there."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


stop_texts = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4)


@given(st.text(alphabet="abc", max_size=40), stop_texts, cut_places)
@example("xabcd", ["abcd", "bc"], [2, 3])
@example("aaab", ["aab"], [1, 2, 3])
@example("abab", ["abab", "bab", "b"], [1])
def test_stops_equal_the_reference_however_the_text_is_cut(text, stops, cuts):
    matcher = StopMatcher(stops)
    shown = ""
    for piece in cut(text, cuts):
        safe, is_stopped = matcher.feed(piece)
        shown += safe
        assert is_stopped == (matcher.matched is not None)
    shown += matcher.flush()
    assert (shown, matcher.matched) == reference(text, stops)


@given(st.text(alphabet="abc", max_size=20), stop_texts)
def test_holds_back_only_what_may_still_become_a_stop(text, stops):
    matcher = StopMatcher(stops)
    shown = ""
    for n_read, char in enumerate(text, 1):
        safe, is_stopped = matcher.feed(char)
        shown += safe
        if is_stopped:
            return
        held = text[len(shown) : n_read]
        # What is held must be able to become a stop, and no longer tail could.
        assert held == "" or any(stop.startswith(held) for stop in stops)
        longer = [text[k:n_read] for k in range(len(shown))]
        assert not any(stop.startswith(tail) for stop in stops for tail in longer)


def test_nothing_comes_after_a_stop():
    matcher = StopMatcher(["\n\n", "###"])
    assert matcher.feed("one\n") == ("one", False)
    assert matcher.feed("\ntwo ### three") == ("", True)
    assert matcher.matched == "\n\n"
    assert matcher.feed("four") == ("", True)
    assert matcher.flush() == ""


def test_without_stops_everything_passes_at_once():
    matcher = StopMatcher()
    assert matcher.feed("<|im_end|>") == ("<|im_end|>", False)
    assert matcher.flush() == ""


def test_a_held_tail_is_given_out_at_the_end():
    matcher = StopMatcher(["<|im_end|>"])
    assert matcher.feed("a <|im") == ("a ", False)
    assert matcher.flush() == "<|im"


def test_an_empty_stop_is_refused():
    with pytest.raises(UsageError, match="empty"):
        StopMatcher(["ok", ""])
