"""Finds the problems of a conversation file: damaged pages, keys, trees and search index."""

from __future__ import annotations

import sqlite3

__all__ = ["find_problems"]


def find_problems(db: sqlite3.Connection) -> list[str]:
    """Return the problems of an open store, a line each.

    Args:
        db: in a transaction that may write, because the check of the index asks for it; the caller rolls it back.
    """
    steps = (
        ("PRAGMA integrity_check(20)", lambda row: None if row[0] == "ok" else str(row[0])),
        ("PRAGMA foreign_key_check", lambda row: f"row {row[1]} of {row[0]} refers to nothing"),
        (
            """SELECT n.id FROM node n JOIN node p ON p.id = n.parent WHERE p.conversation <> n.conversation
            UNION SELECT n.id FROM node n JOIN conversation c ON c.head = n.id WHERE c.key <> n.conversation""",
            lambda row: f"message {row[0]} hangs in two conversations",
        ),
        ("INSERT INTO title_fts(title_fts, rank) VALUES ('integrity-check', 1)", str),
        ("INSERT INTO node_fts(node_fts, rank) VALUES ('integrity-check', 1)", str),
    )
    problems: list[str] = []
    for sql, describe in steps:
        try:
            problems += [text for text in map(describe, db.execute(sql)) if text is not None]
        except sqlite3.DatabaseError as error:
            what = "the search index does not match the texts" if "fts" in sql else "the file is damaged"
            problems.append(f"{what}: {error}")
    return problems
