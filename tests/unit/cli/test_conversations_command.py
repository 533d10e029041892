"""`edge conversations`: what it lists, shows, finds, writes, reads and deletes, and its exit codes."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from edge.conversation import Attachment, ConversationStore
from edge.types import Message
from edge_cli.app import App
from edge_cli.completers import complete_conversation

Call = Callable[..., Any]


@pytest.fixture
def store() -> Iterator[ConversationStore]:
    app = App()
    with app.store(app.settings()) as store:
        yield store


def fill(store: ConversationStore, question: str = "How do pelicans fish?", answer: str = "With **nets** of skin.") -> str:
    info = store.create(model="smollm2-135m", system="Be brief")
    attached = [Attachment("notes.md", "beak")]
    node = store.append(info.id, Message("user", question), parent=None, attachments=attached)
    store.append(info.id, Message("assistant", answer), parent=node.id, model="smollm2-135m")
    return info.id


def set_age(days: float, id: str) -> None:
    """Make a conversation look old."""
    path = App().settings().paths.conversations_file
    with sqlite3.connect(path) as db:
        db.execute("UPDATE conversation SET updated = ? WHERE id = ?", (time.time() - days * 86400, id))
    db.close()


def test_ls(call: Call, store: ConversationStore) -> None:
    result = call("conversations", "ls")
    assert (result.code, result.out) == (0, "")
    assert "edge chat" in result.err
    first, second = fill(store), fill(store, "Newer")
    lines = call("conversations", "ls").out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == [second, first]
    assert "How do pelicans fish?" in lines[-1]
    found = json.loads(call("conversations", "ls", "--json").out)
    assert [(one["id"], one["title"], one["n_messages"]) for one in found] == [
        (second, "Newer", 2),
        (first, "How do pelicans fish?", 2),
    ]
    assert [one["id"] for one in json.loads(call("conversations", "ls", "--json", "-n", "1").out)] == [second]


def test_a_terminal_gets_the_newest_and_the_number_of_the_others(
    call: Call, store: ConversationStore, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(32):
        store.create(title=f"chat {number}")
    screen = terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        result = call("conversations", "ls")
    assert "chat 31" in screen.written()
    assert "chat 1\n" not in screen.written()
    assert "2 more" in result.err
    assert len(call("conversations", "ls").out.splitlines()) >= 32


def test_show(call: Call, store: ConversationStore) -> None:
    id = fill(store)
    result = call("conversations", "show", id[:11])
    assert result.code == 0
    for text in ("How do pelicans fish?", "With **nets** of skin.", "Be brief", "You", "smollm2-135m", "notes.md", id):
        assert text in result.out
    found = json.loads(call("conversations", "show", id, "--json").out)
    assert [message["role"] for message in found["messages"]] == ["user", "assistant"]
    assert found["messages"][0]["attachments"] == [{"name": "notes.md", "text": "beak"}]
    assert (found["id"], found["system"]) == (id, "Be brief")


def test_show_draws_markdown_on_a_terminal(
    call: Call, store: ConversationStore, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = fill(store)
    screen = terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    call("conversations", "show", id)
    assert "nets" in screen.written()
    assert "**nets**" not in screen.written()


def test_text_of_a_model_cannot_control_the_terminal(call: Call, store: ConversationStore) -> None:
    id = fill(store, "\x1b]0;title\x07question", "\x1b[2Janswer \x9b31m")
    for command in (["show", id], ["search", "question"], ["ls"], ["search", "answer"]):
        out = call("conversations", *command).out
        assert not set(out) & {"\x1b", "\x07", "\x9b"}


def test_search_marks_the_words_on_a_terminal_and_says_when_there_is_nothing(
    call: Call, store: ConversationStore, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = fill(store)
    result = call("conversations", "search", "skin")
    assert result.code == 0
    assert result.out.splitlines()[-1].startswith(id)
    [hit] = json.loads(call("conversations", "search", "skin", "--json").out)
    [[start, end]] = hit["matches"]
    assert hit["snippet"][start:end] == "skin"
    assert (hit["id"], hit["title"]) == (id, "How do pelicans fish?")
    nothing = call("conversations", "search", "walrus")
    assert (nothing.code, nothing.out) == (1, "")
    assert "walrus" in nothing.err
    assert json.loads(call("conversations", "search", "walrus", "--json").out) == []
    screen = terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    call("conversations", "search", "skin")
    assert "\x1b[33mskin\x1b[0m" in screen.written()
    assert "How do pelicans fish?" in screen.written()


def test_export_to_stdout_a_file_and_a_folder(call: Call, store: ConversationStore, tmp_path: Path) -> None:
    id, other = fill(store), fill(store, "Other question")
    assert call("conversations", "export", id).out == store.export_markdown(id)
    assert call("conversations", "export", id, "--format", "json").out == store.export_json(id)
    file = tmp_path / "x.json"
    assert call("conversations", "export", id, "-o", str(file)).code == 0
    assert file.read_text() == store.export_json(id)
    assert os.name != "posix" or file.stat().st_mode & 0o077 == 0
    again = call("conversations", "export", other, "-o", str(file))
    assert again.code == 2
    assert "--force" in again.err
    assert file.read_text() == store.export_json(id)
    assert call("conversations", "export", other, "-o", str(file), "--force").code == 0
    assert file.read_text() == store.export_json(other)
    folder = tmp_path / "all"
    assert call("conversations", "export", "--all", "-o", str(folder)).code == 0
    assert sorted(path.name for path in folder.iterdir()) == [f"how-do-pelicans-fish-{id}.md", f"other-question-{other}.md"]
    for arguments in ([], ["--all", id], ["--all"], [id, other]):
        assert call("conversations", "export", *arguments).code == 2


def test_what_was_exported_is_imported_once(call: Call, store: ConversationStore, tmp_path: Path) -> None:
    id = fill(store)
    call("conversations", "export", id, "-o", str(tmp_path / "x.json"))
    store.delete(id)
    result = call("conversations", "import", str(tmp_path / "x.json"))
    assert result.code == 0
    new = result.out.split()[0]
    assert store.get(new).title == "How do pelicans fish?"
    assert "1 conversation imported (2 messages)" in result.err
    again = call("conversations", "import", str(tmp_path / "x.json"), "--json")
    [report] = json.loads(again.out)
    assert (report["added"], [one["id"] for one in report["known"]]) == ([], [new])
    assert len(store.list()) == 1


def test_a_pipe_from_another_machine_is_imported(call: Call, store: ConversationStore) -> None:
    id = fill(store)
    for text in (store.export_json(id), store.export_markdown(id)):
        result = call("conversations", "import", "-", stdin=text.encode())
        assert result.code == 0
        assert store.get(result.out.split()[0]).title == "How do pelicans fish?"
    [report] = json.loads(call("conversations", "import", "-", "--json", stdin=text.encode()).out)
    assert report["file"] == "stdin", "not the file that it is kept in meanwhile"
    assert call("conversations", "import", "-", stdin=b"nothing").code == 1
    assert call("conversations", "import", "-", stdin=b"").code == 1


def test_import_without_a_stdin(call: Call, store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)  # as `<&-` leaves it
    result = call("conversations", "import", "-")
    assert (result.code, "bug" in result.err) == (1, False)


def test_export_tells_the_files_as_json(call: Call, store: ConversationStore, tmp_path: Path) -> None:
    id = fill(store)
    written = json.loads(call("conversations", "export", "--all", "-o", str(tmp_path), "--json").out)
    assert [(one["id"], Path(one["path"]).read_text()) for one in written] == [(id, store.export_markdown(id))]
    assert call("conversations", "export", id, "--json").code == 2


def test_import_goes_on_after_a_bad_file_and_damage_and_says_so(call: Call, store: ConversationStore, tmp_path: Path) -> None:
    message = {"author": {"role": "user"}, "content": {"content_type": "text", "parts": ["hi"]}}
    good = {"title": "good", "conversation_id": "1", "mapping": {"u": {"message": message, "parent": None}}}
    (tmp_path / "c.json").write_text(json.dumps([good, {"title": "bad"}]))
    result = call("conversations", "import", str(tmp_path / "missing"), str(tmp_path / "c.json"))
    assert result.code == 2
    assert "There is no file" in result.err
    assert "One conversation has no messages" in result.err
    assert [info.title for info in store.list()] == ["good"]
    assert call("conversations", "import", str(tmp_path / "c.json")).code == 1


def test_rm_by_id(call: Call, store: ConversationStore) -> None:
    first, second = fill(store), fill(store, "Other")
    result = call("conversations", "rm", first)
    assert result.code == 0
    assert "How do pelicans fish?" in result.err
    assert [info.id for info in store.list()] == [second]
    assert json.loads(call("conversations", "rm", second, "--json").out) == [{"id": second, "title": "Other"}]
    assert store.list() == []


def test_rm_deletes_what_was_typed_from_the_input_history_too(call: Call, store: ConversationStore, own_home: Path) -> None:
    history = own_home / "data" / "chat-history.jsonl"
    history.write_text('"How do pelicans fish?"\n"something else"\n"a draft"\n')
    id = fill(store)
    store.set_draft(id, "a draft")
    assert call("conversations", "rm", id).code == 0
    assert history.read_text() == '"something else"\n'


def test_nothing_is_deleted_if_one_id_is_wrong(call: Call, store: ConversationStore) -> None:
    id = fill(store)
    result = call("conversations", "rm", id, "zzz")
    assert result.code == 2
    assert "edge conversations ls" in result.err
    assert len(store.list()) == 1


def test_rm_by_age_asks_and_needs_a_terminal_to_ask(
    call: Call, store: ConversationStore, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = fill(store, "Old"), fill(store, "New")
    set_age(100, old)
    refused = call("conversations", "rm", "--older-than", "90d")
    assert (refused.code, len(store.list())) == (2, 2)
    assert "--yes" in refused.err
    assert call("conversations", "rm", "--older-than", "200d").code == 0
    asked: list[str] = []

    def confirm(text: str, **options: Any) -> bool:
        asked.append(text)
        return len(asked) > 1

    monkeypatch.setattr(click, "confirm", confirm)
    for expected in (1, 0):
        screen = terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        assert call("conversations", "rm", "--older-than", "3m").code == expected
        assert "Old" in screen.written()
    assert asked == ["Delete 1 conversation for good?"] * 2
    assert [info.id for info in store.list()] == [new]
    set_age(2, new)
    assert call("conversations", "rm", "--older-than", "1d", "--yes").code == 0
    assert store.list() == []


@pytest.mark.parametrize("age", ["", "soon", "30", "-1d", "1.5d", "d", "99999999999d"])
def test_an_age_is_a_number_and_a_unit(call: Call, store: ConversationStore, age: str) -> None:
    result = call("conversations", "rm", "--older-than", age)
    assert result.code == 2
    assert "30d" in result.err


@pytest.mark.parametrize(
    "arguments", [["show"], ["show", "zzz"], ["export", "zzz"], ["rm"], ["search"], ["rm", "x", "--older-than", "1d"]]
)
def test_wrong_usage(call: Call, store: ConversationStore, arguments: list[str]) -> None:
    fill(store)
    assert call("conversations", *arguments).code == 2
    assert len(store.list()) == 1


def test_ids_are_completed_with_their_titles(store: ConversationStore) -> None:
    ids = {fill(store, "One"), fill(store, "Two")}
    found = complete_conversation(click.Context(click.Command("x")), None, "")
    assert {item.value for item in found} == ids
    assert {item.help for item in found} == {"One", "Two"}
