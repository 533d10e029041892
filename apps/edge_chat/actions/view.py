"""Commands on how it looks, and on the app itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge_chat import pages
from edge_chat.commands import Command, Completion
from edge_chat.theme import choose_theme

if TYPE_CHECKING:
    from edge_chat.screens.chat import ChatScreen

__all__ = ["COMMANDS"]


async def theme(screen: ChatScreen, argument: str) -> None:
    """/theme [name]"""
    app = screen.app
    if argument:
        app.theme = choose_theme(argument, app.available_themes, {})
        return await _keep_theme(screen)
    from edge_chat.screens.dialogs import Choice, Picker

    before = app.theme
    choices = [Choice(name, name, "dark" if theme.dark else "light") for name, theme in sorted(app.available_themes.items())]

    def preview(name: str) -> None:
        app.theme = name

    note = "The app shows the marked theme; the one you choose is kept in the settings file."
    chosen = await app.push_screen_wait(Picker("Theme", choices, before, note=note, on_highlight=preview))
    app.theme = chosen or before
    return await _keep_theme(screen) if chosen else None


async def _keep_theme(screen: ChatScreen) -> None:
    from edge.config.toml import set_in_file

    name, path = screen.app.theme, screen.app.settings.paths.config_file
    await asyncio.to_thread(set_in_file, path, ("chat", "theme"), name)
    screen.tell(f"The theme {name} is kept in {path}.")


def complete_theme(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Names of themes."""
    themes = screen.app.available_themes.items()
    return [Completion(n, n, "dark" if t.dark else "light") for n, t in sorted(themes) if n.startswith(typed)]


async def plain(screen: ChatScreen, argument: str) -> None:
    """/plain"""
    screen.app.set_plain(not screen.app.is_plain)
    await screen.redraw()
    screen.tell("Plain mode is on." if screen.app.is_plain else "Plain mode is off.")


async def keys(screen: ChatScreen, argument: str) -> None:
    """/keys"""
    await _read(screen, "Keys", pages.keys(screen.app.registry, screen.app.keys_of))


async def help_page(screen: ChatScreen, argument: str) -> None:
    """/help [command]"""
    if argument:
        command = screen.app.registry.find(argument.lstrip("/").lower())
        scope = screen.app.registry[(command.name, *command.keys_of)[-1]].scope
        await _read(screen, command.usage, pages.command_help(command, screen.app.keys_of, scope))
        return
    await _read(screen, "Help", pages.help_page(screen.app.registry, screen.app.keys_of))


def complete_help(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Names of commands."""
    found = screen.app.registry.search(typed.lstrip("/"))
    return [Completion(command.name, command.name, command.help) for command in found]


async def palette(screen: ChatScreen, argument: str) -> None:
    """Ctrl+P"""
    screen.app.action_command_palette()


async def quit_app(screen: ChatScreen, argument: str) -> None:
    """/quit"""
    await screen.app.action_quit()


async def scroll_up(screen: ChatScreen, argument: str) -> None:
    """PgUp"""
    screen.transcript.scroll_page_up(animate=False)


async def scroll_down(screen: ChatScreen, argument: str) -> None:
    """PgDn"""
    screen.transcript.scroll_page_down(animate=False)


async def scroll_top(screen: ChatScreen, argument: str) -> None:
    """Ctrl+Home"""
    screen.transcript.scroll_home(animate=False)


async def scroll_bottom(screen: ChatScreen, argument: str) -> None:
    """Ctrl+End"""
    screen.transcript.anchor()
    screen.transcript.scroll_end(animate=False)


async def _read(screen: ChatScreen, title: str, text: str) -> None:
    from edge_chat.screens.dialogs import ReadPage

    if not text:
        raise UsageError("There is nothing to show.", "")
    await screen.app.push_screen_wait(ReadPage(title, text))


COMMANDS = (
    Command(
        "theme",
        "Theme",
        "Choose a theme, dark or light.",
        "View",
        theme,
        argument="[name]",
        complete=complete_theme,
        example="/theme light",
    ),
    Command(
        "plain",
        "Plain mode",
        "Switch drawing, spinners and colour-only signals off or on, for screen readers.",
        "View",
        plain,
    ),
    Command("scroll-up", "Page up", "Scroll the conversation up.", "View", scroll_up, keys="pageup", is_slash=False),
    Command(
        "scroll-down",
        "Page down",
        "Scroll the conversation down.",
        "View",
        scroll_down,
        keys="pagedown",
        is_slash=False,
    ),
    Command(
        "scroll-top",
        "To the beginning",
        "Scroll to the first message.",
        "View",
        scroll_top,
        keys="ctrl+home",
        is_slash=False,
    ),
    Command(
        "scroll-bottom",
        "To the end",
        "Scroll to the last message and stay there.",
        "View",
        scroll_bottom,
        keys="ctrl+end",
        is_slash=False,
    ),
    Command(
        "palette",
        "Command palette",
        "Find a command by typing some of its name.",
        "App",
        palette,
        keys="ctrl+p",
        is_slash=False,
    ),
    Command(
        "help",
        "Help",
        "What can be done here; with a name, about that command.",
        "App",
        help_page,
        argument="[command]",
        complete=complete_help,
        aliases=("h",),
        keys="f1",
    ),
    Command("keys", "Keys", "All keys, and how to change them.", "App", keys),
    Command(
        "interrupt",
        "Copy, stop or quit",
        "Copy what is marked; else stop the reply; twice quits.",
        "App",
        keys="ctrl+c",
        scope="everywhere",
    ),
    Command(
        "quit",
        "Quit",
        "Leave; everything is saved.",
        "App",
        quit_app,
        aliases=("exit", "q", "bye"),
        keys_of=("quit-now",),
    ),
    Command(
        "quit-now",
        "Quit at once",
        "Leave from anywhere; everything is saved.",
        "App",
        keys="ctrl+q",
        scope="everywhere",
    ),
)
