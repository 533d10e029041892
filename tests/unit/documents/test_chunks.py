"""Passages: nothing is lost or repeated, the order is kept, and lines are those of the file."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.documents.base import Block
from edge.documents.chunks import Chunk, estimate_tokens, split
from edge.documents.readers import reader

WORDS = st.sampled_from(
    ["tea", "kettle", "a", "boil_water", "Überlauf", "水が沸く", "x" * 90, "#", "-", "|", "```", "def f():", "1."]
)
LINES = st.lists(
    st.one_of(st.just(""), st.just("   "), st.lists(WORDS, max_size=12).map(" ".join), st.text(max_size=40)), max_size=60
)
KINDS = st.sampled_from(["text", "markdown", "code"])


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def chunks_of(kind: str, text: str, max_tokens: int) -> list[Chunk]:
    _, blocks = reader(kind)(text.encode())
    return split(blocks, max_tokens)


@given(lines=LINES, kind=KINDS, max_tokens=st.integers(16, 200))
@settings(deadline=None, max_examples=300)
def test_passages_cover_a_file_in_order_and_fit(lines: list[str], kind: str, max_tokens: int) -> None:
    text = "\n".join(lines).replace("\0", " ").encode("utf-8", "ignore").decode().replace("\r", "\n")
    chunks = chunks_of(kind, text, max_tokens)
    assert squeezed("".join(chunk.text for chunk in chunks)) == squeezed(text.removeprefix("\ufeff"))
    source = text.removeprefix("\ufeff").split("\n")
    at = 0
    for chunk in chunks:
        assert chunk.text.strip()
        assert estimate_tokens(chunk.text) <= max_tokens
        assert 1 <= chunk.first <= chunk.last <= len(source)
        assert chunk.first >= at  # a line that was split is that of two passages
        at = chunk.last
        there = "\n".join(source[chunk.first - 1 : chunk.last])
        if chunk.text != there:  # a part of a line
            assert squeezed(chunk.text) in squeezed(there)


@given(paths=st.lists(st.lists(st.sampled_from("ABC"), max_size=3).map(tuple), min_size=1, max_size=30))
def test_a_heading_is_one_that_all_of_a_passage_is_below(paths: list[tuple[str, ...]]) -> None:
    blocks = [Block(f"text {number}", number + 1, number + 1, path=path, begins=True) for number, path in enumerate(paths)]
    for chunk in split(blocks, 40):
        for path in paths[chunk.first - 1 : chunk.last]:
            assert " > ".join(path).startswith(chunk.heading)


def test_a_passage_ends_with_its_section_or_page() -> None:
    words = "word " * 30
    blocks = [Block(words, path=("A",), begins=True), Block(words, path=("B",), begins=True), Block("end", path=("B",))]
    assert [(chunk.heading, chunk.text) for chunk in split(blocks, 100)] == [("A", words), ("B", f"{words}\nend")]
    pages = [Block("one", page=1, begins=True), Block("two", page=1), Block("three", page=2, begins=True)]
    assert [(chunk.page, chunk.text) for chunk in split(pages, 100)] == [(1, "one\ntwo"), (2, "three")]


def test_small_sections_go_on_in_one_passage() -> None:
    blocks = [Block(f"short {number}", path=("A", str(number)), begins=True) for number in range(4)]
    assert [(chunk.heading, chunk.text.count("\n")) for chunk in split(blocks, 100)] == [("A", 3)]


def test_a_long_line_is_split_at_sentences_and_then_anywhere() -> None:
    line = "This sentence has exactly seven words here. " * 20
    parts = split([Block(line.strip(), 5, 5)], 40)
    assert all(chunk.text.strip().endswith(".") for chunk in parts)
    assert {(chunk.first, chunk.last) for chunk in parts} == {(5, 5)}
    blob = split([Block("A" * 100_000, 1, 1)], 50)
    assert "".join(chunk.text for chunk in blob) == "A" * 100_000
    assert all(estimate_tokens(chunk.text) <= 50 for chunk in blob)


@pytest.mark.parametrize("size", [1, 1000])
def test_what_a_model_counts_decides(size: int) -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return len(text)

    chunks = split([Block("x" * size, 1, 1), Block("y", 2, 2)], 20, count)
    assert counted
    assert all(len(chunk.text) <= 21 for chunk in chunks)
