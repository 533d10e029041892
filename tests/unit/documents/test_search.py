"""A question is never a query: whatever is asked, FTS5 accepts it and looks for its words."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.database import Database
from edge.documents import db
from edge.documents.chunks import Chunk
from edge.documents.search import fuse, query_words, search_words

TEXTS = ["The kettle boils water.", "C++ and a-b are fine; foo_bar too.", "日本語の文書を検索する", "Ein Gerät für Tee"]


@pytest.fixture(scope="module")
def connection() -> sqlite3.Connection:
    """A collection of four documents of one passage each."""
    database = Database(None, db.SCHEMA)
    with database.write() as connection:
        for number, text in enumerate(TEXTS):
            db.put_document(connection, Path(f"/{number}"), "", "text", 1, 1, b"", [Chunk(text, "", 1, 1, 0)])
    assert database._writer is not None
    return database._writer


def found(connection: sqlite3.Connection, question: str) -> list[int]:
    return [number - 1 for number, _ in search_words(connection, question, 10)]


SYNTAX = st.sampled_from(
    ["AND", "OR", "NOT", "NEAR(", ")", '"', "'", "*", "^", ":", "-", "+", "{", "}", "text:", "heading :", "\0", ","]
)


@given(parts=st.lists(st.one_of(SYNTAX, st.text(max_size=8), st.sampled_from(["kettle", "water"])), max_size=12))
@example(parts=['"'])
@example(parts=["NEAR(kettle water, 5)"])
@example(parts=["text", ":", "kettle"])
@example(parts=["kettle", "NOT", "water"])
@settings(deadline=None, max_examples=500)
def test_no_syntax_of_a_question_reaches_the_index(connection: sqlite3.Connection, parts: list[str]) -> None:
    question = " ".join(parts)
    hits = found(connection, question)
    if "kettle" in parts:
        assert 0 in hits  # neither NOT, NEAR nor a column takes it away


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("boiling", 0),
        ("c++", 1),
        ("a-b", 1),
        ("foo_bar", 1),
        ("文書", 2),
        ("どの文書を検索しますか", 2),
        ("gerat", 3),
        ("GERÄT", 3),
    ],
)
def test_words_are_found_in_any_form(connection: sqlite3.Connection, question: str, best: int) -> None:
    assert found(connection, question)[0] == best


@pytest.mark.parametrize("question", ["", "***", "_", "…", "zeppelin"])
def test_nothing_is_found_by_nothing(connection: sqlite3.Connection, question: str) -> None:
    assert found(connection, question) == []


def test_a_question_of_many_words_stays_a_query(connection: sqlite3.Connection) -> None:
    assert len(query_words(" ".join(f"w{number}" for number in range(1000)))) == 64
    assert found(connection, "kettle " + "x " * 100_000) == [0]


def test_words_that_are_everywhere_are_left_out_if_others_say_more() -> None:
    database = Database(None, db.SCHEMA)
    with database.write() as connection:
        chunks = [
            Chunk(f"the common kettle {'of number' if number % 2 else 'in'} n{number}", "", 1, 1, 0) for number in range(40)
        ]
        db.put_document(connection, Path("/a"), "", "text", 1, 1, b"", chunks)

        def hits(question: str) -> list[int]:
            return [number - 1 for number, _ in search_words(connection, question, 50, most_scored=10)]

        assert hits("the kettle in n7") == [7]
        assert len(hits("the common kettle")) == 40  # no other words: all of them
        assert sorted(hits("the number")) == list(range(1, 40, 2))
        assert len(hits("in number")) == 40  # nothing has both
        assert hits("zeppelin n3") == [3]
        assert len(hits("zeppelin the")) == 40
        beside = [search_words(connection, words, 50, is_alone=False) for words in ("the kettle", "the n5", "zeppelin")]
        assert [[number - 1 for number, _ in found] for found in beside] == [[], [5], []]
    database.close()


def test_what_both_searches_have_comes_first() -> None:
    assert [number for number, _ in fuse([[1, 2, 3], [3, 4]])] == [3, 1, 2, 4]
    assert fuse([[7, 8], [7]])[0] == (7, 1.0)
    assert fuse([]) == []
