"""The command on roles: system prompts of one's own, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from edge.config.roles import list_roles, read_role
from edge.errors import EdgeError, UsageError
from edge_chat import format as fmt
from edge_chat.actions.conversations import set_system
from edge_chat.commands import Completion

if TYPE_CHECKING:
    from edge.config.roles import RolePrompt
    from edge_chat.screens.chat import ChatScreen

__all__ = ["COMPLETERS", "RUNNERS"]

_NO_ROLE = "off"


async def role(screen: ChatScreen, argument: str) -> None:
    name = argument or await _pick(screen)
    if not name:
        return
    if name.lower() == _NO_ROLE:
        await set_system(screen, screen.app.settings.system, "The role is off; the system prompt is the usual one")
        return
    chosen = await asyncio.to_thread(read_role, name, screen.app.settings)
    await set_system(screen, await asyncio.to_thread(lambda: chosen.text), f"The role is {chosen.name}")


async def _pick(screen: ChatScreen) -> str | None:
    from edge_chat.screens.picker import Picker

    choices = await asyncio.to_thread(_choices, screen)
    folder = screen.app.settings.paths.prompts_dir
    if not choices:
        raise UsageError("There are no roles yet.", f"Write a system prompt into a file such as {folder / 'translator.md'}.")
    page = screen.controller.page
    now = page.info.system if page is not None else screen.app.settings.system
    in_use = next((choice.value for choice in choices if choice.about == now), "")
    off = Completion(_NO_ROLE, _NO_ROLE, "the usual system prompt", about=screen.app.settings.system or "The model's own.")
    picker = Picker("Role", [*choices, off], in_use, in_use=in_use, note=f"Roles are files in {folder}.")
    return await screen.app.push_screen_wait(picker)


def _choices(screen: ChatScreen) -> list[Completion]:
    """Return the roles with their first lines; one that cannot be used says why."""
    return [Completion(one.name, one.name, *_about(one)) for one in list_roles(screen.app.settings)]


def _about(one: RolePrompt) -> tuple[str, tuple[str, ...], str, str]:
    try:
        text = one.text
    except EdgeError as error:
        return error.message, (), "cannot be used", f"{error.message} {error.hint}"
    return fmt.one_line(text.lstrip("# "), 80), (), "", text


def complete_role(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose roles."""
    with suppress(EdgeError):
        names = [one.name for one in list_roles(screen.app.settings)]
        return [Completion(name, name) for name in [*names, _NO_ROLE] if name.lower().startswith(typed.lower())]
    return []


RUNNERS = {"role": role}
COMPLETERS = {"role": complete_role}
