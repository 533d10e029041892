"""Commands on tools and thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge_chat import format as fmt
from edge_chat.commands import Completion
from edge_chat.widgets.fold import Fold

if TYPE_CHECKING:
    from edge_chat.screens.chat import ChatScreen

__all__ = ["COMPLETERS", "RUNNERS"]

_THINK = {"on": True, "off": False, "auto": None}
_SAID = {True: "The model thinks before it answers, where it can.", False: "The model answers at once, where it can.", None: ""}


async def think(screen: ChatScreen, argument: str) -> None:
    desk, wanted = screen.controller, argument.lower()
    if wanted and wanted not in _THINK:
        raise UsageError(f"/think does not know {argument!r}.", "Use /think on, /think off or /think auto.")
    if wanted:
        desk.think = _THINK[wanted]
    else:
        desk.think = desk.think is False  # the other way round
    assistant = screen.app.host.assistant
    if assistant is not None and not assistant.can_think:
        screen.tell(f"{assistant.model_name} does not think apart from its answer, so this changes nothing for it.")
    else:
        screen.tell(_SAID[desk.think] or "Whether the model thinks is left to it.")


async def tools(screen: ChatScreen, argument: str) -> None:
    desk, known = screen.controller, [tool.name for tool in screen.app.tools]
    if not known:
        raise UsageError("There are no tools.", "Name servers of tools in mcp.json beside the settings file: edge mcp --help")
    if not argument:
        await screen.read_page("Tools", _page(screen))
        return
    word, _, name = argument.partition(" ")
    if word not in ("on", "off") or (name and name not in known):
        raise UsageError(
            f"/tools does not know {argument!r}.", "Use /tools, /tools on, /tools off, or one of these with a name."
        )
    chosen = {name} if name else set(known)
    desk.tools_off = desk.tools_off - chosen if word == "on" else desk.tools_off | chosen
    n_on = len(known) - len(desk.tools_off & set(known))
    screen.tell(f"{n_on} of {fmt.plural(len(known), 'tool')} can be called.")


def _page(screen: ChatScreen) -> str:
    off = screen.controller.tools_off
    assistant = screen.app.host.assistant
    lines = []
    if assistant is not None and not assistant.can_call_tools:
        lines += [f"{assistant.model_name} was not trained to call tools, so it is not told of them.", ""]
    for tool in screen.app.tools:
        state = "off" if tool.name in off else "on" if tool.needs_approval else "on, runs without asking"
        lines += [f"### {tool.name} ({state})", "", fmt.one_line(tool.description, 300) or "No description.", ""]
    return "\n".join([*lines, "`/tools off NAME` turns one off, `/tools off` all."])


async def details(screen: ChatScreen, argument: str) -> None:
    chosen = screen.chosen_view
    views = [chosen] if chosen is not None else list(reversed(screen.transcript.views))
    for view in views:
        folds = [fold for fold in view.query(Fold) if fold.title_text]
        if folds:
            is_open = not all(fold.is_open for fold in folds)
            for fold in folds:
                fold.open(is_open)
            return
    raise UsageError("There are no thoughts or tool calls here.", "")


def complete_think(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose what can be said about thinking."""
    return [Completion(word, word) for word in _THINK if word.startswith(typed.lower())]


def complete_tools(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose on and off, with the names of tools."""
    names = [tool.name for tool in screen.app.tools]
    words = ["on", "off", *(f"{word} {name}" for word in ("on", "off") for name in names)]
    return [Completion(word, word) for word in words if word.startswith(typed)]


RUNNERS = {"think": think, "tools": tools, "details": details}
COMPLETERS = {"think": complete_think, "tools": complete_tools}
