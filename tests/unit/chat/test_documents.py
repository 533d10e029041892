"""Documents in the chat: named in a message, proposed while typing, shown below the answer, opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.backends.fake import FakeBackend
from edge.documents import Collection
from edge_chat.attachments import find_mentions
from edge_chat.documents import is_mention, propose_docs, take_docs
from edge_chat.editor import editor_at
from edge_chat.widgets.fold import Fold
from edge_chat.widgets.passages import Passages
from tests.chat_app import enter, fake_app, say, settle

FILES = {
    "care.md": "# Care\n\nClean the filter of the pump every month, and reset it.\n",
    "reset.md": "# Reset\n\nTo reset the pump, hold the red button.\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with collections "docs" and "manual"."""
    monkeypatch.setenv("EDGE_DATA_DIR", str(tmp_path / "data"))
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    for name in ("docs", "manual"):
        with Collection.open(name, store=tmp_path / "data" / "documents", embedder="") as collection:
            collection.add([tmp_path / name for name in FILES])
    return tmp_path


def make(folder: Path, answer: str = "Hold the button [2]."):
    return fake_app(lambda: FakeBackend(n_ctx=8192, script=lambda turns: answer), cwd=folder)


def passages(app) -> list[Fold]:
    return [fold for one in app.chat_screen.query(Passages) for fold in one.query(Fold)]


@pytest.mark.parametrize(
    ("text", "said", "names"),
    [
        ("@docs How do I reset it?", "How do I reset it?", ["docs"]),
        ("How do I reset @docs:pump, please?", "How do I reset, please?", ["pump"]),
        ("@docs:a and @docs:b: compare", "and: compare", ["a", "b"]),
        ("@docs @docs:docs x", "x", ["docs"]),
        ("see @docs/index.md", "see @docs/index.md", []),
        ("mail me@docs.org", "mail me@docs.org", []),
        ("@docs.md", "@docs.md", []),
        ("@docstring and @./docs", "@docstring and @./docs", []),
        ("nothing", "nothing", []),
    ],
)
def test_mentions_are_taken_out_of_a_message(text: str, said: str, names: list[str]) -> None:
    assert take_docs(text) == (said, names)


def test_a_folder_named_docs_is_no_attachment(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    assert find_mentions("@docs what?", tmp_path) == []
    assert find_mentions("@./docs what?", tmp_path) == ["./docs"]
    assert is_mention("docs:manual.")
    assert not is_mention("docs/x.md")


def test_collections_are_proposed(folder: Path) -> None:
    stored = folder / "data" / "documents"
    assert [one.value for one in propose_docs("do", stored)] == ["@docs", "@docs:manual"]
    assert [one.value for one in propose_docs("docs:m", stored)] == ["@docs:manual"]
    assert propose_docs("", stored) == propose_docs("x", stored) == propose_docs("docs:manual", stored) == []
    assert propose_docs("docs", folder / "none") == []


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["vim"], ["vim", "+7", "/x/a.md"]),
        (["/usr/bin/nano", "-w"], ["/usr/bin/nano", "-w", "+7", "/x/a.md"]),
        (["hx"], ["hx", "/x/a.md:7"]),
        (["code", "--wait"], ["code", "--wait", "-g", "/x/a.md:7"]),
        (["notepad"], ["notepad", "/x/a.md"]),
    ],
)
def test_editors_open_at_the_line(command: list[str], line: list[str]) -> None:
    assert editor_at(command, "/x/a.md", 7) == line


async def test_an_answer_shows_its_passages_folded(folder: Path) -> None:
    app = make(folder)
    async with app.run_test(size=(90, 30)) as pilot:
        await say(pilot, "@docs:manual How do I reset the pump?")
        await settle(pilot)
        user, answer = app.chat_screen.transcript.views
        assert (user.text, answer.text) == ("How do I reset the pump?", "Hold the button [2].")
        shown = passages(app)
        assert [fold.title_text for fold in shown] == ["(1) care.md:1-3", "[2] reset.md:1-3"]
        assert not any(fold.is_open for fold in shown)
        await enter(pilot, "/details")
        assert shown[1].is_open and "hold the red button" in shown[1].content.plain
        assert "Documents: 2 passages of manual" in str(user.query_one(".attached").content)


async def test_they_are_there_again_when_the_conversation_is_opened_again(folder: Path) -> None:
    app = make(folder)
    async with app.run_test(size=(90, 30)) as pilot:
        await say(pilot, "@docs How do I reset the pump?")
        await settle(pilot)
        conversation_id = app.chat_screen.controller.active_id
        await enter(pilot, "/new")
        await settle(pilot)
        assert passages(app) == []
        await app.chat_screen.controller.open(conversation_id)
        await settle(pilot)
        assert [fold.title_text for fold in passages(app)] == ["(1) care.md:1-3", "[2] reset.md:1-3"]
        await enter(pilot, "/edit")
        await settle(pilot)
        assert app.chat_screen.composer.text == "@docs:docs How do I reset the pump?"


async def test_nothing_found_is_said(folder: Path) -> None:
    app = make(folder, "I do not know.")
    async with app.run_test(size=(90, 30)) as pilot:
        await say(pilot, "@docs Who painted the chapel?")
        await settle(pilot)
        answer = app.chat_screen.transcript.views[-1]
        assert answer.notices == ("Nothing about this was found in docs. The answer rests on no document.",)
        assert passages(app) == []


async def test_a_collection_that_is_missing_gives_the_message_back(folder: Path) -> None:
    app = make(folder)
    async with app.run_test(size=(90, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "@docs:other What?")
        await settle(pilot)
        assert app.chat_screen.composer.text == "@docs:other What?"
        assert "There is no collection of documents 'other'" in str(app.chat_screen.transcript.children[-1].children[1].content)


async def test_open_starts_the_editor_at_the_passage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    opened: list[str] = []
    monkeypatch.setenv("VISUAL", "vim")
    monkeypatch.setattr("edge_chat.actions.documents.subprocess.run", lambda command, **_: ran.append(command))

    from contextlib import nullcontext

    monkeypatch.setattr("edge_chat.actions.documents.suspended", lambda app: nullcontext())
    app = make(folder)
    monkeypatch.setattr(app, "open_url", opened.append)
    async with app.run_test(size=(90, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "/open 1")
        assert "No answer here rests on documents" in str(app.chat_screen.composer.query_one("#complaint").content)
        await enter(pilot, "/new")
        await say(pilot, "@docs How do I reset the pump?")
        await settle(pilot)
        await enter(pilot, "/open [2]")
        await settle(pilot)
        assert ran == [["vim", "+1", str(folder / "reset.md")]]
        await enter(pilot, "/open 9")
        assert "There is no passage '9'" in str(app.chat_screen.composer.query_one("#complaint").content)
        (folder / "reset.md").unlink()
        await enter(pilot, "/open 2")
        assert "any more" in str(app.chat_screen.composer.query_one("#complaint").content)
    assert opened == []
