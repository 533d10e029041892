"""Reads the log of Simon Willison's `llm`: logs.db, in its older form (responses) and its newer one (threads of messages).

The file is opened read-only, and only real tables are read, each query within a time: the file may be anybody's.

Source: https://llm.datasette.io/en/stable/logging.html
"""

# ruff: noqa: S608 -- SQL is put together from constants; values are always bound.

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path, PurePath
from typing import Any

from edge.conversation.db import APPLICATION_ID
from edge.conversation.files import AttachmentFile
from edge.conversation.foreign import ForeignNode, Found, as_dict, as_list, as_seconds, as_text, fenced, make_export, make_node
from edge.conversation.tree import ALPHABET, to_line
from edge.errors import StorageError
from edge.types import Role

__all__ = ["read_log"]

_MAX_QUERY_S = 60.0
_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "tool": "tool"}
_TABLES: dict[str, str] = {
    "conversations": "id name",
    "responses": "id conversation_id model resolved_model prompt system response datetime_utc",
    "prompt_fragments": "response_id fragment_id order",
    "system_fragments": "response_id fragment_id order",
    "fragments": "id content source",
    "prompt_attachments": "response_id attachment_id order",
    "attachments": "id type path url content",
    "tool_calls": "id response_id name arguments",
    "tool_results": "id response_id name output",
    "threads": "id name tip_message_hash",
    "turns": "id thread_id parent_message_hash tip_message_hash model resolved_model datetime_utc",
    "messages": "hash parent_hash role",
    "parts": "message_hash position type tool_name text payload",
}
"""The columns that are read."""

_Row = dict[str, Any]


def read_log(path: Path) -> Iterator[Found]:
    """Yield the conversations of a log.

    Raises:
        StorageError: it cannot be opened, or is the database of another program.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            tables = _Tables(db, path)
            newer = set(tables.ids("threads", "id"))
            older = dict.fromkeys([*tables.ids("conversations", "id"), *tables.ids("responses", "conversation_id")])
            for id in dict.fromkeys([*older, *sorted(newer)]):
                # A conversation that went on in the newer form has all of its messages there.
                yield from _read_one(tables, id, _read_thread if id in newer else _read_responses)
    except sqlite3.Error as error:
        raise StorageError(
            f"{path} cannot be read as the log of llm: {error}.",
            "Copy it, and import the copy: sqlite3 logs.db '.backup copy.db'",
        ) from error


class _Tables:
    """The tables of a log. A missing column is None in every row, and a missing table has no rows."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        db.text_factory = lambda data: data.decode("utf-8", "replace")
        db.execute("PRAGMA query_only = ON")
        db.execute("PRAGMA trusted_schema = OFF")
        if db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
            raise StorageError(
                f"{path} is edge's own store of conversations.",
                f"Export from it first: EDGE_DATA_DIR={path.parent} edge conversations export --all --format json -o FOLDER",
            )
        sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE TABLE%'"  # no view, no virtual table
        real = {name for (name,) in db.execute(sql)} & _TABLES.keys()
        self._columns = {name: {row[1] for row in db.execute(f"PRAGMA table_info({name})")} for name in real}
        if not real & {"responses", "threads"}:
            raise StorageError(
                f"{path} is the database of another program: it has neither the responses nor the threads of llm.",
                "The path of llm's log is printed by: llm logs path",
            )

    def ids(self, table: str, column: str) -> list[str]:
        """Return the texts of a column, each once, in order."""
        return list(dict.fromkeys(id for row in self.rows(table, order=column) if (id := as_text(row[column]))))

    def rows(self, table: str, column: str = "", value: object = None, *, order: str = "") -> list[_Row]:
        """Return rows of a table, all or those with a value in a column.

        Raises:
            sqlite3.Error: the file is damaged, or this takes too long.
        """
        there, wanted = self._columns.get(table, set()), _TABLES[table].split()
        if not there or (column and column not in there):
            return []
        selected = ", ".join(_column(table, name) if name in there else "NULL" for name in wanted)
        where = f'WHERE "{column}" = ?' if column else ""
        sql = f'SELECT {selected} FROM "{table}" {where} ' + (f'ORDER BY "{order}"' if order in there else "ORDER BY rowid")
        deadline = time.monotonic() + _MAX_QUERY_S
        self._db.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
        return [dict(zip(wanted, row, strict=True)) for row in self._db.execute(sql, (value,) if column else ())]

    def row(self, table: str, column: str, value: object) -> _Row:
        """Return the first row with a value in a column; {} if there is none."""
        return next(iter(self.rows(table, column, value)), {})


class _Tree:
    """Collects the messages of a conversation.

    The id of a message depends on its text and on those before it, so that it is the same in the older and the newer form.
    """

    def __init__(self, id: str) -> None:
        self._id = id
        self._nodes: dict[str, ForeignNode] = {}
        self._system = ""

    def add(
        self, above: str, role: str, text: str, files: Sequence[AttachmentFile] = (), *, name: str = "", turn: Mapping[str, Any]
    ) -> str:
        """Add a message, and return its id; that of the message above it if there is nothing in it."""
        if role == "system":
            self._system = self._system or text
            return above
        if role not in _ROLES or not (text.strip() or files):
            return above
        created = as_seconds(turn.get("datetime_utc"))
        content = repr((above, role, text, [(file.name, file.text) for file in files]))
        id = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        model = as_text(turn.get("resolved_model")) or as_text(turn.get("model")) if role == "assistant" else ""
        options = {"attachments": list(files), "name": name or None, "model": model}
        node = make_node(_ROLES[role], text, program="llm", id=id, **options)
        self._nodes.setdefault(id, ForeignNode(above or None, node, created))
        return id

    def export(self, title: str, head: str) -> Found | None:
        """Return the conversation; None if it is empty."""
        return make_export(
            "llm", self._id, self._nodes, head or None, title=title, system=self._system, created=_time_in(self._id)
        )


def _read_one(tables: _Tables, id: str, read: Callable[[_Tables, str], Found | None]) -> Iterator[Found]:
    try:
        found = read(tables, id)
    except sqlite3.Error as error:
        found = f"A conversation of llm cannot be read: {error}."
    if found is not None:
        yield found


def _read_thread(tables: _Tables, id: str) -> Found | None:
    """Return a conversation of the newer form, with its branches."""
    about, turns = tables.row("threads", "id", id), tables.rows("turns", "thread_id", id, order="id")
    tip, tree = as_text(about.get("tip_message_hash")), _Tree(id)
    of_message = {as_text(turn[end]): turn for end in ("parent_message_hash", "tip_message_hash") for turn in turns}
    ids: dict[str, str] = {}
    for last in [*(as_text(turn["tip_message_hash"]) for turn in turns), tip]:
        path: dict[str, _Row] = {}
        at = last
        while at and at not in ids and at not in path:
            path[at] = tables.row("messages", "hash", at)
            at = as_text(path[at].get("parent_hash"))
        for hash, message in reversed(path.items()):
            role, (text, files, tool) = as_text(message.get("role")), _parts(tables, hash)
            above = ids.get(as_text(message.get("parent_hash")), "")
            ids[hash] = tree.add(above, "tool" if tool else role, text, files, name=tool, turn=of_message.get(hash, {}))
    named = tables.row("conversations", "id", id)  # of the older form, which has the first question
    return tree.export(as_text(named.get("name")) or as_text(about.get("name")), ids.get(tip, ""))


def _parts(tables: _Tables, hash: str) -> tuple[str, list[AttachmentFile], str]:
    """Return the text of a message of the newer form, its attachments, and the tool whose result it is."""
    texts: list[str] = []
    files: list[AttachmentFile] = []
    tools: list[str] = []
    for row in tables.rows("parts", "message_hash", hash, order="position"):
        about = _json(row["payload"])
        if row["type"] == "text":
            pieces = [as_dict(piece) for piece in as_list(about.get("text_ref"))]
            used = [piece["fragment"] for piece in pieces if isinstance(piece.get("fragment"), int)]
            files += [_fragment(tables.row("fragments", "id", number)) for number in used]
            literal = "".join(as_text(piece.get("literal")) for piece in pieces)
            texts.append(as_text(row["text"]) or literal.strip("\n") or as_text(about.get("text")))
        elif row["type"] == "tool_call":
            arguments = about.get("arguments", {})
            texts.append(_call(as_text(row["tool_name"]), json.dumps(arguments, ensure_ascii=False)))
        elif row["type"] == "tool_result":
            tools.append(as_text(row["tool_name"]) or "tool")
            texts.append(_result(as_text(about.get("output"))))
        elif row["type"] == "attachment":
            file = tables.row("attachments", "id", as_dict(about.get("attachment")).get("id"))
            files += _attachment(file, texts)
    return "\n\n".join(text for text in texts if text.strip()), files, tools[0] if tools else ""


def _read_responses(tables: _Tables, id: str) -> Found | None:
    """Return a conversation of the older form."""
    tree, above = _Tree(id), ""
    for turn in tables.rows("responses", "conversation_id", id, order="id"):
        response = turn["id"]
        system = [file.text for file in _fragments(tables, "system_fragments", response)]
        above = tree.add(above, "system", "\n\n".join([*system, as_text(turn["system"])]).strip(), turn=turn)
        for result in tables.rows("tool_results", "response_id", response, order="id"):
            text, tool = _result(as_text(result["output"])), as_text(result["name"]) or "tool"
            above = tree.add(above, "tool", text, name=tool, turn=turn)
        texts = [as_text(turn["prompt"])]
        files = _fragments(tables, "prompt_fragments", response)
        for row in tables.rows("prompt_attachments", "response_id", response, order="order"):
            files += _attachment(tables.row("attachments", "id", row["attachment_id"]), texts)
        above = tree.add(above, "user", "\n\n".join(text for text in texts if text.strip()), files, turn=turn)
        calls = tables.rows("tool_calls", "response_id", response, order="id")
        texts = [as_text(turn["response"]), *(_call(as_text(call["name"]), as_text(call["arguments"])) for call in calls)]
        above = tree.add(above, "assistant", "\n\n".join(text for text in texts if text.strip()), turn=turn)
    return tree.export(as_text(tables.row("conversations", "id", id).get("name")), above)


def _fragments(tables: _Tables, table: str, response: object) -> list[AttachmentFile]:
    rows = tables.rows(table, "response_id", response, order="order")
    return [_fragment(tables.row("fragments", "id", row["fragment_id"])) for row in rows]


def _fragment(row: _Row) -> AttachmentFile:
    name = PurePath(as_text(row.get("source"))).name
    return AttachmentFile(name=to_line(name) or "fragment", text=as_text(row.get("content")))


def _attachment(row: _Row, texts: list[str]) -> list[AttachmentFile]:
    """Return a text that was attached; of a picture or sound, add the name to the texts."""
    kind, place = as_text(row.get("type")), as_text(row.get("path")) or as_text(row.get("url"))
    name = to_line(PurePath(place).name) or "attachment"
    data = row.get("content")
    if kind.startswith("text/") and isinstance(data, bytes):
        return [AttachmentFile(name=name, text=data.decode("utf-8", "replace"))]
    texts.append(f"[{to_line(kind.partition('/')[0]) or 'file'}: {name}]")
    return []


def _time_in(id: str) -> float:
    """Return the time in a ULID, which is in milliseconds since 1970; 0 if it is another kind of id."""
    # Both forms have the same id for a conversation, but the newer one has the times of its newest turns only.
    places = [ALPHABET.find(letter) for letter in id.lower()[:10]]
    if len(id) != 26 or -1 in places:
        return 0.0
    return as_seconds(sum(place << 5 * (9 - at) for at, place in enumerate(places)) / 1000)


def _column(table: str, name: str) -> str:
    """Return the SQL for a column. Pictures, of many megabytes, are not read."""
    is_content = (table, name) == ("attachments", "content")
    return """CASE WHEN "type" LIKE 'text/%' THEN "content" END""" if is_content else f'"{name}"'


def _call(name: str, arguments: str) -> str:
    return fenced(f"{to_line(name)}({arguments})")


def _result(output: str) -> str:
    return fenced(output) if output.strip() else ""


def _json(text: object) -> dict[str, Any]:
    try:
        return as_dict(json.loads(as_text(text) or "{}"))
    except (ValueError, RecursionError):
        return {}
