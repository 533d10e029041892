"""The command on LoRA adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.adapters import mix_text, read_mix
from edge.errors import UsageError
from edge_chat.commands import Completion

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge_chat.screens.chat import ChatScreen

__all__ = ["COMPLETERS", "RUNNERS"]

_NONE, _DEFAULT = "none", "default"


async def lora(screen: ChatScreen, argument: str) -> None:
    assistant, desk = _assistant(screen), screen.controller
    if not assistant.adapters:  # no other argument helps, so that the command is not put back
        hint = "Start the chat with some: edge chat --lora FILE"
        screen.complain(UsageError(f"{assistant.model_name} has no adapters.", hint))
        return
    if not argument:
        await screen.read_page("Adapters", _page(assistant, desk.lora_of(assistant)))
        return
    names = argument.replace(",", " ").split()
    conversation_id = await desk.ensure_saved()
    if names == [_DEFAULT]:
        desk.lora.pop(conversation_id, None)
    else:
        mix = read_mix([] if names == [_NONE] else names, assistant.adapters)
        desk.lora[conversation_id] = {assistant.adapters[number].name: scale for number, scale in mix}
    said = mix_text(read_mix(desk.lora_of(assistant), assistant.adapters), assistant.adapters)
    screen.tell(f"This conversation goes on with {said}." if said else "This conversation goes on with the model alone.")


def _assistant(screen: ChatScreen) -> Assistant:
    assistant = screen.app.host.assistant
    if assistant is None:
        raise UsageError("The model is not loaded yet.", "Its adapters are known once it is.")
    return assistant


def _page(assistant: Assistant, now: dict[str, float]) -> str:
    lines = [f"Adapters of {assistant.model_name}, and their scales in this conversation:", ""]
    for adapter in assistant.adapters:
        state = f"{now[adapter.name]:g}" if adapter.name in now else "not applied"
        lines += [f"- **{adapter.name}**: {state} (rank {adapter.rank}, `{adapter.path}`)"]
    first = assistant.adapters[0].name
    return "\n".join(
        [*lines, "", f"`/lora {first}:0.5` applies that one only, `/lora none` none, `/lora default` those of the start."]
    )


def complete_lora(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose the names of adapters, after those that are typed already."""
    assistant = screen.app.host.assistant
    if assistant is None or not assistant.adapters:
        return []
    before, _, start = typed.rpartition(" ")
    words = [adapter.name for adapter in assistant.adapters] + ([] if before else [_NONE, _DEFAULT])
    return [Completion(f"{before} {word}".lstrip(), word) for word in words if word.startswith(start)]


RUNNERS = {"lora": lora}
COMPLETERS = {"lora": complete_lora}
