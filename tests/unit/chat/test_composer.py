from __future__ import annotations

from pathlib import Path

import pytest
from textual import events

from edge.conversation import ConversationStore
from edge_chat.app import ChatApp
from edge_chat.editor import editor_command
from edge_chat.history import PromptHistory
from tests.chat_app import eventually, fake_app, say, settle, texts


def complaint(app: ChatApp) -> str:
    line = app.chat_screen.query_one("#complaint")
    return str(line.render()) if line.display else ""


async def test_new_lines_and_growth() -> None:
    app = fake_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        composer = app.chat_screen.composer
        low = composer.size.height
        await pilot.press(*"a", "ctrl+j", *"b", "shift+enter", *"c", "alt+enter", *"d")
        assert composer.text == "a\nb\nc\nd"
        await pilot.pause()
        assert composer.size.height == low + 3
        await pilot.press("enter")
        await settle(pilot)
        assert texts(app)[0] == "You: a\nb\nc\nd"
        assert composer.size.height == low


async def test_a_message_typed_faster_than_it_is_drawn_is_sent_whole() -> None:
    app = fake_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        for character in "as fast as a paste":
            app.post_message(events.Key("space" if character == " " else character, character))
        app.post_message(events.Key("enter", "\r"))
        await eventually(pilot, lambda: texts(app))
        await settle(pilot)
        assert texts(app)[0] == "You: as fast as a paste"
        assert app.chat_screen.composer.text == ""


async def test_keys_can_be_changed() -> None:
    app = fake_app(settings={"chat.keys.send": "ctrl+s", "chat.keys.newline": "enter", "chat.keys.new": "f8"})
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await pilot.press(*"a", "enter", *"b", "ctrl+s")
        await settle(pilot)
        assert texts(app)[0] == "You: a\nb"
        assert "Ctrl+S send" in str(app.chat_screen.query_one("#hints").render())
        await pilot.press("f8")
        await settle(pilot)
        assert texts(app) == []


async def test_history_at_the_edges() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        composer = app.chat_screen.composer
        await say(pilot, "first")
        await say(pilot, "second\nline")
        await pilot.press(*"typing", "up")
        assert composer.text == "second\nline"
        await pilot.press("up")
        assert composer.text == "first"
        await pilot.press("up")
        assert composer.text == "first"
        await pilot.press("down", "down", "down")
        assert composer.text == "typing"
        await pilot.press("down")
        assert composer.text == "typing"


async def test_up_moves_within_several_lines_first() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "before")
        composer = app.chat_screen.composer
        await pilot.press(*"a", "ctrl+j", *"b", "up")
        assert composer.text == "a\nb" and composer.input.cursor_location[0] == 0
        await pilot.press("up")
        assert composer.text == "before"


async def test_history_lasts(tmp_path: Path) -> None:
    for number in range(2):
        app = fake_app()
        app.history = PromptHistory(tmp_path / "history.jsonl")
        async with app.run_test(size=(100, 30)) as pilot:
            await settle(pilot)
            if number == 0:
                await say(pilot, "remember me")
            else:
                await pilot.press("up")
                assert app.chat_screen.composer.text == "remember me"


async def test_a_long_paste_becomes_an_attachment() -> None:
    store = ConversationStore(None)
    app = fake_app(store=store, settings={"chat.paste_chars": "50"})
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        composer = app.chat_screen.composer
        composer.input.post_message(events.Paste("x" * 51))
        composer.input.post_message(events.Paste("short\r\npaste"))
        await eventually(pilot, lambda: composer.text)
        assert composer.text == "short\npaste"
        assert [a.name for a in composer.attachments] == ["pasted text 1"]
        await eventually(pilot, lambda: len(app.chat_screen.query(".chip")) == 1)
        await pilot.press("enter")
        await settle(pilot)
        assert composer.attachments == () and not app.chat_screen.query(".chip")
    node = store.path(store.list()[0].id)[0]
    assert [(a.name, len(a.text)) for a in node.attachments] == [("pasted text 1", 51)]


async def test_attachments_can_be_taken_away(tmp_path: Path) -> None:
    for name in ("a.md", "b.md", "c.md"):
        (tmp_path / name).write_text(name)
    app = fake_app(cwd=tmp_path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        composer = app.chat_screen.composer
        for name in ("a.md", "b.md", "c.md"):
            await say(pilot, f"/attach {name}")
        await eventually(pilot, lambda: len(app.chat_screen.query(".chip")) == 3)
        await pilot.press("backspace")
        await settle(pilot)
        assert [a.name for a in composer.attachments] == ["a.md", "b.md"]
        app.chat_screen.query(".chip").first().focus()
        await pilot.press("delete")
        await settle(pilot)
        assert [a.name for a in composer.attachments] == ["b.md"]
        assert composer.input.has_focus


@pytest.mark.parametrize("name", ["missing.md", "image.png", "folder"])
async def test_what_cannot_be_attached_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "image.png").write_bytes(b"\0")
    (tmp_path / "folder").mkdir()
    app = fake_app(cwd=tmp_path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, f"/attach {name}")
        assert name in complaint(app)
        assert app.chat_screen.composer.attachments == ()


async def test_pasting_the_path_of_a_file_mentions_it(tmp_path: Path) -> None:
    path = tmp_path / "a b.md"
    path.write_text("x")
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.composer.input.post_message(events.Paste(f"{path}"))
        await eventually(pilot, lambda: app.chat_screen.composer.text)
        assert app.chat_screen.composer.text == f'@"{path}" '


async def test_slash_popup() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        composer = app.chat_screen.composer
        await pilot.press("/", *"se")
        assert composer.popup.is_open and composer.popup.chosen is not None
        assert composer.popup.chosen.value == "/set "
        await pilot.press("down", "down", "up")
        assert composer.popup.chosen.value == "/search "
        await pilot.press("escape")
        assert not composer.popup.is_open and composer.text == "/se"
        await pilot.press("t", "tab")
        assert composer.text == "/set " and composer.popup.is_open, "parameters are proposed next"
        await pilot.press(*"tempe", "enter")
        assert composer.text == "/set temperature ", "a parameter wants a value"
        await pilot.press(*"0.25", "enter")
        await settle(pilot)
        assert app.chat_screen.controller.sampling.temperature == 0.25
        assert composer.text == ""


async def test_enter_in_the_popup_runs_a_command_without_argument() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "a")
        await pilot.press("/", *"ne", "enter")
        await settle(pilot)
        assert texts(app) == []


async def test_file_popup(tmp_path: Path) -> None:
    (tmp_path / "notes today.md").write_text("x")
    (tmp_path / "main.py").write_text("x")
    app = fake_app(cwd=tmp_path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        composer = app.chat_screen.composer
        await pilot.press(*"see @", *"not")
        await eventually(pilot, lambda: composer.popup.is_open and composer.popup.chosen)
        await pilot.press("enter")
        await settle(pilot)
        assert composer.text == 'see @"notes today.md" '
        assert not composer.popup.is_open and texts(app) == []


async def test_an_unknown_command_names_the_nearest_and_stays() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/regenrate now")
        assert "There is no command /regenrate. Did you mean /regenerate?" in complaint(app)
        assert app.chat_screen.composer.text == "/regenrate now"
        await pilot.press("x")
        assert complaint(app) == ""


async def test_drafts_are_saved_while_typing_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "conversations.db"
    with ConversationStore(path) as store:
        app = fake_app(store=store, settings={"chat.paste_chars": "5"})
        async with app.run_test(size=(100, 30)) as pilot:
            await settle(pilot)
            await pilot.press(*"half a thou")
            app.chat_screen.composer.input.post_message(events.Paste("pasted"))
            await eventually(pilot, lambda: store.list() and "pasted" in store.list()[0].draft)
            # Nothing is told to the app from here on, as if it had been killed.
            app = fake_app(store=store)
            async with app.run_test(size=(100, 30)) as later:
                await settle(later)
                assert app.chat_screen.composer.text == "half a thou"
                assert [a.text for a in app.chat_screen.composer.attachments] == ["pasted"]


async def test_a_draft_belongs_to_its_conversation() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "a")
        first = app.chat_screen.controller.active_id
        assert first is not None
        await pilot.press(*"more")
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert app.chat_screen.composer.text == ""
        await app.chat_screen.controller.open(first)
        assert app.chat_screen.composer.text == "more"


async def test_a_conversation_in_which_nothing_was_sent_is_not_kept() -> None:
    store = ConversationStore(None)
    app = fake_app(store=store)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await pilot.press(*"x")
        await eventually(pilot, store.list)
        await pilot.press("backspace", "ctrl+n")
        await settle(pilot)
        assert store.list() == []


@pytest.mark.parametrize(
    ("environ", "command"),
    [({"VISUAL": "code --wait", "EDITOR": "vi"}, ["code", "--wait"]), ({"EDITOR": "emacs"}, ["emacs"]), ({}, ["nano"])],
)
def test_the_editor(environ: dict[str, str], command: list[str]) -> None:
    assert editor_command(environ, lambda name: f"/bin/{name}") == command


def test_without_a_choice_an_editor_is_taken_that_is_installed() -> None:
    assert editor_command({}, {"vi": "/usr/bin/vi"}.get) == ["vi"]
    assert editor_command({}, lambda name: None) == ["nano"]


async def test_an_editor_that_fails_leaves_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", "/nowhere/editor")
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await pilot.press(*"text", "ctrl+g")
        await settle(pilot)
        assert complaint(app) and app.chat_screen.composer.text == "text"


async def test_a_missing_file_is_said_before_the_message_goes_out(tmp_path: Path) -> None:
    app = fake_app(cwd=tmp_path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "@missing.txt summarise")
        assert texts(app) == []
        assert complaint(app) == "There is no file missing.txt. Enter again sends it as text."
        assert app.chat_screen.composer.text == "@missing.txt summarise"
        (tmp_path / "other.txt").write_text("x")
        await say(pilot, "@missing.txt and @other.txt")
        assert texts(app) == [], "another text is checked again"
        await pilot.press("enter")
        await settle(pilot)
        assert texts(app)[0] == "You: @missing.txt and @other.txt"
        assert [a.name for a in app.chat_screen.transcript.views[0].attachments] == ["other.txt"]
        await say(pilot, "@missing.txt and @other.txt")
        assert len(texts(app)) == 2, "said once for each message"


async def test_files_dropped_together_become_mentions(tmp_path: Path) -> None:
    for name in ("my file.txt", 'say "hi".md'):
        (tmp_path / name).write_text("x")
    app = fake_app(cwd=tmp_path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        composer = app.chat_screen.composer
        composer.input.post_message(events.Paste(f"{tmp_path}/my\\ file.txt '{tmp_path}/say \"hi\".md'"))
        await eventually(pilot, lambda: composer.attachments)
        assert composer.text == f'@"{tmp_path}/my file.txt" '
        assert [a.name for a in composer.attachments] == [f'{tmp_path}/say "hi".md'], "a mention cannot name it"


async def test_a_command_with_a_wrong_path_stays(tmp_path: Path) -> None:
    (tmp_path / "my file.txt").write_text("x")
    app = fake_app(cwd=tmp_path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/attach nosuch.txt")
        assert complaint(app).startswith("There is no file nosuch.txt.")
        assert app.chat_screen.composer.text == "/attach nosuch.txt"
        await say(pilot, "/attach my\\ file.txt")
        assert [a.name for a in app.chat_screen.composer.attachments] == ["my file.txt"]
