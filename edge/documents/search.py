"""A question as a full-text query, and the ranks of several searches in one.

Source: Cormack, Clarke and Buettcher, Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods, 2009.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import pairwise

from edge.documents.db import indexed

__all__ = ["fuse", "match_expression", "search_words"]

_MOST_WORDS = 64
_HEADING_WEIGHT, _TEXT_WEIGHT = 2.0, 1.0
_RANK_OFFSET = 60
_WORD = re.compile(r"\w+")


def match_expression(question: str) -> str:
    """Return an FTS5 expression that finds any word of a question; "" if it has none.

    Words are quoted, so nothing of the question is syntax. Of a script without spaces, pairs of characters are searched for.
    """
    phrases: dict[str, None] = {}
    for word in _WORD.findall(question.replace("\0", " ")):
        characters = indexed(word).split()
        if len(characters) < 3 or any(len(one) > 1 for one in characters):
            phrases[" ".join(characters)] = None
        else:
            phrases |= dict.fromkeys(f"{one} {two}" for one, two in pairwise(characters))
    # Only letters, digits and underscores are left, but "_" alone is no word for the tokenizer either.
    words = [phrase for phrase in phrases if any(character.isalnum() for character in phrase)][:_MOST_WORDS]
    return " OR ".join(f'"{word}"' for word in words)


def search_words(db: sqlite3.Connection, question: str, limit: int) -> list[tuple[int, float]]:
    """Return the numbers of the passages with the words of a question, best first, each with its score (BM25).

    Args:
        db: in a transaction.
        question: the user's; never parsed as a query.
        limit: most passages.
    """
    expression = match_expression(question)
    if not expression or limit <= 0:
        return []
    sql = """SELECT rowid, -bm25(chunk_fts, ?, ?) AS score FROM chunk_fts WHERE chunk_fts MATCH ?
        ORDER BY score DESC, rowid LIMIT ?"""
    return db.execute(sql, (_HEADING_WEIGHT, _TEXT_WEIGHT, expression, limit)).fetchall()


def fuse(rankings: Iterable[Sequence[int]]) -> list[tuple[int, float]]:
    """Return what several searches found, best first, by reciprocal ranks.

    Args:
        rankings: numbers of passages, best first, of each search.

    Returns:
        (number, score), the score between 0 and 1: 1 if all searches had it first.
    """
    scores: dict[int, float] = {}
    n_rankings = 0
    for ranking in rankings:
        n_rankings += 1
        for rank, number in enumerate(ranking):
            scores[number] = scores.get(number, 0.0) + (1 + _RANK_OFFSET) / (1 + _RANK_OFFSET + rank)
    best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return [(number, score / n_rankings) for number, score in best]
