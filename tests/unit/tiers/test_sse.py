"""Server-sent events, cut anywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import RemoteError
from edge.tiers.sse import read_events

STREAM = b'data: {"a": 1}\r\n\r\n: comment\n\nevent: x\ndata:two\ndata: lines\n\n\n\ndata: [DONE]\n\ndata: unfinished'


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cuts_change_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert [data for data in read_events(chunks) if data] == [b'{"a": 1}', b"two\nlines", b"[DONE]"]


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_garbage_raises_nothing_else(chunks: list[bytes]) -> None:
    assert all(isinstance(data, bytes) for data in read_events(chunks))


@pytest.mark.parametrize("part", [b"x" * 4096, b"data: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n" * 100])
def test_what_never_ends_is_stopped(part: bytes) -> None:
    def endless() -> object:
        while True:
            yield part

    with pytest.raises(RemoteError, match="1 MiB"):
        for _ in read_events(endless()):  # type: ignore[arg-type]
            pass
