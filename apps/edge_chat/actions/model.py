"""Commands on the model and on how it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.errors import EdgeError, UsageError
from edge_chat import format as fmt
from edge_chat import pages
from edge_chat.commands import Command, Completion
from edge_chat.parameters import PARAMETERS, describe, find, with_value

if TYPE_CHECKING:
    from edge_chat.screens.chat import ChatScreen
    from edge_chat.screens.dialogs import Picker

__all__ = ["COMMANDS"]


async def model(screen: ChatScreen, argument: str) -> None:
    """/model [name]"""
    if argument:
        screen.app.load_model(argument)
        return
    from edge_chat.screens.dialogs import Picker

    picker = Picker(
        "Model",
        [],
        screen.app.host.reference,
        note="Looking for models …",
        free_text=True,
    )
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
        choices = await screen.app.model_choices()
    except EdgeError as error:
        picker.set_note(str(error))
        return
    picker.set_choices(choices)
    picker.set_note("The conversation goes on with the model you choose. Paths, hf:, ollama: and pypi: references work too.")


def complete_model(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Models that are known already; the picker shows more."""
    return [
        Completion(choice.value, choice.label, choice.detail)
        for choice in screen.app.known_models
        if choice.value.startswith(typed)
    ]


async def set_parameter(screen: ChatScreen, argument: str) -> None:
    """/set [parameter value]"""
    if not argument:
        return await parameters(screen, "")
    name, _, value = argument.partition(" ")
    if "=" in name:
        name, _, rest = argument.partition("=")
        name, value = name.strip(), rest
    parameter = find(name)
    if not value.strip():
        now = describe(screen.controller.sampling, parameter.name)
        screen.tell(f"{parameter.name} is {now or 'empty'}: {parameter.help}.")
        return None
    screen.controller.sampling = with_value(screen.controller.sampling, name, value)
    screen.tell(f"{parameter.name} is now {describe(screen.controller.sampling, parameter.name) or 'empty'}.")
    return None


def complete_parameter(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Names of parameters, with what they are now."""
    if " " in typed or "=" in typed:
        return []
    sampling = screen.controller.sampling
    return [
        Completion(f"{p.name} ", f"{p.name} = {describe(sampling, p.name) or 'empty'}", p.help)
        for p in PARAMETERS.values()
        if p.name.startswith(typed)
    ]


async def parameters(screen: ChatScreen, argument: str) -> None:
    """/parameters"""
    from edge_chat.screens.parameters import ParameterEditor

    editor = ParameterEditor(screen.controller.sampling, screen.controller.default_sampling)
    changed = await screen.app.push_screen_wait(editor)
    if changed is not None and changed != screen.controller.sampling:
        screen.controller.sampling = changed
        screen.tell("The parameters are changed for this session.")


async def stats(screen: ChatScreen, argument: str) -> None:
    """/stats"""
    page = screen.controller.page
    await _read(screen, "Numbers", pages.stats(page.nodes if page is not None else ()))


async def context(screen: ChatScreen, argument: str) -> None:
    """/context"""
    assistant = screen.app.host.assistant
    page = screen.controller.page
    if assistant is None:
        raise UsageError("The model is not loaded yet.", "Its context window is not known before.")
    nodes = page.nodes if page is not None else ()
    system = page.info.system if page is not None else screen.app.settings.system
    counts = await asyncio.to_thread(lambda: [assistant.count_tokens(node.message().content) for node in nodes])
    n_system = await asyncio.to_thread(assistant.count_tokens, system) if system else 0
    text = pages.context(
        list(zip(nodes, counts, strict=True)),
        n_system=n_system,
        n_ctx=assistant.n_ctx,
        policy=screen.app.settings.window,
    )
    await _read(screen, "Context", text)


async def plan(screen: ChatScreen, argument: str) -> None:
    """/plan"""
    assistant = screen.app.host.assistant
    if assistant is None or assistant.plan is None:
        raise UsageError("There is no plan yet.", "It is made when the model is loaded.")
    await _read(screen, "Plan", pages.plan(assistant.plan, assistant.notices, assistant.limits))


async def _read(screen: ChatScreen, title: str, text: str) -> None:
    from edge_chat.screens.dialogs import ReadPage

    await screen.app.push_screen_wait(ReadPage(title, text))


def describe_choice(size_bytes: int | None, *, is_installed: bool, licence: str = "") -> str:
    """What the picker says of a model."""
    parts = [fmt.n_bytes(size_bytes)] if size_bytes else []
    parts.append("on this device" if is_installed else "will be downloaded")
    return ", ".join([*parts, *([licence] if licence else [])])


COMMANDS = (
    Command(
        "model",
        "Choose a model",
        "Go on with another model; it is loaded while you read and write.",
        "Model",
        model,
        argument="[name]",
        complete=complete_model,
        keys="f3",
        example="/model hf:owner/repo:Q4_0",
    ),
    Command(
        "set",
        "Set a parameter",
        "Change a sampling parameter for this session; without a value, show it.",
        "Model",
        set_parameter,
        argument="[parameter value]",
        complete=complete_parameter,
        example="/set temperature 0.2",
    ),
    Command(
        "parameters",
        "Parameters",
        "Show and change all sampling parameters.",
        "Model",
        parameters,
        aliases=("params",),
        keys="f4",
    ),
    Command("stats", "Numbers of this conversation", "Speed, waiting times and reuse of every answer.", "Model", stats),
    Command("context", "Context window", "How full the context window is, and with what.", "Model", context),
    Command("plan", "Plan", "What runs where, and why: the placement receipt.", "Model", plan, aliases=("explain",)),
)
