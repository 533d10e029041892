"""Commands on the model and on how it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from edge.errors import EdgeError, UsageError
from edge.types import NO_SYSTEM
from edge_chat import pages
from edge_chat.commands import Completion
from edge_chat.offers import list_choices
from edge_chat.parameters import PARAMETERS, describe, find, with_value

if TYPE_CHECKING:
    from edge_chat.screens.chat import ChatScreen
    from edge_chat.screens.picker import Picker

__all__ = ["COMPLETERS", "RUNNERS"]


async def model(screen: ChatScreen, argument: str) -> None:
    from edge_chat.screens.picker import Picker

    if argument:
        screen.app.load_model(argument)
        return
    using = screen.app.host.reference
    picker = Picker("Model", [], using, note="Looking for models …", in_use=using, free_text=True)
    loading = asyncio.create_task(_fill_picker(screen, picker))
    try:
        chosen = await screen.app.push_screen_wait(picker)
    finally:
        loading.cancel()
    if chosen:
        screen.app.load_model(chosen)


async def _fill_picker(screen: ChatScreen, picker: Picker) -> None:
    await picker.mounted.wait()
    try:
        host = screen.app.host
        plan = host.assistant.plan if host.assistant is not None else None
        in_use_bytes = plan.memory.total_bytes if plan is not None else 0
        choices = await asyncio.to_thread(list_choices, screen.app.settings, in_use=host.reference, in_use_bytes=in_use_bytes)
        screen.app.known_models = choices
    except EdgeError as error:
        picker.set_note(str(error))
        return
    picker.set_choices(choices)
    picker.set_note("The conversation continues with the model you choose. Paths, hf:, ollama: and pypi: references work too.")


def complete_model(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose the models that the picker has listed."""
    return [choice for choice in screen.app.known_models if choice.value.startswith(typed)]


async def set_parameter(screen: ChatScreen, argument: str) -> None:
    if not argument:
        return await parameters(screen, "")
    name, _, value = argument.partition(" ")
    if "=" in name:
        name, _, value = argument.partition("=")
        name = name.strip()
    parameter = find(name)
    if not value.strip():
        now = describe(screen.controller.sampling, parameter.name)
        return screen.tell(f"{parameter.name} is {now or 'empty'}: {parameter.help}.")
    screen.controller.sampling = with_value(screen.controller.sampling, name, value)
    return screen.tell(f"{parameter.name} is now {describe(screen.controller.sampling, parameter.name) or 'empty'}.")


def complete_parameter(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose parameters, with their current values."""
    if " " in typed or "=" in typed:
        return []
    sampling = screen.controller.sampling
    return [
        Completion(f"{p.name} ", f"{p.name} = {describe(sampling, p.name) or 'empty'}", p.help)
        for p in PARAMETERS.values()
        if p.name.startswith(typed)
    ]


async def parameters(screen: ChatScreen, argument: str) -> None:
    from edge_chat.screens.parameters import ParameterEditor

    editor = ParameterEditor(screen.controller.sampling, screen.controller.default_sampling)
    changed = await screen.app.push_screen_wait(editor)
    if changed is not None and changed != screen.controller.sampling:
        screen.controller.sampling = changed
        screen.tell("The parameters are changed for this session.")


async def stats(screen: ChatScreen, argument: str) -> None:
    page = screen.controller.page
    await screen.read_page("Statistics", partial(pages.stats, page.nodes if page is not None else ()))


async def context(screen: ChatScreen, argument: str) -> None:
    assistant = screen.app.host.assistant
    page = screen.controller.page
    if assistant is None:
        raise UsageError("The model is not loaded yet.", "Its context window is known once it is.")
    nodes = page.nodes if page is not None else ()
    system = page.info.system if page is not None else screen.app.settings.system
    counts = await asyncio.to_thread(lambda: [assistant.count_tokens(node.message().content) for node in nodes])
    has_system = bool(system) and system.strip().lower() != NO_SYSTEM
    n_system = await asyncio.to_thread(assistant.count_tokens, system) if has_system else 0
    counted = list(zip(nodes, counts, strict=True))
    policy, n_ctx = screen.app.settings.window, assistant.n_ctx
    make = partial(pages.context, counted, system=system, n_system=n_system, n_ctx=n_ctx, policy=policy)
    await screen.read_page("Context", make)


async def plan(screen: ChatScreen, argument: str) -> None:
    assistant = screen.app.host.assistant
    if assistant is None or assistant.plan is None:
        raise UsageError("There is no plan yet.", "It is made when the model is loaded.")
    text = pages.plan(assistant.plan, assistant.notices, assistant.limits, assistant.disk_problem)
    await screen.read_page("Plan", text)


RUNNERS = {"model": model, "set": set_parameter, "parameters": parameters, "stats": stats, "context": context, "plan": plan}
COMPLETERS = {"model": complete_model, "set": complete_parameter}
