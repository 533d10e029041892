"""A question as a full-text query, and the ranks of several searches in one.

Source: Cormack, Clarke and Buettcher, Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods, 2009.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import pairwise

from edge.documents.db import indexed

__all__ = ["MOST_SCORED", "fuse", "query_words", "search_words"]

MOST_SCORED = 20_000
_MOST_WORDS = 64
_COMMON = 4  # a word that is in more than a quarter of the passages
_HEADING_WEIGHT, _TEXT_WEIGHT = 2.0, 1.0
_RANK_OFFSET = 60
_WORD = re.compile(r"\w+")


def query_words(question: str) -> list[str]:
    """Return what is searched for of a question, each as an FTS5 string; [] if it has no words.

    They are quoted, so nothing of the question is syntax. Of a script without spaces, pairs of characters are searched for.
    """
    phrases: dict[str, None] = {}
    for word in _WORD.findall(question.replace("\0", " ")):
        characters = indexed(word).split()
        if len(characters) < 3 or any(len(one) > 1 for one in characters):
            phrases[" ".join(characters)] = None
        else:
            phrases |= dict.fromkeys(f"{one} {two}" for one, two in pairwise(characters))
    # Only letters, digits and underscores are left, but "_" alone is no word for the tokenizer either.
    return [f'"{phrase}"' for phrase in phrases if any(character.isalnum() for character in phrase)][:_MOST_WORDS]


def search_words(
    db: sqlite3.Connection, question: str, limit: int, *, is_alone: bool = True, most_scored: int = MOST_SCORED
) -> list[tuple[int, float]]:
    """Return the numbers of the passages with the words of a question, best first, each with its score (BM25).

    Args:
        db: in a transaction.
        question: the user's; never parsed as a query.
        limit: most passages.
        is_alone: common words are searched for if there are no others. Beside another search they would only disturb it: a
            ranking does not tell that all of it is weak.
        most_scored: about as many passages are scored at most. Words that are in more say little, and cost most of the time.
    """
    words = query_words(question)
    if not words or limit <= 0:
        return []
    n_passages = db.execute("SELECT count(*) FROM chunk").fetchone()[0]
    rare = _rare(db, words, most_scored, most_each=most_scored if is_alone else max(1, n_passages // _COMMON))
    if rare or not is_alone:
        return _scored(db, " OR ".join(rare), limit) if rare else []
    return _scored(db, " AND ".join(words), limit) or _scored(db, " OR ".join(words), limit)


def _rare(db: sqlite3.Connection, words: Sequence[str], most: int, most_each: int) -> list[str]:
    """Return the rarest words that are there, in as many passages together and each."""
    sql = "SELECT count(*) FROM (SELECT 1 FROM chunk_fts WHERE chunk_fts MATCH ? LIMIT ?)"
    counted = sorted((db.execute(sql, (word, most + 1)).fetchone()[0], word) for word in words)
    chosen, n_passages = [], 0
    for number, word in counted:
        n_passages += number
        if 0 < number <= most_each and n_passages <= most:
            chosen.append(word)
    return chosen


def _scored(db: sqlite3.Connection, expression: str, limit: int) -> list[tuple[int, float]]:
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
