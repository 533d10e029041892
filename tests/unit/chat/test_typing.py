"""Typed or pasted text belongs to the message box, whatever has the focus."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual import events

from edge.backends.fake import FakeBackend
from edge.conversation import ConversationStore
from edge.errors import BackendError
from edge.types import Message
from edge_chat.app import ChatApp
from edge_chat.screens.dialogs import Confirm
from tests.chat_app import eventually, fake_app, say, settle, texts


def filled() -> ConversationStore:
    store = ConversationStore(None)
    for title in ("One", "Two"):
        question = store.append(store.create(title=title).id, Message("user", title), parent=None)
        store.append(store.list()[0].id, Message("assistant", f"About {title}."), parent=question.id)
    return store


def footer(app: ChatApp) -> str:
    return str(app.chat_screen.query_one("#hints").render())


async def test_typing_in_the_list_of_conversations_goes_to_the_message_box() -> None:
    app = fake_app(store=filled())
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.sidebar.listing.focus()
        await settle(pilot)
        # All at once, as from somebody who types faster than the app draws: the order must stay.
        for letter in "dear reader, jk":
            app.post_message(events.Key("space" if letter == " " else "comma" if letter == "," else letter, letter))
        await settle(pilot)
        assert app.chat_screen.composer.text == "dear reader, jk"
        assert app.chat_screen.composer.input.has_focus
        assert len(app.screen_stack) == 1


async def test_pasting_in_the_list_of_conversations_goes_to_the_message_box() -> None:
    app = fake_app(store=filled())
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.sidebar.listing.focus()
        await settle(pilot)
        app.post_message(events.Paste("pasted\ntext"))
        await settle(pilot)
        assert app.chat_screen.composer.text == "pasted\ntext"


async def test_typing_where_nothing_has_the_focus_goes_to_the_message_box() -> None:
    app = fake_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.chat_screen.set_focus(None)
        await pilot.press("x")
        await settle(pilot)
        assert app.chat_screen.composer.text == "x"


async def test_the_search_field_and_dialogs_keep_what_is_typed_there() -> None:
    app = fake_app(store=filled())
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await pilot.press("ctrl+f", *"two")
        await settle(pilot)
        assert app.chat_screen.sidebar.search.value == "two"
        app.chat_screen.sidebar.listing.focus()
        await pilot.press("delete")
        await eventually(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("x")
        await pilot.press("escape")
        await settle(pilot)
        assert app.chat_screen.composer.text == ""


async def test_a_slash_on_a_chosen_message_begins_a_command() -> None:
    app = fake_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        await pilot.press("alt+up")
        await settle(pilot)
        assert app.chat_screen.chosen_view is not None
        await pilot.press("slash", *"key")
        await settle(pilot)
        assert app.chat_screen.composer.text == "/key"
        assert app.chat_screen.composer.popup.is_open
        assert app.chat_screen.chosen_view is None


async def test_keys_of_a_chosen_message_still_act_on_it() -> None:
    app = fake_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        await pilot.press("alt+up", "alt+up", "e")
        await settle(pilot)
        assert app.chat_screen.composer.text == "hi" and app.chat_screen.controller.editing is not None


async def test_the_footer_shows_the_keys_that_work_now() -> None:
    app = fake_app(store=filled(), settings={"chat.keys.copy": "z"})
    async with app.run_test(size=(140, 30)) as pilot:
        await settle(pilot)
        assert footer(app).startswith("Enter send · Ctrl+J new line")
        await say(pilot, "hi")
        await pilot.press("alt+up")
        await settle(pilot)
        assert footer(app) == "z copy · y copy code · Ctrl+R regenerate · f fork · Esc write"
        await pilot.press("alt+up")
        await settle(pilot)
        assert footer(app) == "z copy · e edit · Ctrl+R regenerate · f fork · Esc write"
        app.chat_screen.sidebar.listing.focus()
        await settle(pilot)
        assert footer(app) == "Enter open · Ctrl+T rename · Del delete · Ctrl+F search · Esc back"
        await pilot.press("escape")
        await settle(pilot)
        assert footer(app).startswith("Enter send")


async def test_the_footer_shows_the_keys_of_a_chosen_error() -> None:
    class Failing(FakeBackend):
        def decode(self, steps: object) -> None:
            raise BackendError("Out of luck.", "Try again.")

    app = fake_app(Failing)
    async with app.run_test(size=(140, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        await pilot.press("alt+up")
        await settle(pilot)
        assert footer(app) == "r try again · m other model · x dismiss · Esc write"


@pytest.mark.parametrize(
    ("keys", "shown"), [("ctrl+s", "Ctrl+S"), ("alt+enter", "Alt+Enter"), ("shift+enter,ctrl+j", "Ctrl+J")]
)
async def test_a_key_for_a_new_line_is_shown_that_every_terminal_can_send(keys: str, shown: str) -> None:
    app = fake_app(settings={"chat.keys.newline": keys})
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        assert f"{shown} new line" in footer(app)


_NAMES = {"/": "slash", " ": "space", "\r": "enter", "\t": "tab", "@": "at", ".": "full_stop"}


def bundle(app: ChatApp, text: str, *keys: str) -> None:
    """Post keys all at once, as a slow line or a text expander delivers them."""
    for letter in text:
        app.post_message(events.Key(_NAMES.get(letter, letter), letter))
    for key in keys:
        app.post_message(events.Key(key, None))


@pytest.mark.parametrize(
    ("first", "rest", "sent"),
    [
        ("/", "copy 3\r", "/copy 3"),
        ("/", "set top_k 5\r", "/set top_k 5"),
        ("/c", "opy\r", "/copy"),
        ("", "/cop\r", "/copy"),  # the popup would complete it for a slow typist too
        ("/set ", "top_k\r", None),  # a proposal that needs more after it
        ("", "/titl\tMy title\r", "/title My title"),
    ],
)
async def test_enter_takes_only_a_proposal_for_the_whole_text(first: str, rest: str, sent: str | None) -> None:
    app = fake_app(store=filled())
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        ran: list[str] = []

        async def note(name: str, argument: str, event: object) -> None:
            ran.append(f"/{name} {argument}".strip())

        app.chat_screen._run_slash = note  # type: ignore[method-assign]
        bundle(app, first)
        await settle(pilot)
        bundle(app, rest)
        await settle(pilot)
        assert ran == ([sent] if sent else [])


async def test_a_file_proposal_for_an_older_text_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / "rest.md").write_text("y")
    app = fake_app(cwd=tmp_path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        bundle(app, "@re")
        await eventually(pilot, lambda: app.chat_screen.composer.popup.chosen)
        bundle(app, "st.md\r")
        await settle(pilot)
        assert texts(app)[:1] == ["You: @rest.md"] or app.chat_screen.composer.text.startswith("@rest.md")


async def test_every_repeat_of_a_key_moves_one_message_and_the_next_key_acts_there() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        for number in range(3):
            await say(pilot, f"q{number}")
        views = app.chat_screen.transcript.views
        bundle(app, "", *["ctrl+up"] * 4)
        await settle(pilot)
        assert views.index(app.chat_screen.chosen_view) == 2  # type: ignore[arg-type]
        bundle(app, "", "ctrl+down", "ctrl+down", "e")
        await settle(pilot)
        assert app.chat_screen.composer.text == "q2"
