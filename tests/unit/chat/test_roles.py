"""`/role`: system prompts of one's own."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import OptionList

from edge_chat.app import ChatApp
from edge_chat.screens.picker import Picker
from tests.chat_app import enter, eventually, fake_app, say, settle


def write_roles(own_home: Path) -> None:
    folder = own_home / "prompts"
    folder.mkdir(parents=True)
    (folder / "translator.md").write_text("# Translate to French.\nNothing else.")
    (folder / "broken.md").write_bytes(b"\xff")


def complaint(app: ChatApp) -> str:
    line = app.chat_screen.query_one("#complaint")
    return str(line.render()) if line.display else ""


def system_of(app: ChatApp) -> str:
    page = app.chat_screen.controller.page
    assert page is not None
    return page.info.system


async def test_a_role_is_the_system_prompt_of_the_conversation(own_home: Path) -> None:
    write_roles(own_home)
    app = fake_app(settings={"system": "Be brief."})
    told: list[str] = []
    app.chat_screen.tell = told.append  # type: ignore[method-assign]
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/role translator")
        assert system_of(app) == "# Translate to French.\nNothing else."
        assert told == ["The role is translator, from the next message on."]
        await say(pilot, "hello")
        await say(pilot, "/role OFF")
        assert system_of(app) == "Be brief."
        assert "usual one" in told[1] and "the conversation is processed again" in told[1]
        await say(pilot, "/role translater")
        assert "no role 'translater'" in complaint(app) and "Did you mean translator" in complaint(app)
        await say(pilot, "/role broken")
        assert "not UTF-8" in complaint(app)
        assert system_of(app) == "Be brief."


async def test_roles_are_picked_from_a_list(own_home: Path) -> None:
    write_roles(own_home)
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "/role")
        await eventually(pilot, lambda: isinstance(app.screen, Picker))
        listed = app.screen.query_one(OptionList)
        lines = [str(listed.get_option_at_index(n).prompt) for n in range(listed.option_count)]
        assert [line.split()[0] for line in lines] == ["broken", "translator", "off"]
        assert "cannot be used" in lines[0] and "Translate to French." in lines[1]
        await pilot.press("down", "enter")
        await settle(pilot)
        assert system_of(app).startswith("# Translate")


async def test_without_roles_it_says_how_to_make_one() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/role")
        assert "no roles yet" in complaint(app) and "translator.md" in complaint(app)
