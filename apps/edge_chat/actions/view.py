"""Commands on the view, and on the app itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from edge_chat import pages
from edge_chat.commands import Completion
from edge_chat.table import REGISTRY
from edge_chat.theme import choose_theme

if TYPE_CHECKING:
    from edge_chat.screens.chat import ChatScreen

__all__ = ["COMPLETERS", "RUNNERS"]


async def theme(screen: ChatScreen, argument: str) -> None:
    from edge_chat.screens.picker import Picker

    app = screen.app
    if argument:
        app.own_themes.refuse_broken(argument)
        app.theme = choose_theme(argument, app.available_themes, {})
        return await _save_theme(screen)
    before = app.theme

    def preview(name: str) -> None:
        if name in app.available_themes:
            app.theme = name

    note = "The highlighted theme is shown as a preview; Enter saves it in the settings file."
    broken = app.own_themes.broken.items()
    themes = [*complete_theme(screen, ""), *(Completion(n, n, "cannot be used", about=str(why)) for n, why in broken)]
    chosen = await app.push_screen_wait(Picker("Theme", themes, before, note=note, in_use=before, on_highlight=preview))
    app.theme = chosen if chosen in app.available_themes else before
    app.own_themes.refuse_broken(chosen)
    return await _save_theme(screen) if chosen else None


async def _save_theme(screen: ChatScreen) -> None:
    from edge.config.toml import set_in_file

    name, path = screen.app.theme, screen.app.settings.paths.config_file
    await asyncio.to_thread(set_in_file, path, ("chat", "theme"), name)
    screen.tell(f"The theme {name} is saved in {path}.")


def complete_theme(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose themes."""
    themes = screen.app.available_themes.items()
    own = screen.app.own_themes.usable
    kinds = {n: ("dark" if t.dark else "light") + (", your own" if n in own else "") for n, t in sorted(themes)}
    return [Completion(n, n, kind) for n, kind in kinds.items() if n.startswith(typed)]


async def plain(screen: ChatScreen, argument: str) -> None:
    screen.app.set_plain(not screen.app.is_plain)
    await screen.redraw()
    screen.tell("Plain mode is on." if screen.app.is_plain else "Plain mode is off.")


async def keys(screen: ChatScreen, argument: str) -> None:
    await screen.read_page("Keys", pages.keys(REGISTRY, screen.app.keymap.keys))


async def help_page(screen: ChatScreen, argument: str) -> None:
    keys_of = screen.app.keymap.keys
    if argument:
        command = REGISTRY.find(argument.lstrip("/").lower())
        scope = REGISTRY[(command.name, *command.keys_of)[-1]].scope
        await screen.read_page(command.usage, pages.command_help(command, keys_of, scope))
    else:
        await screen.read_page("Help", pages.help_page(REGISTRY, keys_of))


def complete_help(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose commands."""
    return [Completion(command.name, command.name, command.help) for command in REGISTRY.search(typed.lstrip("/"))]


async def palette(screen: ChatScreen, argument: str) -> None:
    from edge_chat.palette import last_used, palette_choices
    from edge_chat.screens.picker import Picker

    app = screen.app
    recent = last_used(REGISTRY, app.ran, app.history.newest_first)
    chosen = await app.push_screen_wait(Picker("Commands", palette_choices(REGISTRY, app.keymap, recent)))
    if chosen is not None:
        await screen.action_command(chosen)


async def quit_app(screen: ChatScreen, argument: str) -> None:
    await screen.app.action_quit()


def _scroll(method: str) -> Callable[[ChatScreen, str], Coroutine[Any, Any, None]]:
    async def scroll(screen: ChatScreen, argument: str) -> None:
        getattr(screen.transcript, method)(animate=False)

    return scroll


async def scroll_bottom(screen: ChatScreen, argument: str) -> None:
    screen.transcript.anchor()
    screen.transcript.scroll_end(animate=False)


RUNNERS = {
    "theme": theme,
    "plain": plain,
    "scroll-up": _scroll("scroll_page_up"),
    "scroll-down": _scroll("scroll_page_down"),
    "scroll-top": _scroll("scroll_home"),
    "scroll-bottom": scroll_bottom,
    "palette": palette,
    "help": help_page,
    "keys": keys,
    "quit": quit_app,
}
COMPLETERS = {"theme": complete_theme, "help": complete_help}
