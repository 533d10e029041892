from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edge.conversation import ConversationStore
from edge.types import Message
from edge_chat.app import ChatApp
from edge_chat.screens.dialogs import AskText, Confirm
from edge_chat.widgets.sidebar import crop
from tests.chat_app import eventually, fake_app, say, settle, texts


def filled() -> ConversationStore:
    store = ConversationStore(None)
    for title, said in (("Whales", "How deep do whales dive?"), ("Cooking", "How long do eggs take?"), ("Bread", "Rye flour")):
        info = store.create(title=title)
        question = store.append(info.id, Message("user", said), parent=None)
        store.append(info.id, Message("assistant", f"About {title.lower()}."), parent=question.id)
    return store


def listed(app: ChatApp) -> list[str]:
    options = app.chat_screen.sidebar.listing
    prompts = [options.get_option_at_index(i) for i in range(options.option_count)]
    return [re.sub(" +now", "", str(option.prompt)).strip() for option in prompts if option.id]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_conversations_are_listed_and_opened() -> None:
    app = fake_app(store=filled())
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        assert listed(app) == ["Bread", "Cooking", "Whales"]
        await pilot.press("ctrl+o")
        await settle(pilot)
        assert not app.chat_screen.sidebar.display
        await pilot.press("ctrl+o")
        await settle(pilot)
        await pilot.press("down", "enter")
        await settle(pilot)
        assert texts(app) == ["You: How long do eggs take?", "Assistant: About cooking."]
        assert app.chat_screen.composer.input.has_focus
        assert listed(app)[1] == "● Cooking"


async def test_search_answers_as_one_types_and_opens_the_message() -> None:
    app = fake_app(store=filled())
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await pilot.press("ctrl+f", *"div")
        await settle(pilot)
        assert len(listed(app)) == 1 and "Whales" in listed(app)[0] and "dive" in listed(app)[0]
        await pilot.press("enter")
        await settle(pilot)
        assert texts(app)[0] == "You: How deep do whales dive?"
        assert app.chat_screen.composer.input.has_focus
        await pilot.press("ctrl+f")
        await pilot.press("escape")
        await eventually(pilot, lambda: len(listed(app)) == 3)


async def test_enter_searches_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_chat.widgets.sidebar._SEARCH_DELAY_S", 600.0)
    app = fake_app(store=filled())
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await pilot.press("ctrl+f", *"dive", "enter")
        await settle(pilot)
        assert len(listed(app)) == 1 and "Whales" in listed(app)[0]
        assert texts(app)[0] == "You: How deep do whales dive?"


async def test_search_finds_other_branches_and_shows_them() -> None:
    store = ConversationStore(None)
    info = store.create(title="t")
    one = store.append(info.id, Message("user", "first version"), parent=None)
    store.append(info.id, Message("assistant", "answer"), parent=one.id)
    store.append(info.id, Message("user", "second version"), parent=None)
    app = fake_app(store=store)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await app.chat_screen.controller.open(info.id, one.id)
        assert texts(app) == ["You: first version", "Assistant: answer"]


@pytest.mark.parametrize("title", ["Whales and bread", "A title that is far too long for its line, and ends with whales"])
async def test_the_word_that_was_found_in_a_title_is_marked(title: str) -> None:
    store = ConversationStore(None)
    store.create(title=title)
    app = fake_app(store=store)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/search whales")
        await eventually(pilot, lambda: len(listed(app)) == 1)
        (prompt,) = [option.prompt for option in app.chat_screen.sidebar.listing.options]
        marked = [prompt.plain[span.start : span.end].lower() for span in prompt.spans if "underline" in str(span.style)]
        assert marked == ["whales"]


async def test_nothing_found_is_said() -> None:
    app = fake_app(store=filled())
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/search xyzzy")
        await eventually(pilot, lambda: "Nothing found" in str(app.chat_screen.query_one("#sidebar-note").render()))


@pytest.mark.parametrize("text", ['"', "a AND", "*", "(", "a:b", "'", "\\", "NEAR(", "-"])
async def test_signs_of_a_query_language_do_no_harm(text: str) -> None:
    app = fake_app(store=filled())
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.sidebar.search.value = text
        await settle(pilot)
        assert not app.chat_screen.query_one("#complaint").display


async def test_rename_in_the_list() -> None:
    store = filled()
    app = fake_app(store=store)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.sidebar.listing.focus()
        await pilot.press("ctrl+t")
        await eventually(pilot, lambda: isinstance(app.screen, AskText))
        await pilot.press("end", *"!", "enter")
        await settle(pilot)
        assert store.list()[0].title == "Bread!"
        assert "Bread!" in listed(app)[0]


async def test_delete_asks_and_can_be_undone() -> None:
    store = filled()
    app = fake_app(store=store)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.sidebar.listing.focus()
        await pilot.press("delete")
        await eventually(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("escape")
        await settle(pilot)
        assert len(store.list()) == 3
        await pilot.press("delete")
        await eventually(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("enter")
        await settle(pilot)
        assert len(store.list()) == 3, "Enter answers with the harmless button"
        await pilot.press("delete")
        await eventually(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await settle(pilot)
        assert [info.title for info in store.list()] == ["Cooking", "Whales"]
        await say(pilot, "/undo")
        assert [info.title for info in store.list()] == ["Bread", "Cooking", "Whales"]
        assert texts(app) == ["You: Rye flour", "Assistant: About bread."]
        await say(pilot, "/undo")
        assert "No conversation was deleted" in str(app.chat_screen.query_one("#complaint").render())


async def test_deleting_the_conversation_on_the_screen_shows_a_new_one() -> None:
    store = filled()
    app = fake_app(store=store)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hello")
        app.chat_screen.composer.load("/delete")
        await pilot.press("enter")
        await eventually(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await settle(pilot)
        assert texts(app) == [] and len(store.list()) == 3


async def test_narrow_terminals_get_it_as_an_overlay() -> None:
    app = fake_app(store=filled())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        screen = app.chat_screen
        assert not screen.sidebar.display
        width = screen.transcript.size.width
        await pilot.press("ctrl+o")
        await settle(pilot)
        assert screen.sidebar.display and screen.transcript.size.width == width
        await pilot.press("enter")
        await settle(pilot)
        assert not screen.sidebar.display and texts(app)[0] == "You: Rye flour"
        await pilot.press("ctrl+o", "escape")
        await settle(pilot)
        assert not screen.sidebar.display
        await pilot.resize_terminal(140, 40)
        await pilot.press("ctrl+o")
        await settle(pilot)
        assert screen.sidebar.display and screen.transcript.size.width < 140 - 30


async def test_save_and_import(tmp_path: Path) -> None:
    store = filled()
    app = fake_app(store=store, cwd=tmp_path)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hello")
        before = texts(app)
        for command, file in (("/save", "hello.md"), ("/save json", "hello.json"), ("/save md other.md", "other.md")):
            await say(pilot, command)
            assert (tmp_path / file).is_file(), command
            await say(pilot, f"/import {file}")
            assert [text.partition(": ")[2] for text in texts(app)] == [text.partition(": ")[2] for text in before]
        kept = (tmp_path / "hello.md").read_text()
        await say(pilot, "/save")  # of the imported copy: the file is of another conversation
        assert (tmp_path / "hello.md").read_text() == kept
        assert (tmp_path / "hello-2.md").is_file()
        await say(pilot, "/save md other.md")
        assert "already exists" in str(app.chat_screen.query_one("#complaint").render())
        (tmp_path / "bad.json").write_text('{"no": 1}')
        await say(pilot, "/import bad.json")
        assert app.chat_screen.query_one("#complaint").display


async def test_an_export_of_another_program_is_imported(tmp_path: Path) -> None:
    def chat(id: str) -> dict[str, object]:
        message = {"author": {"role": "user"}, "content": {"content_type": "text", "parts": [f"question {id}"]}}
        result = {"author": {"role": "tool", "name": "python"}, "content": {"content_type": "execution_output", "text": "42"}}
        nodes = {"u": {"message": message, "parent": None}, "t": {"message": result, "parent": "u"}}
        return {"title": f"chat {id}", "conversation_id": id, "mapping": nodes}

    app = fake_app(store=filled(), cwd=tmp_path)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        (tmp_path / "conversations.json").write_text(json.dumps([chat("1"), chat("2"), {"title": "empty"}]))
        await say(pilot, "/import conversations.json")
        assert texts(app) == []  # the one that was open stays
        (tmp_path / "one.json").write_text(json.dumps(chat("1")))
        await say(pilot, "/import one.json")
        assert [text for text in texts(app) if "question 1" in text]
        assert [view.author for view in app.chat_screen.transcript.views] == ["You", "Tool python"]


async def test_saving_again_brings_the_file_up_to_date(tmp_path: Path) -> None:
    app = fake_app(cwd=tmp_path)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hello")
        await say(pilot, "/save")
        await say(pilot, "more")
        await say(pilot, "/save")
        assert names(tmp_path) == ["hello.md"]
        assert "more" in (tmp_path / "hello.md").read_text()
        (tmp_path / "hello.md").write_text("edited by hand")
        await say(pilot, "/save")
        assert (tmp_path / "hello.md").read_text() == "edited by hand"
        assert "more" in (tmp_path / "hello-2.md").read_text()


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("/save pdf", None),
        ("/save talk.pdf", None),
        ("/save HTML", None),
        ("/save md my\\ talk", "my talk.md"),
        ("/save 'my talk.txt'", "my talk.txt"),
        ("/save notes", "notes.md"),
        ("/save json notes", "notes.json"),
        ("/save JSON", "hello.json"),
        ("/save v1.2.json", "v1.2.json"),
    ],
)
async def test_the_name_of_a_saved_file(tmp_path: Path, command: str, file: str | None) -> None:
    app = fake_app(cwd=tmp_path)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hello")
        await say(pilot, command)
        assert names(tmp_path) == ([file] if file else [])
        if file is None:
            assert "cannot be saved as" in str(app.chat_screen.query_one("#complaint").render())
            assert app.chat_screen.composer.text == command


async def test_title_and_system_prompt() -> None:
    store = ConversationStore(None)
    app = fake_app(store=store, settings={"system": "Be kind."})
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hello")
        assert store.list()[0].system == "Be kind."
        await say(pilot, "/title Greetings")
        assert str(app.chat_screen.query_one("#title").render()) == "Greetings"
        await say(pilot, "/system Be brief.")
        assert store.list()[0].system == "Be brief."
        app.chat_screen.composer.load("/system")
        await pilot.press("enter")
        await eventually(pilot, lambda: app.screen is not app.chat_screen)
        await pilot.press(*" Yes.", "ctrl+s")
        await settle(pilot)
        assert store.list()[0].system == "Be brief. Yes."


@pytest.mark.parametrize(
    ("text", "matches", "shown"),
    [
        ("short text", ((0, 5),), "short"),
        ("x" * 40 + " match", ((41, 46),), "match"),
        ("match" + " y" * 40, ((0, 5),), "match"),
        ("a " * 20 + "match" + " b" * 20, ((40, 45),), "match"),
        ("1. First\n   - nested bullet\n   - and nested", ((14, 20), (36, 42)), "nested"),
        ("  \n\n  nested", ((6, 12),), "nested"),
        ("a\n\n\n" * 15 + "nested  words  here", ((60, 66), (68, 73)), "nested"),
        ("two\n\twords", ((0, 10),), "two words"),
    ],
)
def test_snippets_are_cut_around_the_match(text: str, matches: tuple[tuple[int, int], ...], shown: str) -> None:
    part, moved = crop(text, matches, 26)
    assert len(part) <= 26 and shown in part
    assert part[moved[0][0] : moved[0][1]] == shown
    words = [" ".join(text[a:b].split()) for a, b in matches]
    assert all(word.startswith(part[a:b]) for word, (a, b) in zip(words, moved, strict=False))


async def test_the_words_found_are_marked_and_on_the_screen() -> None:
    store = ConversationStore(None)
    lines = "\n\n".join(f"Line {number} of a long answer." for number in range(200))
    info = store.create(title="Long")
    question = store.append(info.id, Message("user", "Tell me"), parent=None)
    store.append(info.id, Message("assistant", lines.replace("Line 120", "The Häuser stand")), parent=question.id)
    app = fake_app(store=store)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await pilot.press("ctrl+f", *"hauser", "enter")
        await settle(pilot)
        transcript = app.chat_screen.transcript
        body = transcript.views[-1].markdown
        line = next(n for n, line in enumerate(body.lines_at(body.size.width)) if "Häuser" in line.text)
        assert transcript.region.contains_point((body.region.x, body.region.y + line))
        found = [segment for segment in body.render_line(line) if segment.text == "Häuser"]
        others = [segment for segment in body.render_line(line) if "stand" in segment.text]
        assert found and others and found[0].style.bgcolor != others[0].style.bgcolor  # type: ignore[union-attr]


async def test_a_new_conversation_ends_the_search() -> None:
    app = fake_app(store=filled())
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await pilot.press("ctrl+f", *"dive", "enter")
        await settle(pilot)
        await pilot.press("ctrl+n")
        await settle(pilot)
        await say(pilot, "a new one")
        assert len(listed(app)) == 4
