"""Themes of one's own: what a file may say, and what is said about one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.config import load_settings
from edge.errors import ConfigError
from edge_chat.app import ChatApp
from edge_chat.own_themes import load_own_themes, theme_names
from edge_chat.screens.picker import Picker
from tests.chat_app import enter, eventually, fake_app, say, settle

SEA = """
base = "light"
primary = "#005f87"
background = "#f4fbff"

[variables]
border = "navy"
"""


@pytest.fixture
def folder(own_home: Path) -> Path:
    folder = own_home / "themes"
    folder.mkdir(parents=True)
    assert load_settings().paths.themes_dir == folder
    return folder


def complaint(app: ChatApp) -> str:
    line = app.chat_screen.query_one("#complaint")
    return str(line.render()) if line.display else ""


def test_a_file_is_a_theme(folder: Path) -> None:
    (folder / "sea.toml").write_text(SEA)
    (folder / "README.md").write_text("no theme")
    found = load_own_themes(folder)
    assert list(found.usable) == ["sea"] and not found.broken
    sea = found.usable["sea"]
    assert (sea.name, sea.dark, sea.primary, sea.background) == ("sea", False, "#005f87", "#f4fbff")
    assert sea.foreground and sea.variables == {"border": "navy"}
    assert "sea" in theme_names(folder) and "edge-dark" in theme_names(folder)


def test_no_folder_has_no_themes(tmp_path: Path) -> None:
    assert load_own_themes(tmp_path / "none") == load_own_themes(tmp_path)


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("primary = ", "is not a TOML file", ""),
        ('primry = "red"', "no setting 'primry'", "Did you mean 'primary'"),
        ('primary = "#12"', "primary = '#12' is not a colour", "Write it like"),
        ("primary = 5", "Expected a text in quotes, got `int` - at `primary`", "Write colours like"),
        ('dark = "yes"', "Expected `bool", ""),
        ('base = "nrod"', "no theme 'nrod'", "Did you mean 'nord'"),
        ('[variables]\nboder = "red"', "no variable 'boder'", "Did you mean 'border'"),
        ('[variables]\nborder = "reddish"', "variables.border = 'reddish' is not a colour", ""),
        ('background = "#d7dce4"', "has a contrast of", "Change foreground or"),
        ("text_alpha = 7", "text_alpha", ""),
    ],
)
async def test_a_wrong_file_says_where_and_what(folder: Path, text: str, what: str, hint: str) -> None:
    (folder / "odd.toml").write_text(text)
    error = load_own_themes(folder).broken["odd"]
    assert str(folder / "odd.toml") in error.message and what in error.message and hint in error.hint


def test_names_that_are_taken_and_things_that_are_no_files(folder: Path) -> None:
    (folder / "nord.toml").write_text("")
    (folder / "folder.toml").mkdir()
    (folder / "binary.toml").write_bytes(b"\xff\xfe")
    (folder / "long.toml").write_bytes(b"#" * 300_000)
    broken = load_own_themes(folder).broken
    assert {name: error.message.split(": ", 1)[1][:12] for name, error in broken.items()} == {
        "nord": "there is a t",
        "folder": "it is not a ",
        "binary": "it is not UT",
        "long": "it is longer",
    }


async def test_themes_of_ones_own_are_listed_and_used(folder: Path) -> None:
    (folder / "sea.toml").write_text(SEA)
    (folder / "odd.toml").write_text("primary = 1")
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/theme sea")
        assert app.theme == "sea" and app.current_theme.primary == "#005f87"
        await say(pilot, "/theme odd")
        assert "odd.toml cannot be used" in complaint(app) and app.theme == "sea"
        app.chat_screen.composer.load("")
        await enter(pilot, "/theme")
        await eventually(pilot, lambda: isinstance(app.screen, Picker))
        await pilot.press(*"odd")
        await eventually(pilot, lambda: "odd.toml" in str(app.screen.query_one(".dialog-note").render()))
        await pilot.press("enter")
        await settle(pilot)
        assert "odd.toml cannot be used" in complaint(app) and app.theme == "sea"


def test_a_broken_theme_in_the_settings_stops_the_start(folder: Path) -> None:
    (folder / "odd.toml").write_text("primary = 1")
    with pytest.raises(ConfigError, match=r"odd\.toml cannot be used"):
        fake_app(settings={"chat.theme": "odd"})
    (folder / "odd.toml").write_text('primary = "teal"')
    assert fake_app(settings={"chat.theme": "odd"}).theme == "odd"
