"""Conversations of ChatGPT and llm, and files of edge: what comes in, once, and what happens to damaged ones."""

from __future__ import annotations

import json
import random
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge.conversation import ConversationStore
from edge.conversation.imports import import_file
from edge.errors import EdgeError, StorageError, UsageError
from edge.types import Message


@pytest.fixture
def store() -> Iterator[ConversationStore]:
    with ConversationStore(None) as store:
        yield store


def said(id: str, parent: str | None, role: str, text: Any, *, at: float | None = 1.7e9, **more: Any) -> dict[str, Any]:
    """Return a node of ChatGPT's mapping."""
    content = text if isinstance(text, dict) else {"content_type": "text", "parts": [text]}
    author = {"role": role, "name": more.pop("name", None), "metadata": {}}
    about = more.pop("metadata", {})
    message = {"id": id, "author": author, "create_time": at, "update_time": None, "content": content, "metadata": about}
    message |= {"status": "finished_successfully", "end_turn": True, "weight": 1.0, "recipient": "all", **more}
    return {"id": id, "message": message, "parent": parent, "children": []}


def chat(*nodes: dict[str, Any], title: str | None = "A chat", head: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a conversation of ChatGPT, with the empty root that it has there."""
    root = {"id": "root", "message": None, "parent": None, "children": []}
    mapping = {node["id"]: node for node in (root, *nodes)}
    for node in nodes:
        if node["parent"] in mapping:
            mapping[node["parent"]]["children"].append(node["id"])
    about = {"title": title, "create_time": 1.7e9, "update_time": 1.7e9 + 60, "conversation_id": "c1", "moderation_results": []}
    return {**about, "mapping": mapping, "current_node": head or (nodes[-1]["id"] if nodes else None), **more}


SIMPLE = chat(said("u", "root", "user", "What is 2 + 2?"), said("a", "u", "assistant", "4", metadata={"model_slug": "gpt-4o"}))


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def path_of(store: ConversationStore, place: int = 0) -> list[tuple[str, str]]:
    return [(node.role, node.content) for node in store.path(store.list()[place].id)]


# ChatGPT


def test_a_conversation_of_chatgpt_comes_with_its_title_times_and_model(store: ConversationStore, tmp_path: Path) -> None:
    report = import_file(store, write(tmp_path / "conversations.json", [SIMPLE]))
    assert (len(report.added), report.problems) == (1, [])
    [info] = store.list()
    assert (info.title, info.model, info.created, info.updated) == ("A chat", "", 1.7e9, 1.7e9 + 60)
    question, answer = store.path(info.id)
    assert (question.role, question.content, question.created) == ("user", "What is 2 + 2?", 1.7e9)
    assert (answer.role, answer.content, answer.model, answer.parent) == ("assistant", "4", "gpt-4o", question.id)


@pytest.mark.parametrize("form", ["list", "single", "object", "folder", "zip", "numbered"])
def test_the_forms_of_the_export(store: ConversationStore, tmp_path: Path, form: str) -> None:
    other = {**SIMPLE, "conversation_id": "c2", "title": "Other"}
    path = tmp_path / "export"
    if form == "folder":
        path.mkdir()
        write(path / "conversations.json", [SIMPLE, other])
        write(path / "user.json", {"id": "me"})
    elif form in ("zip", "numbered"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("user.json", "{}")
            parts = {"conversations-000.json": [SIMPLE], "conversations-001.json": [other]}
            for name, value in parts.items() if form == "numbered" else [("x/conversations.json", [SIMPLE, other])]:
                archive.writestr(name, json.dumps(value))
    else:
        write(path, {"list": [SIMPLE, other], "single": SIMPLE, "object": {"conversations": [SIMPLE, other]}}[form])
    report = import_file(store, path)
    assert report.problems == []
    assert sorted(one.conversation.title for one in report.added) == (["A chat"] if form == "single" else ["A chat", "Other"])


def test_branches_become_branches_and_the_current_one_is_the_head(store: ConversationStore, tmp_path: Path) -> None:
    branched = chat(
        said("u", "root", "user", "Tell a joke"),
        said("a1", "u", "assistant", "first", at=1.7e9 + 1),
        said("a2", "u", "assistant", "second", at=1.7e9 + 2),
        said("u1", "a1", "user", "again", at=1.7e9 + 3),
        head="a1",
    )
    import_file(store, write(tmp_path / "c.json", [branched]))
    [info] = store.list()
    assert path_of(store) == [("user", "Tell a joke"), ("assistant", "first")]
    question, first = store.path(info.id)
    assert [node.content for node in store.siblings(first.id)] == ["first", "second"]
    assert store.leaf(first.id).content == "again"
    assert question.parent is None


def test_hidden_messages_are_passed_over_and_a_shown_system_message_is_the_system_prompt(
    store: ConversationStore, tmp_path: Path
) -> None:
    hidden = {"is_visually_hidden_from_conversation": True}
    secret = {"content_type": "user_editable_context", "user_profile": "me", "user_instructions": "rhyme"}
    import_file(
        store,
        write(
            tmp_path / "c.json",
            [
                chat(
                    said("s0", "root", "system", "", metadata=hidden),
                    said("s1", "s0", "user", secret, metadata={**hidden, "is_user_system_message": True}),
                    said("s2", "s1", "system", "You are a pirate."),
                    said("u", "s2", "user", "Hello"),
                    said("t", "u", "assistant", {"content_type": "thoughts", "thoughts": [{"content": "hm"}]}),
                    said("r", "t", "assistant", {"content_type": "reasoning_recap", "content": "Thought for 3 s"}),
                    said("n", "r", "tool", "Do not show anything.", name="dalle.text2im"),
                    said("e", "n", "assistant", ""),
                    said("a", "e", "assistant", "Ahoy"),
                )
            ],
        ),
    )
    [info] = store.list()
    assert info.system == "You are a pirate."
    assert path_of(store) == [("user", "Hello"), ("assistant", "Ahoy")]
    assert store.search("rhyme") == []


def test_parts_tools_and_pictures_become_text(store: ConversationStore, tmp_path: Path) -> None:
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "sediment://file_1", "width": 10, "height": 10}
    sound = {"content_type": "audio_asset_pointer", "asset_pointer": "sediment://file_2", "format": "wav"}
    nodes = [
        said(
            "u",
            "root",
            "user",
            {"content_type": "multimodal_text", "parts": [picture, "What is this?", {"text": "and that?"}]},
            metadata={"attachments": [{"name": "a.png"}, {"name": "data.csv"}]},
        ),
        said("c", "u", "assistant", {"content_type": "code", "language": "unknown", "text": "1 + 1"}, recipient="python"),
        said("x", "c", "tool", {"content_type": "execution_output", "text": "2"}, name="python"),
        said("q", "x", "tool", {"content_type": "tether_quote", "title": "E", "text": "words"}, name="b"),
        said("a", "q", "assistant", "It is \ue200cite\ue202turn0search1\ue201two."),
        said("v", "a", "user", {"content_type": "multimodal_text", "parts": [
            {"content_type": "audio_transcription", "text": "Thank you"}, sound]}),
        said("w", "v", "assistant", {"content_type": "multimodal_text", "parts": [sound]}),
        said("z", "w", "user", {"content_type": "new_in_2030", "text": "future"}),
    ]  # fmt: skip
    import_file(store, write(tmp_path / "c.json", [chat(*nodes)]))
    assert path_of(store) == [
        ("user", "[image]\n\nWhat is this?\n\nand that?\n\n[file: data.csv]"),
        ("assistant", "```python\n1 + 1\n```"),
        ("tool", "```\n2\n```"),
        ("tool", "E\n\n```\nwords\n```"),
        ("assistant", "It is two."),
        ("user", "Thank you"),
        ("assistant", "[audio]"),
        ("user", "future"),
    ]
    [info] = store.list()
    assert [node.name for node in store.path(info.id)][:4] == [None, None, "python", "b"]


def test_a_second_import_adds_nothing_and_a_later_export_only_what_is_new(store: ConversationStore, tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", [SIMPLE])
    import_file(store, path)
    again = import_file(store, path)
    assert (len(again.added), len(again.grown), len(again.known)) == (0, 0, 1)
    more = [said("u", "root", "user", "What is 2 + 2?"), said("a", "u", "assistant", "4"), said("u2", "a", "user", "Sure?")]
    write(path, [chat(*more, said("a2", "u2", "assistant", "Yes", at=1.7e9 + 90), update_time=1.7e9 + 90)])
    later = import_file(store, path)
    assert [one.n_messages for one in later.grown] == [2]
    [info] = store.list()
    assert [text for _, text in path_of(store)] == ["What is 2 + 2?", "4", "Sure?", "Yes"]
    assert info.updated == 1.7e9 + 90


def test_a_conversation_that_went_on_here_keeps_its_path(store: ConversationStore, tmp_path: Path) -> None:
    import_file(store, write(tmp_path / "c.json", [SIMPLE]))
    [info] = store.list()
    store.append(info.id, Message("user", "mine"), parent=info.head)
    more = [said("u", "root", "user", "What is 2 + 2?"), said("a", "u", "assistant", "4"), said("u2", "a", "user", "theirs")]
    import_file(store, write(tmp_path / "c.json", [chat(*more)]))
    assert [text for _, text in path_of(store)] == ["What is 2 + 2?", "4", "mine"]
    assert [node.content for node in store.siblings(store.path(info.id)[-1].id)] == ["mine", "theirs"]


def test_conversations_are_listed_by_their_dates_among_those_that_were_here(store: ConversationStore, tmp_path: Path) -> None:
    old, new = (
        {**SIMPLE, "conversation_id": str(at), "title": str(at), "create_time": at, "update_time": at} for at in (1e9, 4e9)
    )
    store.create(title="mine")
    import_file(store, write(tmp_path / "c.json", [old, new]))
    assert [info.title for info in store.list()] == ["4000000000.0", "mine", "1000000000.0"]


def test_a_conversation_without_a_title_is_named_after_its_question(store: ConversationStore, tmp_path: Path) -> None:
    import_file(store, write(tmp_path / "c.json", [chat(said("u", "root", "user", "What\nnow?"), title=None)]))
    assert store.list()[0].title == "What"


HOSTILE: list[Any] = [
    {"mapping": {"a": {"parent": "b", "message": None}, "b": {"parent": "a", "message": None}}},
    {"mapping": {"a": None, "b": 3, "c": [], "d": {"message": "text"}, "e": {"message": {"author": 1, "content": 2}}}},
    {"mapping": {"a": {"parent": {"x": 1}, "children": {"y": 2}, "message": {"content": {"parts": {"z": 1}}}}}},
    {"mapping": {}, "current_node": 5, "title": ["x"]},
    {"mapping": []},
    {"title": "none"},
    3,
    None,
    [],
    "text",
]


def test_hostile_conversations_do_not_stop_the_others(store: ConversationStore, tmp_path: Path) -> None:
    report = import_file(store, write(tmp_path / "c.json", [*HOSTILE, SIMPLE]))
    assert [one.conversation.title for one in report.added] == ["A chat"]
    assert any("no messages" in problem for problem in report.problems)


def test_circles_strange_values_and_long_chains(store: ConversationStore, tmp_path: Path) -> None:
    circle = chat(said("u", "a", "user", "chicken"), said("a", "u", "assistant", "egg"), head="nowhere")
    strange = chat(
        said("u", "gone", "user", "\ud800 lone \u0000", at=float("inf")),
        said("a", "u", "assistant", "x", at=-5, metadata={"model_slug": {"no": 1}}, status=7),
        conversation_id="c2",
        create_time=1e300,
        update_time="2024-05-01T10:00:00Z",
    )
    nodes = [said(str(n), str(n - 1) if n else "root", "user" if n % 2 else "assistant", f"m{n}") for n in range(3000)]
    long = chat(*nodes, conversation_id="c3", title="long")
    report = import_file(store, write(tmp_path / "c.json", [circle, strange, long]))
    assert (len(report.added), report.problems) == (3, [])
    assert [len(store.path(info.id)) for info in store.list() if info.title == "long"] == [3000]
    assert any("\ufffd lone" in node.content for info in store.list() for node in store.path(info.id))


def test_any_values_anywhere_never_stop_the_import(store: ConversationStore, tmp_path: Path) -> None:
    chance = random.Random(11)
    odd: list[Any] = [
        None,
        True,
        -1,
        2**70,
        1e308,
        float("nan"),
        "",
        "\ud800",
        "\u0000\x1b[2J",
        [],
        [[]],
        {},
        {"a": {}},
        "u",
        "a" * 9000,
    ]

    def spoil(value: Any) -> Any:
        if chance.random() < 0.08:
            return chance.choice(odd)
        if isinstance(value, dict):
            return {
                (key if chance.random() > 0.04 else chance.choice(["", "\udfff", "parent"])): spoil(v)
                for key, v in value.items()
            }
        return [spoil(one) for one in value] if isinstance(value, list) else value

    nodes = [said(str(n), str(n - 1) if n else "root", "user" if n % 2 else "assistant", f"m{n}") for n in range(6)]
    for number in range(400):
        spoiled = spoil(chat(*nodes, conversation_id=f"s{number}"))
        report = import_file(store, write(tmp_path / "c.json", [spoiled, {**SIMPLE, "conversation_id": f"g{number}"}]))
        assert "A chat" in [one.conversation.title for one in report.added]
        again = import_file(store, tmp_path / "c.json")
        assert (again.added, again.grown) == ([], [])
    assert store.check() == []
    for info in store.list():
        assert store.export_json(info.id)
        assert "\x1b" not in info.title


@pytest.mark.parametrize("where", ["middle", "end", "deep", "number"])
def test_damage_gives_a_sentence_and_the_rest_goes_on(store: ConversationStore, tmp_path: Path, where: str) -> None:
    parts = [json.dumps({**SIMPLE, "conversation_id": str(n), "title": f"chat {n}"}) for n in range(5)]
    expected = [f"chat {n}" for n in range(5)]
    if where == "middle":
        parts[2] = parts[2].replace('"author"', '"auth', 1)
    elif where == "deep":
        parts[2] = '{"title": ' + "[" * 100_000 + "]" * 100_000 + "}"
    elif where == "number":
        parts[2] = '{"title": ' + "1" * 10_000 + "}"
    text = "[" + ", ".join(parts) + "]"
    text = text[: -len(parts[4]) // 2] if where == "end" else text
    del expected[4 if where == "end" else 2]
    report = import_file(store, write(tmp_path / "c.json", text))
    assert sorted(one.conversation.title for one in report.added) == expected
    assert report.problems
    assert all("damaged" in problem or "too early" in problem for problem in report.problems)


def test_what_is_not_utf8_is_said_and_the_rest_is_read(store: ConversationStore, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(json.dumps([SIMPLE]).encode().replace(b"What is", b"Wh\xff\xfe is"))
    report = import_file(store, path)
    assert "not UTF-8" in report.problems[0]
    assert path_of(store)[0] == ("user", "Wh\ufffd\ufffd is 2 + 2?")
    info = store.create(title="mine")
    store.append(info.id, Message("user", "grosse"), parent=None)
    path.write_bytes(store.export_markdown(info.id).encode().replace(b"grosse", b"gr\xff"))
    with pytest.raises(StorageError, match="damaged"):
        import_file(store, path)


def test_random_damage_never_raises_anything_but_an_error_of_edge(store: ConversationStore, tmp_path: Path) -> None:
    chance = random.Random(5)
    good = bytearray(json.dumps([{**SIMPLE, "conversation_id": str(n)} for n in range(3)]).encode())
    for _ in range(300):
        data = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(data))
            data[at : at + chance.choice([0, 1, 40])] = chance.randbytes(chance.choice([0, 1, 3]))
        path = tmp_path / "c.json"
        path.write_bytes(data)
        try:
            import_file(store, path)
        except EdgeError as error:
            assert error.hint


def test_a_zip_file_with_a_list_of_entries_that_takes_all_memory(
    store: ConversationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(100):
            archive.writestr(f"image-{number}", "")
        archive.writestr("conversations.json", json.dumps([SIMPLE]))
    assert len(import_file(store, path).added) == 1
    monkeypatch.setattr("edge.files._Bounded.most", 5000)
    with pytest.raises(StorageError, match="too many entries"):
        import_file(store, path)


def test_zip_files_that_are_not_the_export(store: ConversationStore, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(StorageError, match=r"no conversations\.json"):
        import_file(store, path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations-1.json", json.dumps([SIMPLE] * 200))
        archive.writestr("conversations-2.json", json.dumps([{**SIMPLE, "conversation_id": "c2"}]))
    data = bytearray(path.read_bytes())
    data[120:160] = bytes(40)
    path.write_bytes(data)
    report = import_file(store, path)
    assert len(report.added) == 1
    assert "conversations-1.json" in report.problems[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StorageError, match="damaged"):
        import_file(store, path)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\0\0\0", b"{", b"[", b"[]", b'{"a": 1}', b"\xff\xfe\x00", b"PK\x03\x04", b"[1, 2]"]
)
def test_other_files_are_refused_with_a_sentence(store: ConversationStore, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    with pytest.raises(StorageError) as caught:
        import_file(store, path)
    assert caught.value.hint
    assert store.list() == []


def test_what_is_no_file(store: ConversationStore, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path, Path("/dev/null"), Path("a\0b")):
        with pytest.raises(UsageError) as caught:
            import_file(store, path)
        assert caught.value.hint


# edge


@pytest.mark.parametrize("form", ["json", "md"])
def test_a_file_of_edge_is_imported_once(store: ConversationStore, tmp_path: Path, form: str) -> None:
    info = store.create(title="mine", system="Be brief")
    node = store.append(info.id, Message("user", "größe"), parent=None)
    store.append(info.id, Message("assistant", "ok"), parent=node.id)
    path = write(tmp_path / "x", store.export_json(info.id) if form == "json" else store.export_markdown(info.id))
    first, second = import_file(store, path), import_file(store, path)
    assert (len(first.added), len(second.added), len(second.known)) == (1, 0, 1)
    assert len(store.list()) == 2
    copy = first.added[0].conversation
    assert copy.id != info.id
    assert [(node.role, node.content) for node in store.path(copy.id)] == [("user", "größe"), ("assistant", "ok")]
    path.write_text(path.read_text().replace("größe", "weite"))
    assert len(import_file(store, path).added) == 1


# llm

OLD = """
CREATE TABLE [conversations] ([id] TEXT PRIMARY KEY, [name] TEXT, [model] TEXT);
CREATE TABLE [responses] ([id] TEXT PRIMARY KEY, [model] TEXT, [prompt] TEXT, [system] TEXT, [prompt_json] TEXT,
    [options_json] TEXT, [response] TEXT, [response_json] TEXT, [conversation_id] TEXT, [duration_ms] INTEGER,
    [datetime_utc] TEXT);
"""
LATER = """
ALTER TABLE responses ADD COLUMN resolved_model TEXT;
CREATE TABLE attachments (id TEXT PRIMARY KEY, type TEXT, path TEXT, url TEXT, content BLOB);
CREATE TABLE prompt_attachments (response_id TEXT, attachment_id TEXT, "order" INTEGER);
CREATE TABLE fragments (id INTEGER PRIMARY KEY, hash TEXT, content TEXT, datetime_utc TEXT, source TEXT);
CREATE TABLE prompt_fragments (response_id TEXT, fragment_id INTEGER, "order" INTEGER);
CREATE TABLE system_fragments (response_id TEXT, fragment_id INTEGER, "order" INTEGER);
CREATE TABLE tool_calls (id INTEGER PRIMARY KEY, response_id TEXT, tool_id INTEGER, name TEXT, arguments TEXT);
CREATE TABLE tool_results (id INTEGER PRIMARY KEY, response_id TEXT, tool_id INTEGER, name TEXT, output TEXT);
"""
NEW = """
CREATE TABLE threads (id TEXT PRIMARY KEY, name TEXT, tip_message_hash TEXT, forked_from TEXT, datetime_utc TEXT);
CREATE TABLE turns (id TEXT PRIMARY KEY, thread_id TEXT, parent_message_hash TEXT, tip_message_hash TEXT, model TEXT,
    resolved_model TEXT, datetime_utc TEXT);
CREATE TABLE messages (hash TEXT PRIMARY KEY, parent_hash TEXT, role TEXT, provider_metadata TEXT);
CREATE TABLE parts (id INTEGER PRIMARY KEY, message_hash TEXT, position INTEGER, type TEXT, tool_name TEXT, text TEXT,
    payload TEXT);
"""
CHAT_ID = "01kf2rw8jhv1x9c2m4p6q8s0tv"


def log(path: Path, schema: str, rows: dict[str, list[dict[str, Any]]]) -> Path:
    """Write a log of llm."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(schema)
        for table, values in rows.items():
            for row in values:
                names = ", ".join(f'"{name}"' for name in row)
                db.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
    return path


def response(number: int, prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    at = f"2024-05-01T10:0{number}:00.5+00:00"
    return {
        "id": f"r{number}",
        "model": "m",
        "prompt": prompt,
        "response": answer,
        "conversation_id": CHAT_ID,
        "datetime_utc": at,
        **more,
    }


BASIC = {
    "conversations": [{"id": CHAT_ID, "name": "Names", "model": "m"}],
    "responses": [response(1, "A name?", "Percy", system="Be brief"), response(2, "Another?", "Wallace")],
}


def test_the_oldest_log_of_llm(store: ConversationStore, tmp_path: Path) -> None:
    report = import_file(store, log(tmp_path / "logs.db", OLD, BASIC))
    assert report.problems == []
    [info] = store.list()
    assert (info.title, info.system) == ("Names", "Be brief")
    assert path_of(store) == [("user", "A name?"), ("assistant", "Percy"), ("user", "Another?"), ("assistant", "Wallace")]
    assert store.path(info.id)[1].model == "m"
    assert store.path(info.id)[0].created == pytest.approx(1714557660.5)
    assert len(import_file(store, tmp_path / "logs.db").known) == 1


def test_fragments_attachments_and_tools_of_llm(store: ConversationStore, tmp_path: Path) -> None:
    rows = {
        **BASIC,
        "responses": [response(1, "Look", "", resolved_model="m-2"), response(2, "", "It is ABC")],
        "fragments": [{"id": 7, "content": "long text", "source": "/home/me/notes.md"}],
        "prompt_fragments": [{"response_id": "r1", "fragment_id": 7, "order": 0}],
        "system_fragments": [{"response_id": "r1", "fragment_id": 7, "order": 0}],
        "attachments": [
            {"id": "x", "type": "image/png", "path": "/pics/cat.png"},
            {"id": "y", "type": "text/plain", "path": None, "content": b"plain"},
        ],
        "prompt_attachments": [
            {"response_id": "r1", "attachment_id": "x", "order": 0},
            {"response_id": "r1", "attachment_id": "y", "order": 1},
        ],
        "tool_calls": [{"response_id": "r1", "name": "upper", "arguments": '{"text": "abc"}'}],
        "tool_results": [{"response_id": "r2", "name": "upper", "output": "ABC"}],
    }
    import_file(store, log(tmp_path / "logs.db", OLD + LATER, rows))
    [info] = store.list()
    question, call, result, answer = store.path(info.id)
    assert info.system == "long text"
    assert question.content == "Look\n\n[image: cat.png]"
    assert [(file.name, file.text) for file in question.attachments] == [("notes.md", "long text"), ("attachment", "plain")]
    assert (call.content, call.model) == ('```\nupper({"text": "abc"})\n```', "m-2")
    assert (result.role, result.name, result.content) == ("tool", "upper", "```\nABC\n```")
    assert answer.content == "It is ABC"


def newer(*texts: str, tip: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return rows of the newer form: a chain of messages, user and assistant in turn, from a system message."""
    names = ["s", *(f"h{n}" for n in range(len(texts)))]
    roles = ["system", *("user" if n % 2 == 0 else "assistant" for n in range(len(texts)))]
    return {
        "threads": [{"id": CHAT_ID, "name": "Thread", "tip_message_hash": names[-1 if tip is None else tip]}],
        "turns": [
            {"id": f"t{n}", "thread_id": CHAT_ID, "parent_message_hash": names[n], "tip_message_hash": names[n + 1],
             "model": "m", "datetime_utc": f"2024-05-01T10:0{n}:00"} for n in range(1, len(texts), 2)
        ],
        "messages": [{"hash": n, "parent_hash": names[i - 1] if i else None, "role": roles[i]} for i, n in enumerate(names)],
        "parts": [
            {"message_hash": name, "position": 0, "type": "text", "text": text}
            for name, text in zip(names, ("Be brief", *texts), strict=True)
        ],
    }  # fmt: skip


def test_the_newer_log_of_llm_with_a_branch(store: ConversationStore, tmp_path: Path) -> None:
    rows = newer("A name?", "Percy", "Another?", "Wallace")
    rows["messages"].append({"hash": "other", "parent_hash": "h2", "role": "assistant"})
    rows["parts"].append({"message_hash": "other", "position": 0, "type": "text", "text": "Wanda"})
    rows["parts"].append({"message_hash": "other", "position": 1, "type": "reasoning", "text": "thinking"})
    rows["turns"].append(
        {"id": "t9", "thread_id": CHAT_ID, "parent_message_hash": "h2", "tip_message_hash": "other", "model": "n"}
    )
    import_file(store, log(tmp_path / "logs.db", NEW, rows))
    [info] = store.list()
    assert (info.title, info.system) == ("Thread", "Be brief")
    assert [text for _, text in path_of(store)] == ["A name?", "Percy", "Another?", "Wallace"]
    assert [(n.content, n.model) for n in store.siblings(store.path(info.id)[-1].id)] == [("Wallace", "m"), ("Wanda", "n")]


def test_text_in_fragments_and_tools_of_the_newer_log(store: ConversationStore, tmp_path: Path) -> None:
    rows = newer("", "", "", "Done")
    rows["parts"] = [
        {"message_hash": "h0", "position": 0, "type": "text", "payload": json.dumps(
            {"text_ref": [{"fragment": 1}, {"literal": "\nWhat is it?"}, {"fragment": "x"}, 3]})},
        {"message_hash": "h1", "position": 0, "type": "tool_call", "tool_name": "up", "payload": '{"arguments": {"a": 1}}'},
        {"message_hash": "h2", "position": 0, "type": "tool_result", "tool_name": "up", "payload": '{"output": "A"}'},
        {"message_hash": "h3", "position": 0, "type": "text", "text": "Done", "payload": "{broken"},
    ]  # fmt: skip
    rows["fragments"] = [{"id": 1, "content": "the text", "source": "https://example.org/page.html"}]
    schema = NEW + "CREATE TABLE fragments (id INTEGER PRIMARY KEY, content TEXT, source TEXT);"
    import_file(store, log(tmp_path / "logs.db", schema, rows))
    question, call, result, answer = store.path(store.list()[0].id)
    assert question.content == "What is it?"
    assert [(file.name, file.text) for file in question.attachments] == [("page.html", "the text")]
    assert call.content == '```\nup({"a": 1})\n```'
    assert (result.role, result.name, result.content) == ("tool", "up", "```\nA\n```")
    assert answer.content == "Done"


def test_a_conversation_that_moved_to_the_newer_form_is_the_same_one(store: ConversationStore, tmp_path: Path) -> None:
    import_file(store, log(tmp_path / "a.db", OLD, BASIC))
    rows = {**BASIC, **newer("A name?", "Percy", "Another?", "Wallace", "Third?", "Wanda")}
    rows["turns"] = rows["turns"][-1:]
    report = import_file(store, log(tmp_path / "b.db", OLD + NEW, rows))
    assert [one.n_messages for one in report.grown] == [2]
    assert len(store.list()) == 1
    assert [text for _, text in path_of(store)][-2:] == ["Third?", "Wanda"]


def test_databases_that_are_not_the_log_or_are_hostile(store: ConversationStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="another program"):
        import_file(store, log(tmp_path / "x.db", "CREATE TABLE bookmarks (id, url);", {}))
    endless = "CREATE VIEW responses AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS id FROM n;"
    with pytest.raises(StorageError, match="another program"):
        import_file(store, log(tmp_path / "x.db", endless, {}))
    with closing(ConversationStore(tmp_path / "own.db")):
        pass
    with pytest.raises(StorageError, match="edge's own") as caught:
        import_file(store, tmp_path / "own.db")
    assert "edge conversations export" in caught.value.hint
    rows = newer("A name?", "Percy")
    rows["messages"][0]["parent_hash"] = "h1"  # a circle
    rows["turns"].append({"id": "t5", "thread_id": CHAT_ID, "tip_message_hash": "gone"})
    assert len(import_file(store, log(tmp_path / "x.db", NEW, rows)).added) == 1
    for cut in (30, 5000, 9000):
        broken = tmp_path / "y.db"
        broken.write_bytes((tmp_path / "x.db").read_bytes()[:cut])
        with pytest.raises(StorageError) as caught:
            import_file(store, broken)
        assert caught.value.hint


def test_the_log_is_not_changed(store: ConversationStore, tmp_path: Path) -> None:
    path = log(tmp_path / "logs.db", OLD, BASIC)
    before = path.read_bytes()
    import_file(store, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["logs.db"]
